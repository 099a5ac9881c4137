"""12a. Compilation: a step as one program.

Written by notebooks/12a_compilation.ipynb: edit it there.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from minillama.config import LlamaConfig
from minillama.model import Block
from minillama.rope import apply_rope, rope_table


def attend_one(q, k, v, keys, values) -> torch.Tensor:
    """One token's queries q (K, G, W) look at the past, keys and values (K, S, W), and at its own k
    and v (K, W).

    All float32 but the past, which may be narrower -> (K, G, W)
    """
    own = (q * k.unsqueeze(1)).sum(-1, keepdim=True) / math.sqrt(q.shape[-1])  # (K, G, 1)
    v = v.unsqueeze(1)  # (K, 1, W)
    if keys.dtype == torch.float32:
        scores = q @ keys.transpose(1, 2) / math.sqrt(q.shape[-1])  # (K, G, S)
        weights = torch.cat((scores, own), dim=-1).softmax(dim=-1)
        return weights[..., :-1] @ values + weights[..., -1:] * v
    past, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[None].to(keys.dtype), keys[None], values[None]
    )  # (1, K, G, W), and the logarithm of the past's sum (1, K, G)
    share = torch.sigmoid(own - total.view_as(own))  # e^own / (e^own + e^total)
    return (1 - share) * past[0].float() + share * v


class ConcatLinear(nn.Module):
    """Several layers that read the same x, their outputs concatenated: where they cannot be one."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


# the dimension of a layer's outputs in each of its tensors: nn.Linear's, then the quantized layers'
OUTPUT_DIM = {"weight": 0, "levels": 0, "scale": 0, "packed": 0, "scales": 1}


def named_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers of a module by name: weights, quantized or not."""
    return {name: t.detach() for name, t in (*module.named_parameters(), *module.named_buffers())}


def join_layers(layers: list[nn.Module]) -> nn.Module:
    """One fused projection for several layers that read the same x. Their tensors become views of
    its own, so no byte is added.

    Layers of different kinds, or with padding after their rows, stay as they are, in a
    ConcatLinear.
    """
    kinds = {(type(layer), getattr(layer, "group", None)) for layer in layers}
    counts = [
        {
            t.shape[OUTPUT_DIM[name]] if name in OUTPUT_DIM else None
            for name, t in named_weights(x).items()
        }
        for x in layers
    ]
    if len(kinds) > 1 or counts != [{layer.out_features} for layer in layers]:
        return ConcatLinear(layers)
    whole = copy.deepcopy(layers[0])
    whole.out_features = sum(layer.out_features for layer in layers)
    for name in named_weights(whole):
        joined = torch.cat([getattr(layer, name).data for layer in layers], OUTPUT_DIM[name])
        getattr(whole, name).data = joined
        for layer, part in zip(
            layers, joined.split([x.out_features for x in layers], OUTPUT_DIM[name]), strict=True
        ):
            getattr(layer, name).data = part
    return whole


class BlockStep(nn.Module):
    """A block's decode step as a pure function: the past is an input, the new key and value are
    outputs.
    """

    def __init__(self, block: Block):
        super().__init__()
        attention, feed_forward = block.attention, block.feed_forward
        self.head_dim = attention.head_dim
        self.attention_norm, self.ffn_norm = block.attention_norm, block.ffn_norm
        self.qkv, self.wo = join_layers([attention.wq, attention.wk, attention.wv]), attention.wo
        self.gate_up, self.down = (
            join_layers([feed_forward.gate, feed_forward.up]),
            feed_forward.down,
        )

    def forward(self, x, rope, keys, values):
        """x (1, D), rope: cos and sin (1, W/2), keys and values (K, S, W) -> x (1, D), k and v (K,
        W)
        """
        K, W = len(keys), self.head_dim
        # (H + 2K, 1, W): queries, keys, values
        heads = self.qkv(self.attention_norm(x)).view(-1, 1, W)
        turned = apply_rope(heads[:-K], *rope)
        q, k, v = turned[:-K].view(K, -1, W), turned[-K:, 0], heads[-K:, 0]
        y = attend_one(q.float(), k.float(), v.float(), keys, values)
        x = x + self.wo(y.to(x.dtype).view(1, -1))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up), k, v


class BlockSteps(nn.Module):
    """Some blocks, one after the other, for one token."""

    def __init__(self, cfg: LlamaConfig, steps: list[BlockStep]):
        super().__init__()
        self.cfg, self.steps = cfg, nn.ModuleList(steps)

    def forward(self, x, length, keys, values):
        """x (1, D), length (1,), the cache's keys and values (l, K, capacity, W) -> x (1, D), new
        ones (l, K, W)
        """
        S, found = length.item(), []
        torch._check(S >= 1)  # promises to the compiler, which it checks when it runs
        torch._check(S <= keys.shape[2])
        rope = rope_table(self.cfg, length)
        for step, past_k, past_v in zip(
            self.steps, keys.narrow(2, 0, S), values.narrow(2, 0, S), strict=True
        ):
            x, *new = step(x, rope, past_k, past_v)
            found.append(new)
        ks, vs = zip(*found, strict=True)
        return x, torch.stack(ks), torch.stack(vs)

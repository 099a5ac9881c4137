"""12a. Compilation: a step as one program.

Written by notebooks/12a_compilation.ipynb: edit it there.
"""

import copy
import hashlib
import math
import os
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import minillama
from minillama.config import LlamaConfig
from minillama.kv_cache import KVCache
from minillama.model import Block, Llama
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


class Together(nn.Module):
    """Several layers that read the same x, their outputs end to end."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


# the dimension that counts a layer's outputs
ROWS = {"weight": 0, "levels": 0, "step": 0, "packed": 0, "scales": 1}


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All weights of a module by name, whatever their form."""
    return {name: t.detach() for name, t in (*module.named_parameters(), *module.named_buffers())}


def join_layers(layers: list[nn.Module]) -> nn.Module:
    """One layer for several that read the same x. Their tensors become views of its own, so no byte
    is added.

    Layers of different kinds, or with padding after their rows, stay as they are, Together.
    """
    kinds = {(type(layer), getattr(layer, "group", None)) for layer in layers}
    counts = [
        {t.shape[ROWS[name]] if name in ROWS else None for name, t in tensors(x).items()}
        for x in layers
    ]
    if len(kinds) > 1 or counts != [{layer.out_features} for layer in layers]:
        return Together(layers)
    whole = copy.deepcopy(layers[0])
    whole.out_features = sum(layer.out_features for layer in layers)
    for name in tensors(whole):
        joined = torch.cat([getattr(layer, name).data for layer in layers], ROWS[name])
        getattr(whole, name).data = joined
        for layer, part in zip(
            layers, joined.split([x.out_features for x in layers], ROWS[name]), strict=True
        ):
            getattr(layer, name).data = part
    return whole


class BlockStep(nn.Module):
    """A block's decode step, its past given and its new key and value returned: a pure
    function.
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


class WithWeights(nn.Module):
    """A module whose weights are arguments, so that one compiled function serves all modules of its
    form.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.hidden = [module]  # subtle: in a list, so that its weights are not found

    def forward(self, weights: dict[str, torch.Tensor], *args):
        return torch.func.functional_call(self.hidden[0], weights, args)


def export(steps: BlockSteps, example: tuple) -> torch.export.ExportedProgram:
    """The graph of `steps`, good for every length, capacity and weight. example: inputs of
    BlockSteps.forward.
    """
    capacity, weights = torch.export.Dim("capacity", min=2), tensors(steps)
    shapes = ({name: None for name in weights}, (None, None, {2: capacity}, {2: capacity}))
    with torch.no_grad():
        return torch.export.export(WithWeights(steps), (weights, *example), dynamic_shapes=shapes)


class CompileError(RuntimeError):
    """This machine cannot compile, or not this model; one line that says why."""


def build(steps: BlockSteps, example: tuple, path: Path) -> None:
    """Compile for this processor and write the package; CompileError leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about PyTorch's own insides
            made = torch._inductor.aoti_compile_and_package(
                export(steps, example), package_path=f"{scratch}/steps.pt2"
            )
            os.replace(made, path)
    except Exception as error:  # subtle: the compilers' errors have no type in common
        raise CompileError(str(error).strip().partition("\n")[0] or type(error).__name__) from error


def package_name(steps: BlockSteps, dtype: torch.dtype) -> str:
    """A file name, another one wherever the code may be: sources, PyTorch, processor, threads,
    types, shapes.
    """
    sources = [path.read_bytes() for path in sorted(Path(minillama.__file__).parent.rglob("*.py"))]
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    machine = (
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        flags,
        torch.get_num_threads(),
    )
    forms = [(name, t.dtype, tuple(t.shape)) for name, t in tensors(steps).items()]
    return (
        hashlib.sha256(repr((machine, dtype, steps.cfg, forms, sources)).encode()).hexdigest()[:24]
        + ".pt2"
    )


class CompiledStep:
    """A model's decode step, compiled for the processor."""

    def __init__(self, model: Llama, folder: Path, whole: bool = False):
        """Compile one block, to serve as every block, or all blocks as one function (`whole`).

        What lies compiled in the folder is not compiled again. CompileError; the model works as
        before.
        """
        self.model, self.dtype = model, model.dtype
        if model.device.type != "cpu":
            raise CompileError("only models on the CPU are compiled")
        steps = [BlockStep(block) for block in model.blocks]
        self.size = len(steps) if whole else 1
        parts = [
            BlockSteps(model.cfg, steps[i : i + self.size]) for i in range(0, len(steps), self.size)
        ]
        self.weights = [list(tensors(part).values()) for part in parts]
        names = {package_name(part, self.dtype) for part in parts}
        if len(names) > 1:
            raise CompileError("the blocks have weights of different forms")
        self.run = self.load(folder / names.pop(), parts[0])

    def load(self, path: Path, steps: BlockSteps):
        """The compiled function of a package, which is made if it is not there or damaged."""
        cache = KVCache(self.model.cfg, 1, 64, self.dtype)
        example = self.model.embedding(torch.tensor([0])).detach(), torch.tensor([9])
        past = [t[: self.size, 0] for t in (cache.keys, cache.values)]
        for fresh in (False, True):
            if fresh or not path.exists():
                build(steps, (*example, *past), path)
            try:
                return torch._inductor.aoti_load_package(str(path)).loader.run
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
        raise CompileError(f"{path} cannot be loaded: {reason}")

    def takes(self, cache: KVCache) -> bool:
        """Whether compiled code can read it: one row without padding, a past, the type, the order
        in memory.
        """
        keys, plain = cache.keys, cache.keys.shape[1] == 1 and cache.padding is None
        return plain and cache.length > 0 and keys.dtype == self.dtype and keys.is_contiguous()

    def __call__(self, token: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """One token behind a past: (1, 1) -> (1, 1, D)"""
        cache.reserve(1, 1)
        x, length = self.model.embedding(token[0]), torch.tensor([cache.length])
        keys, values = cache.keys[:, 0], cache.values[:, 0]  # (L, K, capacity, W)
        for weights, k, v in zip(
            self.weights, keys.split(self.size), values.split(self.size), strict=True
        ):
            x, k[:, :, cache.length], v[:, :, cache.length] = self.run([*weights, x, length, k, v])
        cache.length += 1
        self.model.ran["compiled"] += 1
        return self.model.norm(x)[None]

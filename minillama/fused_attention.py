"""Fused attention: look at every key once, and keep nothing.

Written by notebooks/11_fused_attention.ipynb: edit it there.
"""

import math
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minillama.attention import attend
from minillama.kv_cache import KVCache
from minillama.model import Llama
from minillama.rope import rope_table


def attend_in_tiles(q, k, v, length: int, tile=256) -> torch.Tensor:
    """Causal attention that holds one tile of scores at a time: q (B, H, T, W), k and v (B, K, S, W) -> (B, H, T, W).

    The first `length` slots are in use; query t sees slots up to length - T + t, so the last sees all. In float32.
    Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135.
    """
    T, W, K = *q.shape[2:], k.shape[1]
    rows = q.float().unflatten(1, (K, -1)) / math.sqrt(W)  # (B, K, G, T, W)
    own = torch.arange(length - T, length)  # (T,): each query's own slot
    largest, total = torch.full((*rows.shape[:-1], 1), -math.inf), torch.zeros(*rows.shape[:-1], 1)
    summed = torch.zeros_like(rows)
    for start in range(0, length, tile):
        slots = torch.arange(start, min(start + tile, length))  # (t,)
        keys, values = (x[:, :, None, start : start + len(slots)].float() for x in (k, v))  # (B, K, 1, t, W)
        scores = (rows @ keys.mT).masked_fill(slots > own[:, None], -math.inf)  # (B, K, G, T, t)
        new = torch.maximum(largest, scores.amax(-1, keepdim=True))
        shift = new.masked_fill(new == -math.inf, 0)  # a query that has seen nothing yet
        shrink, weights = (largest - shift).exp(), (scores - shift).exp()
        total = shrink * total + weights.sum(-1, keepdim=True)
        summed = shrink * summed + weights @ values
        largest = new
    return (summed / total.clamp(min=1e-30)).flatten(1, 2).to(q.dtype)


def visible(T: int, S: int, length, device=None) -> torch.Tensor:
    """True where a query may look: (T, S), the last query in the last of `length` used slots."""
    own = length - T + torch.arange(T, device=device)
    return torch.arange(S, device=device) <= own[:, None]


def attend_naive(q, k, v, length) -> torch.Tensor:
    """Chapter 4's attention: all scores at once."""
    if isinstance(length, int):
        k, v = k[:, :, :length], v[:, :, :length]
    return attend(q, k, v, visible(q.shape[2], k.shape[2], length, q.device))


def attend_sdpa(q, k, v, length) -> torch.Tensor:
    """PyTorch's scaled_dot_product_attention, in a fused kernel or not at all.

    RuntimeError where there is none for this device, type and form; nothing slower takes its place.
    """
    T, grouped = q.shape[2], {"enable_gqa": q.shape[1] != k.shape[1]}
    if not isinstance(length, int):
        if q.is_cuda:
            return attend_flash(q, k, v, length)
        return F.scaled_dot_product_attention(q, k, v, visible(T, k.shape[2], length, q.device), **grouped)
    k, v = k[:, :, :length], v[:, :, :length]
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION], set_priority=True):
        if T in (1, length):
            return F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, **grouped)
        if q.is_cuda:  # its own way to say that the last query meets the last key; importing it takes long
            from torch.nn.attention.bias import causal_lower_right

            return F.scaled_dot_product_attention(q, k, v, causal_lower_right(T, length), **grouped)
        mask = visible(T, length, length)
        return F.scaled_dot_product_attention(q, k, v, mask, **grouped)


def attend_flash(q, k, v, length) -> torch.Tensor:
    """The flash kernel that reads the length on the device: one row only, q (1, H, 1, W)."""
    ends = torch.arange(2, dtype=torch.int32, device=q.device)  # one text, from 0 to 1; its keys from 0 to 1 * S
    rows = (x[0].transpose(0, 1) for x in (q, k, v))  # (1, H, W), (S, K, W)
    y = torch.ops.aten._flash_attention_forward(
        *rows, ends, ends * k.shape[2], 1, k.shape[2], 0.0, False, False, seqused_k=length
    )[0]
    return y.transpose(0, 1)[None]


@torch.library.custom_op("minillama::attend", mutates_args=(), device_types="cpu")
def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Causal attention as one operation, on every device that has a kernel for it (chapter 11c registers CUDA's).

    q (B, H, T, W), k and v (B, K, S, W), length (1,) int32 on their device: slots in use -> (B, H, T, W)
    """
    return empty_answer(q).copy_(attend_in_tiles(q, k, v, length.item()))


@fused.register_fake
def empty_answer(q, k=None, v=None, length=None) -> torch.Tensor:
    """Room for the answers (B, H, T, W): each token's heads side by side in memory, as the next layer reads them."""
    B, H, T, W = q.shape
    return q.new_empty(B, T, H, W).transpose(1, 2)


def attend_fused(q, k, v, length) -> torch.Tensor:
    """All of attention in one kernel, ours."""
    if isinstance(length, int):
        length = torch.full((1,), length, dtype=torch.int32, device=q.device)
    return fused(q, k, v, length)


ATTENTIONS = {"naive": attend_naive, "sdpa": attend_sdpa, "fused": attend_fused}


class AttentionError(ValueError):
    """A way of attending that this machine or this model does not have; one line that says why."""


class ChosenAttention(nn.Module):
    """A model whose layers attend in a chosen way. Called like the model; `ran` counts passes by what they ran."""

    def __init__(self, model: Llama, name: str):
        """name: of ATTENTIONS. The way is tried, on a step and a short prompt: AttentionError says what is missing."""
        super().__init__()
        if name not in ATTENTIONS:
            raise AttentionError(f"attention must be one of {', '.join(ATTENTIONS)}, not {name!r}")
        self.model, self.name, self.ran = model, name, Counter()
        self.try_out()
        for block in model.blocks:
            block.attention.attend = self.attend

    cfg = property(lambda self: self.model.cfg)
    embedding = property(lambda self: self.model.embedding)
    blocks = property(lambda self: self.model.blocks)
    norm = property(lambda self: self.model.norm)
    head = property(lambda self: self.model.head)

    def try_out(self) -> None:
        weight, heads = self.norm.weight, (self.cfg.n_heads, self.cfg.n_kv_heads)
        q, k = (torch.randn(1, n, 17, self.cfg.head_dim, device=weight.device).to(weight.dtype) for n in heads)
        try:
            with torch.inference_mode():
                for T in (1, 17):  # of 17 keys; to our kernels 17 queries are many, and one is few
                    ATTENTIONS[self.name](q[:, :, :T], k, k, 17)
        except RuntimeError as error:
            raise AttentionError(f"no {self.name} attention here: {str(error).strip().splitlines()[0]}") from error

    def attend(self, q, k, v, mask) -> torch.Tensor:
        """In the chosen way where `mask` is a length; where it is a mask, only chapter 4's knows what to do."""
        plain = mask is None or (isinstance(mask, torch.Tensor) and mask.dtype == torch.bool)
        return attend(q, k, v, mask) if plain else ATTENTIONS[self.name](q, k, v, mask)

    def forward(self, tokens: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        return self.head(self.hidden(tokens, cache)).float()

    def hidden(self, tokens: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """As the model's, (B, T) -> (B, T, D). Rows with filler need a mask, so they go the model's own way."""
        if cache is not None and cache.padding is not None:
            self.ran["naive"] += 1
            return self.model.hidden(tokens, cache)
        start = 0
        if cache is not None:
            cache.reserve(*tokens.shape)
            start = cache.length
        length = start + tokens.shape[1]
        rope = rope_table(self.cfg, torch.arange(start, length, device=tokens.device))
        x = self.embedding(tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, length, cache, layer)
        if cache is not None:
            cache.length = length
        self.ran[self.name] += 1
        return self.norm(x)


def attend_fast(model: Llama) -> tuple[ChosenAttention, list[str]]:
    """The model with the fastest attention that works here, and why faster ones do not: to be said, not swallowed."""
    missing = []
    for name in ("fused", "sdpa") if model.norm.weight.is_cuda else ("sdpa",):
        try:
            return ChosenAttention(model, name), missing
        except AttentionError as error:
            missing.append(str(error))
    return ChosenAttention(model, "naive"), missing

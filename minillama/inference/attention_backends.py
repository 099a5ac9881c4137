"""Fused attention: look at every key once, and keep nothing.

Written by notebooks/11_fused_attention.ipynb: edit it there.
"""

import math

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minillama.attention import NAIVE, AttentionBackend, AttentionMask, attend
from minillama.model import Llama


def attend_in_tiles(q, k, v, length: int, tile=256) -> torch.Tensor:
    """Causal attention that holds one tile of scores at a time: q (B, H, T, W), k and v (B, K, S,
    W) -> (B, H, T, W).

    The first `length` slots are in use; query t sees slots up to length - T + t, so the last sees
    all. In float32. Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022,
    arXiv:2205.14135.
    """
    T, W, K = *q.shape[2:], k.shape[1]
    rows = q.float().unflatten(1, (K, -1)) / math.sqrt(W)  # (B, K, G, T, W)
    own = torch.arange(length - T, length)  # (T,): each query's own slot
    largest, total = torch.full((*rows.shape[:-1], 1), -math.inf), torch.zeros(*rows.shape[:-1], 1)
    summed = torch.zeros_like(rows)
    for start in range(0, length, tile):
        slots = torch.arange(start, min(start + tile, length))  # (t,)
        # (B, K, 1, t, W)
        keys, values = (x[:, :, None, start : start + len(slots)].float() for x in (k, v))
        scores = (rows @ keys.mT).masked_fill(slots > own[:, None], -math.inf)  # (B, K, G, T, t)
        new = torch.maximum(largest, scores.amax(-1, keepdim=True))
        shift = new.masked_fill(new == -math.inf, 0)  # a query that has seen nothing yet
        shrink, weights = (largest - shift).exp(), (scores - shift).exp()
        total = shrink * total + weights.sum(-1, keepdim=True)
        summed = shrink * summed + weights @ values
        largest = new
    return (summed / total.clamp(min=1e-30)).flatten(1, 2).to(q.dtype)


def attend_in_blocks(q, k, v, mask: AttentionMask, size: int = 128) -> torch.Tensor:
    """Attention backend: `size` queries at a time, with the keys up to the last of them (chapter
    13).
    """
    table = mask.table(k.shape[2])
    if table is None or isinstance(mask.length, torch.Tensor):
        return attend(q, k, v, table)
    T, S, parts = q.shape[2], k.shape[2], []
    for start in range(0, T, size):
        stop = min(start + size, T)
        seen = S - T + stop  # the last query stands at the last key
        allowed = table[..., start:stop, :seen]
        parts.append(attend(q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], allowed))
    return torch.cat(parts, dim=2)


def attend_sdpa(q, k, v, mask: AttentionMask) -> torch.Tensor:
    """Attention backend: PyTorch's scaled_dot_product_attention; causal attention with an int
    length runs in a fused kernel or not at all.

    RuntimeError where there is none for this device, dtype and shape: no slower fallback.
    """
    T, S, grouped = q.shape[2], k.shape[2], {"enable_gqa": q.shape[1] != k.shape[1]}
    if isinstance(mask.length, torch.Tensor) and q.is_cuda:
        return attend_flash(q, k, v, mask.length)
    if mask.allowed is not None or isinstance(mask.length, torch.Tensor):
        return F.scaled_dot_product_attention(q, k, v, mask.table(S), **grouped)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION], set_priority=True):
        if T in (1, S):
            return F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, **grouped)
        if q.is_cuda:
            from torch.nn.attention.bias import causal_lower_right  # importing it takes long

            return F.scaled_dot_product_attention(q, k, v, causal_lower_right(T, S), **grouped)
        return F.scaled_dot_product_attention(q, k, v, mask.table(S), **grouped)


def attend_flash(q, k, v, length) -> torch.Tensor:
    """The flash kernel that reads the length on the device: batch size 1, q (1, H, 1, W)."""
    # one sequence: queries 0 to 1, keys 0 to S
    ends = torch.arange(2, dtype=torch.int32, device=q.device)
    rows = (x[0].transpose(0, 1) for x in (q, k, v))  # (1, H, W), (S, K, W)
    y = torch.ops.aten._flash_attention_forward(
        *rows, ends, ends * k.shape[2], 1, k.shape[2], 0.0, False, False, seqused_k=length
    )[0]
    return y.transpose(0, 1)[None]


@torch.library.custom_op("minillama::attend", mutates_args=(), device_types="cpu")
def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: torch.Tensor
) -> torch.Tensor:
    """Causal attention as one operation, on every device that has a kernel for it (chapter 11c
    registers CUDA's).

    q (B, H, T, W), k and v (B, K, S, W), length (1,) int32 on their device: slots in use -> (B, H,
    T, W)
    """
    return empty_output(q).copy_(attend_in_tiles(q, k, v, length.item()))


@fused_attention.register_fake
def empty_output(q, k=None, v=None, length=None) -> torch.Tensor:
    """An uninitialized output (B, H, T, W): each token's heads contiguous in memory, as the next
    layer reads them.
    """
    B, H, T, W = q.shape
    return q.new_empty(B, T, H, W).transpose(1, 2)


def attend_fused(q, k, v, mask: AttentionMask) -> torch.Tensor:
    """Attention backend: causal attention in one kernel, ours. It cannot use a mask table."""
    length = mask.length
    if isinstance(length, int):
        length = torch.full((1,), length, dtype=torch.int32, device=q.device)
    return fused_attention(q, k, v, length)


BACKENDS = {
    backend.name: backend
    for backend in (
        NAIVE,
        AttentionBackend("blocks", attend_in_blocks),
        AttentionBackend("sdpa", attend_sdpa),
        AttentionBackend("fused", attend_fused, supports_tables=False),
    )
}


class AttentionError(ValueError):
    """An attention backend that this machine or this model does not have; one line that says
    why.
    """


def use_attention(model: Llama, name: str) -> Llama:
    """Let all layers attend with this backend of BACKENDS, in place. AttentionError if it does not
    work here.
    """
    if name not in BACKENDS:
        raise AttentionError(f"attention must be one of {', '.join(BACKENDS)}, not {name!r}")
    try_backend(model, BACKENDS[name])
    model.attention_backend = BACKENDS[name]
    return model


def try_backend(model: Llama, backend: AttentionBackend) -> None:
    """Try a decode step and a short prompt of random values: what is missing is an AttentionError
    now, not later.
    """
    heads = (model.cfg.n_heads, model.cfg.n_kv_heads)
    q, k = (
        torch.randn(1, n, 17, model.cfg.head_dim, device=model.device).to(model.dtype)
        for n in heads
    )
    try:
        with torch.no_grad():
            for T in (1, 17):  # of 17 keys: our kernels take one path for 1 query, another for 17
                backend.attend(q[:, :, :T], k, k, AttentionMask.causal(T, 17 - T, model.device))
    except RuntimeError as error:
        raise AttentionError(
            f"no {backend.name} attention here: {str(error).strip().splitlines()[0]}"
        ) from error


def use_fastest_attention(model: Llama) -> list[str]:
    """Let all layers attend with the fastest backend that works here; returns why faster ones do
    not.
    """
    missing = []
    for name in ("fused", "sdpa") if model.norm.weight.is_cuda else ("sdpa",):
        try:
            use_attention(model, name)
            return missing
        except AttentionError as error:
            missing.append(str(error))
    use_attention(model, "naive")
    return missing

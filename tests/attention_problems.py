"""Attention with a known answer: random questions, poison where nobody may look, and what float64
says.
"""

import itertools
import math

import torch

from minillama.attention import AttentionMask
from minillama.inference.attention_backends import BACKENDS


LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative


def problem(B, H, K, T, length, slots, W, dtype, seed=0):
    """q, k, v of which everything behind `length` slots is NaN, and the answer in float64."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(B, T, H, W, generator=g).to(dtype).transpose(1, 2)
    k, v = (torch.randn(B, K, slots, W, generator=g).to(dtype) for _ in "kv")
    keys, values = (x[:, :, :length].double().repeat_interleave(H // K, 1) for x in (k, v))
    k[:, :, length:] = v[:, :, length:] = math.nan
    hidden = torch.ones(T, length, dtype=torch.bool).triu(length - T + 1)
    scores = (q.double() @ keys.mT / math.sqrt(W)).masked_fill(hidden, -math.inf)
    return q, k, v, scores.softmax(-1) @ values


def attended(name: str, q, k, v, length) -> torch.Tensor:
    """What a backend answers; a length on the device leaves it to the backend what not to look
    at.
    """
    T = q.shape[2]
    if isinstance(length, int):
        mask, k, v = (
            AttentionMask.causal(T, length - T, q.device),
            k[:, :, :length],
            v[:, :, :length],
        )
    else:
        mask = AttentionMask(torch.arange(T, device=q.device), length)
    return BACKENDS[name].attend(q, k, v, mask)


def off(got, want) -> float:
    """Relative error; NaN and inf are errors beyond all limits."""
    error = ((got.double() - want).norm() / want.norm()).item()
    return error if math.isfinite(error) else math.inf


GRID = [
    (1, 4, 2, 1, 1, 1, 64),
    (1, 4, 1, 1, 7, 9, 128),
    (2, 8, 2, 1, 300, 300, 64),
    (2, 8, 2, 5, 300, 300, 128),
    (1, 3, 1, 70, 70, 70, 64),
    (1, 4, 4, 30, 290, 300, 16),
]


def every_combination():
    """(B, H, K, T, length, slots): batch, heads, queries, keys before them, and slots behind them,
    in all mixtures.
    """
    heads = [(4, 4), (6, 2), (8, 1)]
    for B, (H, K), T, past, spare in itertools.product(
        (1, 2), heads, (1, 2, 33), (0, 1, 200), (0, 7)
    ):
        yield B, H, K, T, past + T, past + T + spare

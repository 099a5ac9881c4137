"""Pretraining: from random numbers to a model.

Written by notebooks/13_pretraining.ipynb: edit it there.
"""

import time

import torch

from minillama.config import LlamaConfig


def flops_per_token(cfg: LlamaConfig, length: int) -> int:
    """Multiplications and additions of a step per token of a row: 6 per weight of a matrix, 12 per
    key and width.
    """
    heads = (2 * cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim
    weights = (
        cfg.n_layers * (heads * cfg.dim + 3 * cfg.dim * cfg.ffn_dim) + cfg.dim * cfg.vocab_size
    )
    return 6 * weights + 12 * cfg.n_layers * cfg.n_heads * cfg.head_dim * length


def peak_flops(dtype: torch.dtype, size: int = 1024) -> float:
    """Operations a second of one large product, the most that this machine gives: the best of
    five.
    """
    a, times = torch.ones(size, size, dtype=dtype), []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)

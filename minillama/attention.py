"""Attention: many heads, grouped queries, no look ahead.

Written by notebooks/04_attention.ipynb: edit it there.
"""

import math

import torch
from torch import nn

from minillama.config import LlamaConfig
from minillama.kv_cache import KVCache
from minillama.rope import apply_rope


def causal_mask(n_queries: int, n_keys: int, device=None) -> torch.Tensor:
    """True where a query may look: (T, S), with the last query aligned to the last key (lower right)."""
    allowed = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return allowed.tril(diagonal=n_keys - n_queries)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Grouped-query attention: q (B, H, T, W), k and v (B, K, S, W), mask (T, S) or (B, 1, T, S) -> (B, H, T, W).

    Heads h*G .. h*G+G-1 share kv head h. Softmax in float32. Ainslie et al. 2023, arXiv:2305.13245.
    """
    B, H, T, W = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K * T, W)  # the G heads of a group are just more queries to the same keys
    scores = (q @ k.transpose(-2, -1) / math.sqrt(W)).view(B, H, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.float().softmax(dim=-1).to(q.dtype)
    return (weights.view(B, K, H // K * T, S) @ v).view(B, H, T, W)


class Attention(nn.Module):
    """x (B, T, D) -> (B, T, D): project to queries, keys and values, rotate, attend, project back.

    rope: cos and sin (T, W/2) of the tokens' positions; mask: True where a query may look (T, S), None for everywhere.
    Both may differ from row to row: (B, 1, T, W/2) and (B, 1, T, S).
    """

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        self.head_dim = cfg.head_dim
        self.wq = nn.Linear(cfg.dim, cfg.n_heads * cfg.head_dim, bias=False)
        self.wk = nn.Linear(cfg.dim, cfg.n_kv_heads * cfg.head_dim, bias=False)
        self.wv = nn.Linear(cfg.dim, cfg.n_kv_heads * cfg.head_dim, bias=False)
        self.wo = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.dim, bias=False)

    def forward(self, x, rope, mask=None, cache: KVCache | None = None, layer: int = 0):
        q, k, v = (self.split_heads(project(x)) for project in (self.wq, self.wk, self.wv))
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.wo(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))

    def attend(self, q, k, v, mask):
        """A method, so that a layer can be given another way of attending."""
        return attend(q, k, v, mask)

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, heads * W) -> (B, heads, T, W)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

"""Attention: many heads, grouped queries, no look ahead.

Written by notebooks/04_attention.ipynb: edit it there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from minillama.config import LlamaConfig
from minillama.rope import apply_rope


def causal_mask(n_queries: int, n_keys: int, device=None) -> torch.Tensor:
    """True where a query may look: (T, S), with the last query aligned to the last key (lower
    right).
    """
    allowed = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return allowed.tril(diagonal=n_keys - n_queries)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """Grouped-query attention: q (B, H, T, W), k and v (B, K, S, W) -> (B, H, T, W).

    allowed: True where a query may look, (T, S) or (B, 1, T, S); None for everywhere.
    Heads h*G .. h*G+G-1 share kv head h. Softmax in float32. Ainslie et al. 2023, arXiv:2305.13245.
    """
    B, H, T, W = q.shape
    K, S = k.shape[1:3]
    # the G heads of a group are just more queries to the same keys
    q = q.reshape(B, K, H // K * T, W)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(W)).view(B, H, T, S)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    weights = scores.float().softmax(dim=-1).to(q.dtype)
    return (weights.view(B, K, H // K * T, S) @ v).view(B, H, T, W)


@dataclass(frozen=True)
class AttentionMask:
    """Where the tokens of a pass stand and what each may see: made once per pass, handed to every
    layer.

    positions: of the queries, (T,), or (B, 1, T) where rows differ. length: how many keys are in
    use, the last query at the last of them; an int or, in a recorded step (chapter 11d), int32 (1,)
    on the device. allowed: None for causal attention; else True where a query may look, (T, S) or
    (B, 1, T, S).
    """

    positions: torch.Tensor
    length: int | torch.Tensor
    allowed: torch.Tensor | None = None

    @classmethod
    def causal(cls, n_queries: int, start: int = 0, device=None) -> "AttentionMask":
        """Of n_queries new tokens after `start` old ones; each sees itself and all before it."""
        return cls(torch.arange(start, start + n_queries, device=device), start + n_queries)

    def table(self, n_keys: int) -> torch.Tensor | None:
        """True where a query may look, (T, S) or (B, 1, T, S), over n_keys keys; None for
        everywhere.
        """
        if self.allowed is not None:
            return self.allowed
        T = self.positions.shape[-1]
        if isinstance(self.length, torch.Tensor):  # of more keys than are in use
            # (T,): each query's own key
            own = self.length - T + torch.arange(T, device=self.length.device)
            return torch.arange(n_keys, device=self.length.device) <= own[:, None]
        return self.triangle if T > 1 else None

    @cached_property
    def triangle(self) -> torch.Tensor:
        """The causal mask (T, S)."""
        return causal_mask(self.positions.shape[-1], self.length, self.positions.device)


def attend_naive(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: AttentionMask
) -> torch.Tensor:
    """Attention backend: all scores at once, as in `attend`."""
    return attend(q, k, v, mask.table(k.shape[2]))


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionMask], torch.Tensor]


@dataclass(frozen=True)
class AttentionBackend:
    """A way to compute attention: q (B, H, T, W), k and v (B, K, S, W), and the mask -> (B, H, T,
    W).
    """

    name: str
    attend: Attend
    # whether it can use AttentionMask.allowed; if not, such passes are attended naively
    supports_tables: bool = True


NAIVE = AttentionBackend("naive", attend_naive)


class Attention(nn.Module):
    """x (B, T, D) -> (B, T, D): project to queries, keys and values, rotate, attend, project back.

    rope: cos and sin of the tokens' positions, (T, W/2), or (B, 1, T, W/2) where rows differ.
    cache: this layer's part of a KVCache (chapter 8). attend: the attention backend.
    """

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        self.head_dim = cfg.head_dim
        self.wq = nn.Linear(cfg.dim, cfg.n_heads * cfg.head_dim, bias=False)
        self.wk = nn.Linear(cfg.dim, cfg.n_kv_heads * cfg.head_dim, bias=False)
        self.wv = nn.Linear(cfg.dim, cfg.n_kv_heads * cfg.head_dim, bias=False)
        self.wo = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.dim, bias=False)

    def forward(self, x, rope, mask: AttentionMask, cache=None, attend: Attend = attend_naive):
        q, k, v = (self.split_heads(project(x)) for project in (self.wq, self.wk, self.wv))
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v)
        return self.wo(attend(q, k, v, mask).transpose(1, 2).flatten(2))

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, heads * W) -> (B, heads, T, W)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

"""Model: blocks on a residual stream.

Written by notebooks/06_model.ipynb: edit it there.
"""

from collections import Counter
from typing import Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from minillama.attention import NAIVE, Attention, AttentionBackend, AttentionMask, attend_naive
from minillama.config import LlamaConfig
from minillama.feedforward import FeedForward
from minillama.kv_cache import KVCache
from minillama.rmsnorm import RMSNorm
from minillama.rope import rope_table


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on a normalised copy and added to the stream.
    (B, T, D)
    """

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        self.attention_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.attention = Attention(cfg)
        self.ffn_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.feed_forward = FeedForward(cfg)

    def forward(self, x, rope, mask: AttentionMask, cache=None, attend=attend_naive):
        x = x + self.attention(self.attention_norm(x), rope, mask, cache, attend)
        return x + self.feed_forward(self.ffn_norm(x))


class DecodeStep(Protocol):
    """One token through all blocks, after what the cache holds: as `Llama.hidden`, but faster."""

    def supports(self, cache: KVCache) -> bool:
        """Whether it supports this cache."""

    def __call__(self, token: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """token (1, 1) -> (1, 1, D); its keys and values are added to the cache."""


class Llama(nn.Module):
    """The decoder: tokens (B, T) int64 -> logits (B, T, V) float32.

    With a cache, tokens continue what it holds: their positions start at cache.length, less the
    row's padding. mask: what a query may see, if not the usual (itself and all before it but
    padding). last: logits of the last positions alone.
    attention_backend: how all layers attend. decode_step: a faster way for a single token, or None.
    activation_checkpointing: in training, keep only each block's input and compute the rest again.
    ran: how many passes with a cache each backend or decode step has done.
    """

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        self.cfg = cfg
        self.embedding = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        if cfg.tied_embeddings:
            self.head.weight = self.embedding.weight
        self.attention_backend: AttentionBackend = NAIVE
        self.decode_step: DecodeStep | None = None
        self.activation_checkpointing = False
        self.ran = Counter()

    @classmethod
    def from_scratch(cls, cfg: LlamaConfig, seed: int) -> "Llama":
        """A model with the first weights of a training run, the same for the same seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls(cfg)
            model.init_weights()
        return model

    def init_weights(self) -> None:
        """Small random matrices, smaller where a layer writes to the residual stream."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                writes = name.endswith(("wo.weight", "down.weight"))
                depth = 2 * self.cfg.n_layers  # layers that write, one after another
                nn.init.normal_(weight, std=0.02 / depth**0.5 if writes else 0.02)

    device = property(lambda self: self.norm.weight.device)
    dtype = property(lambda self: self.norm.weight.dtype)

    def forward(
        self,
        tokens,
        cache: KVCache | None = None,
        mask: AttentionMask | None = None,
        last: int | None = None,
    ):
        step = self.decode_step
        one = cache is not None and mask is None and tokens.shape == (1, 1)
        if step is not None and one and step.supports(cache):
            x = step(tokens, cache)
        else:
            x = self.hidden(tokens, cache, mask)
        return self.head(x if last is None else x[:, -last:]).float()

    def hidden(
        self, tokens, cache: KVCache | None = None, mask: AttentionMask | None = None
    ) -> torch.Tensor:
        """What the head reads: the normalised end of the stream, (B, T) -> (B, T, D)."""
        T = tokens.shape[1]
        if cache is not None:
            cache.reserve(*tokens.shape)
        if mask is None:
            mask = AttentionMask.causal(T, device=tokens.device) if cache is None else cache.mask(T)
        backend = self.backend_for(mask, cache)
        rope = rope_table(self.cfg, mask.positions)
        x = self.embedding(tokens)
        layers = [None] * len(self.blocks) if cache is None else cache.layers()
        for block, layer in zip(self.blocks, layers, strict=True):
            x = self.through(block, x, rope, mask, layer, backend.attend)
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def through(self, block: Block, *inputs) -> torch.Tensor:
        """One block, whose activations are kept for the backward pass or, checkpointed, computed
        again.
        """
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def backend_for(self, mask: AttentionMask, cache: KVCache | None) -> AttentionBackend:
        """The model's attention backend, or the naive one if that cannot use the mask's table."""
        backend = (
            self.attention_backend
            if mask.allowed is None or self.attention_backend.supports_tables
            else NAIVE
        )
        if cache is not None:
            self.ran[backend.name] += 1
        return backend

"""Model: blocks on a residual stream.

Written by notebooks/06_model.ipynb: edit it there.
"""

import torch
from torch import nn

from minillama.attention import Attention, causal_mask
from minillama.config import LlamaConfig
from minillama.feedforward import FeedForward
from minillama.kv_cache import KVCache
from minillama.rmsnorm import RMSNorm
from minillama.rope import rope_table


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on a normalised copy and added to the stream. (B, T, D)"""

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        self.attention_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.attention = Attention(cfg)
        self.ffn_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.feed_forward = FeedForward(cfg)

    def forward(self, x, rope, mask=None, cache: KVCache | None = None, layer: int = 0):
        x = x + self.attention(self.attention_norm(x), rope, mask, cache, layer)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """The decoder: tokens (B, T) int64 -> logits (B, T, V) float32.

    With a cache, tokens continue what it holds: their positions start at cache.length, less the row's padding.
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

    def forward(self, tokens: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        return self.head(self.hidden(tokens, cache)).float()

    def hidden(self, tokens: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """What the head reads: the normalised end of the stream, (B, T) -> (B, T, D)."""
        T, start = tokens.shape[1], 0 if cache is None else cache.length
        if cache is not None:
            cache.reserve(*tokens.shape)
        positions = torch.arange(start, start + T, device=tokens.device)
        mask = causal_mask(T, start + T, tokens.device) if T > 1 else None  # a single query may look at every key
        if cache is not None and cache.padding is not None:
            positions, mask = cache.hide_padding(positions, mask)  # (B, 1, T), (B, 1, T, S)
        rope = rope_table(self.cfg, positions)
        x = self.embedding(tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, mask, cache, layer)
        if cache is not None:
            cache.length += T
        return self.norm(x)

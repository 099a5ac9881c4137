"""KV cache: remember keys and values, not the past.

Written by notebooks/08_kv_cache.ipynb: edit it there.
"""

import torch

from minillama.config import LlamaConfig


class KVCache:
    """Keys and values of every layer for the tokens seen so far: two tensors (L, B, K, S, W).

    length: how many positions are filled; the model reads its position from it. Nothing else is state.
    """

    def __init__(self, cfg: LlamaConfig, batch_size=1, max_seq_len=256, dtype=torch.float32, device="cpu"):
        shape = (cfg.n_layers, batch_size, cfg.n_kv_heads, max_seq_len, cfg.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def max_seq_len(self) -> int:
        return self.keys.shape[3]

    def reserve(self, batch_size: int, n_tokens: int) -> None:
        """Raise ValueError, before anything is written, if tokens of this shape (B, T) do not fit."""
        if batch_size != self.keys.shape[1]:
            raise ValueError(f"a batch of {batch_size} does not fit a cache made for {self.keys.shape[1]}")
        if self.length + n_tokens > self.max_seq_len:
            raise ValueError(f"{self.length} + {n_tokens} tokens do not fit a cache of {self.max_seq_len}")

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new (B, K, T, W) behind the filled part; return all keys and values so far (B, K, S, W)."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

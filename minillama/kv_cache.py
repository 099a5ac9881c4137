"""KV cache: remember keys and values, not the past.

Written by notebooks/08_kv_cache.ipynb: edit it there.
"""

from dataclasses import dataclass

import torch

from minillama.attention import AttentionMask
from minillama.config import LlamaConfig


class KVCache:
    """Keys and values of every layer for the tokens seen so far: two tensors (L, B, K, S, W).

    length: how many slots are filled; the next token goes into that slot of every row. padding:
    None, or (B,) int64, how many first slots of each row are padding (rows of different lengths end
    together); a token's position is its slot less its row's padding. Nothing else is state.
    """

    def __init__(
        self,
        cfg: LlamaConfig,
        batch_size=1,
        max_seq_len=256,
        dtype=torch.float32,
        device="cpu",
        padding=None,
    ):
        if batch_size < 1 or max_seq_len < 1:
            raise ValueError(
                f"a cache needs at least one row and one slot, not {batch_size} and {max_seq_len}"
            )
        shape = (cfg.n_layers, batch_size, cfg.n_kv_heads, max_seq_len, cfg.head_dim)
        try:
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        except RuntimeError:
            raise ValueError(
                f"there is no memory for a cache of {batch_size} x {max_seq_len:,} tokens"
            ) from None
        self.length = 0
        self.padding = None
        if padding is not None:
            counts = torch.as_tensor(padding, device=device)
            right = counts.shape == (batch_size,) and counts.dtype == torch.int64
            if not right or counts.min() < 0 or counts.max() >= max_seq_len:
                raise ValueError(
                    f"padding must be {batch_size} whole numbers below {max_seq_len}, not {padding}"
                )
            # rows of one length need nothing special
            self.padding = counts if counts.any() else None

    @property
    def max_seq_len(self) -> int:
        return self.keys.shape[3]

    def reserve(self, batch_size: int, n_tokens: int) -> None:
        """Raise ValueError, before anything is written, if tokens of this shape (B, T) do not
        fit.
        """
        if batch_size != self.keys.shape[1]:
            raise ValueError(
                f"a batch of {batch_size} does not fit a cache made for {self.keys.shape[1]}"
            )
        if self.length + n_tokens > self.max_seq_len:
            raise ValueError(
                f"{self.length} + {n_tokens} tokens do not fit a cache of {self.max_seq_len}"
            )

    def update(
        self, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new (B, K, T, W) after the filled part; return all keys and values so far (B,
        K, S, W).
        """
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def layers(self) -> list["LayerCache"]:
        """Each layer's own part, in order."""
        return [LayerCache(self, layer) for layer in range(len(self.keys))]

    def mask(self, n_tokens: int) -> AttentionMask:
        """Where the next so many tokens stand, and what they may see."""
        mask = AttentionMask.causal(n_tokens, self.length, self.keys.device)
        return mask if self.padding is None else self.hide_padding(mask)

    def hide_padding(self, mask: AttentionMask) -> AttentionMask:
        """The same without padding: positions (B, 1, T) start after it, and no query sees it,
        allowed (B, 1, T, S).

        Except padding itself: a softmax over nothing would be NaN.
        """
        padding, slots = self.padding[:, None, None], mask.positions  # (B, 1, 1), (T,)
        keys = torch.arange(mask.length, device=slots.device)  # (S,)
        allowed = (keys >= padding[..., None]) & (keys <= slots[:, None])  # (B, 1, T, S)
        return AttentionMask(slots - padding, mask.length, allowed | (keys == slots[:, None]))

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` slots; ValueError if fewer are filled."""
        if not 0 <= length <= self.length:
            raise ValueError(f"{self.length} slots are filled, so {length} cannot be kept")
        self.length = length

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these, which move together; ValueError unless they are ascending rows
        of the cache.
        """
        if not rows or rows != sorted(set(rows) & set(range(self.keys.shape[1]))):
            raise ValueError(f"{rows} are no ascending rows of a cache of {self.keys.shape[1]}")
        for new, old in enumerate(rows):
            if new != old:
                self.keys[:, new, :, : self.length] = self.keys[:, old, :, : self.length]
                self.values[:, new, :, : self.length] = self.values[:, old, :, : self.length]
        self.keys, self.values = self.keys[:, : len(rows)], self.values[:, : len(rows)]
        self.padding = None if self.padding is None else self.padding[rows]


@dataclass(frozen=True)
class LayerCache:
    """What a KVCache keeps for one layer, which is all that the layer's attention needs to know of
    it.
    """

    cache: KVCache
    layer: int

    def update(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As KVCache.update: new keys and values (B, K, T, W) in, all so far out (B, K, S, W)."""
        return self.cache.update(self.layer, k, v)

"""Quantization: fewer bytes per weight, and what they cost.

Written by notebooks/12_quantization.ipynb: edit it there.
"""

import time
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from minillama.model import Llama


def to_levels(
    weight: torch.Tensor, bits: int, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Group-wise quantization: each group of neighbours in a row on a grid of 2**bits levels of its
    own, from its smallest weight to its largest.

    weight (N, C) -> levels (N, C) uint8, the quantized values; scale and low (N, C/group each);
    weight is nearly low + scale * level. ValueError where the rows do not divide into groups.
    """
    if weight.shape[1] % group:
        raise ValueError(f"rows of {weight.shape[1]} weights do not divide into groups of {group}")
    groups = weight.float().unflatten(1, (-1, group))  # (N, C/group, group)
    low, high = groups.amin(2), groups.amax(2)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-8)  # a group of equal weights has no step
    levels = ((groups - low.unsqueeze(2)) / scale.unsqueeze(2)).round()
    return levels.flatten(1).to(torch.uint8), scale, low


def from_levels(levels: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Dequantized weights: levels (N, C), scale and low (N, C/group) -> (N, C)"""
    groups = levels.unflatten(1, (scale.shape[1], -1))
    return (low.unsqueeze(2) + scale.unsqueeze(2) * groups).flatten(1)


@cache
def bfloat16_is_native() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones; timed once, in
    milliseconds.
    """

    def seconds(dtype: torch.dtype) -> float:
        a, times = torch.ones(256, 256, dtype=dtype), []
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) < seconds(torch.float32)


def linear_bfloat16(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(T, C) and (N, C) -> (T, N), all bfloat16, accumulated in float32; the operands are
    float32 too where that is faster.
    """
    if bfloat16_is_native():
        return F.linear(rows, weight)
    return F.linear(rows.float(), weight.float()).bfloat16()


MEMORY_BOUND_ROWS = 16  # rows up to which reading the weights takes longer than the products do
AT_ONCE = 16  # weights that the 8-bit kernel reads at a time


def to_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of weights (n, C) -> levels -127..127 (n, C) int8 and a scale per row (n,) bfloat16"""
    scale = (rows.float().abs().amax(1).clamp(min=1e-8) / 127).bfloat16()
    # subtle: on the rounded scale's grid
    levels = (rows / scale.float().unsqueeze(1)).round().clamp(-127, 127)
    return levels.to(torch.int8), scale


class Int8Linear(nn.Module):
    """x (..., C) -> (..., N) with 8-bit weights: levels (N, C) int8 and one scale per row (N,).
    CPU only.
    """

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # in slices: there may be no room for a second copy of a large head
        parts = [to_int8(rows) for rows in weight.split(4096)]
        levels, scale = (torch.cat(each) for each in zip(*parts, strict=True))
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weights: (N, C) bfloat16"""
        return self.levels.bfloat16() * self.scale.unsqueeze(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features).bfloat16()
        # subtle: else it would read past a row's end
        if len(rows) <= MEMORY_BOUND_ROWS and self.in_features % AT_ONCE == 0:
            y = torch.ops.aten._weight_int8pack_mm(rows, self.levels, self.scale)
        else:
            y = linear_bfloat16(rows, self.weight)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def unpack(packed: torch.Tensor, tile: int) -> torch.Tensor:
    """Levels in the order of the kernel (N, C/2) -> levels in ours (N, C), for tiles of that many
    rows.
    """
    columns = packed.view(-1, 2 * packed.shape[1], tile // 2)  # (N / tile, C, tile / 2) bytes
    return torch.cat((columns & 15, columns >> 4), dim=2).transpose(1, 2).reshape(len(packed), -1)


def pack(levels: torch.Tensor) -> torch.Tensor:
    """Levels 0..15 (N, C) in the order of PyTorch's kernel: (N, C/2) uint8"""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1)


@cache
def tile_rows() -> int | None:
    """How many rows this processor's kernel keeps side by side; None if it is neither 64 nor 32."""
    known = torch.arange(128 * 32).view(128, 32) * 7 % 16
    return next(
        (
            tile
            for tile in (64, 32)
            if torch.equal(unpack(pack(known), tile), known.to(torch.uint8))
        ),
        None,
    )


class Int4Linear(nn.Module):
    """x (..., C) -> (..., N) with 4-bit weights in groups that have a scale and a zero point each.
    CPU only.

    levels (N, C) 0..15, scale and low (N, C/g) as `to_levels` makes them. The kernel has g = 32,
    64, 128 and 256.
    """

    def __init__(self, levels: torch.Tensor, scale: torch.Tensor, low: torch.Tensor):
        super().__init__()
        self.out_features, self.in_features = levels.shape
        self.group = self.in_features // scale.shape[1]
        extra = -self.out_features % 64  # rows of zeros up to a whole tile
        levels, scale, zero = (F.pad(t, (0, 0, 0, extra)) for t in (levels, scale, low + 8 * scale))
        self.register_buffer("packed", pack(levels))
        # (C/g, N, 2)
        self.register_buffer(
            "scales", torch.stack((scale.T, zero.T), dim=2).bfloat16().contiguous()
        )

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weights: (N, C) bfloat16"""
        if tile_rows() is None:
            return self.multiply(torch.eye(self.in_features, dtype=torch.bfloat16)).T
        # (N, C/g, 1) each; subtle: strided is slow
        scale, zero = self.scales.permute(2, 1, 0).contiguous().unsqueeze(3)
        levels = unpack(self.packed, tile_rows()).unflatten(1, (-1, self.group))
        return torch.addcmul(zero, scale, levels.bfloat16() - 8).flatten(1)[: self.out_features]

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """The kernel that reads 4 bits per weight: (T, C) -> (T, N), bfloat16"""
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.packed, self.group, self.scales.contiguous()
        )
        return y[:, : self.out_features]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features).bfloat16()
        few = len(rows) <= MEMORY_BOUND_ROWS and self.group in (32, 64, 128, 256)
        y = self.multiply(rows) if few else linear_bfloat16(rows, self.weight)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


class Int8Embedding(nn.Module):
    """ids (...) -> rows (..., C), dequantized from the head that is tied to it."""

    def __init__(self, head: Int8Linear, dtype: torch.dtype):
        super().__init__()
        self.levels, self.scale, self.dtype = head.levels, head.scale, dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return (self.levels[ids].float() * self.scale[ids].float().unsqueeze(-1)).to(self.dtype)


def model_bytes(model: nn.Module) -> int:
    """Bytes of all weights, whatever their form; what two layers share counts once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def quantized(weight: torch.Tensor, bits: int, group: int = 32) -> nn.Module:
    """A layer of 4 or 8 bits instead of a linear one: weight (N, C)"""
    return Int8Linear(weight) if bits == 8 else Int4Linear(*to_levels(weight, bits, group))


def quantize(model: Llama, bits: int = 4, group: int = 32) -> Llama:
    """Replace the model's linear layers, in place, one at a time; the head gets 8 bits. ValueError
    off the CPU.
    """
    if bits not in (4, 8) or model.norm.weight.device.type != "cpu":
        raise ValueError(
            f"4 or 8 bits are supported, on the CPU, not {bits} on {model.norm.weight.device.type}"
        )
    for block in model.blocks:
        for part in (block.attention, block.feed_forward):
            for name, layer in list(part.named_children()):
                setattr(part, name, quantized(layer.weight.detach(), bits, group))
    return quantize_head(model)


def quantize_head(model: Llama) -> Llama:
    """The head in 8 bits, and the embedding too if it is the same matrix."""
    if not isinstance(model.head, Int8Linear):
        model.head = Int8Linear(model.head.weight.detach())
    if model.cfg.tied_embeddings:
        model.embedding = Int8Embedding(model.head, model.norm.weight.dtype)
    return model


def repack(stored: torch.Tensor, kind: str, shape: tuple[int, int]) -> Int4Linear:
    """A layer from the bytes of a Q4_0 or Q4_1 matrix, level by level: only the scales and zero
    points are rounded again.
    """
    blocks = stored.view(shape[0], shape[1] // 32, -1)  # (N, C/32, 18 or 20)
    scale, low = (
        blocks[..., i : i + 2].contiguous().view(torch.float16).squeeze(-1).float() for i in (0, 2)
    )
    if kind == "Q4_0":
        low = -8 * scale
    halves = blocks[..., -16:]
    return Int4Linear(torch.cat((halves & 15, halves >> 4), dim=2).flatten(1), scale, low)


def convert(name: str, tensor, bits: int) -> nn.Module | None:
    """A quantized layer for the weight of that name, a StoredTensor of chapter 7; None for the
    embedding and the norms. For `assemble`, so that no more than one matrix is ever in memory in
    full.
    """
    if name == "head":
        return Int8Linear(tensor.read())
    if name == "embedding" or len(tensor.shape) == 1:
        return None
    if bits == 4 and tensor.kind in ("Q4_0", "Q4_1"):
        return repack(tensor.raw(), tensor.kind, tensor.shape)
    return quantized(tensor.read(), bits)

"""7c. GGUF: four bits per weight, and everything in one file.

Written by notebooks/07c_gguf.ipynb: edit it there.
"""

import torch


def inverse(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale, and 0 for a scale of 0: a block of zeros."""
    return torch.where(scale == 0, 0.0, 1 / scale)


def float16_bytes(scale: torch.Tensor) -> torch.Tensor:
    """(N, 1) float32 -> (N, 2) bytes"""
    return scale.half().contiguous().view(torch.uint8)


def nibbles(levels: torch.Tensor) -> torch.Tensor:
    """(N, 32) levels, 0..15 -> (N, 16) bytes: the first half of a block in the low halves."""
    levels = levels.clamp(0, 15).to(torch.uint8)
    return levels[:, :16] | levels[:, 16:] << 4


def quantize_q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """(N, 32) float32 -> (N, 34) bytes"""
    scale = blocks.abs().amax(1, keepdim=True) / 127
    levels = blocks * inverse(scale)
    whole = levels.abs().floor()  # a half goes away from zero, as in C
    whole += (2 * (levels.abs() - whole)).floor()
    levels = (levels.sign() * whole).to(torch.int8)
    return torch.cat((float16_bytes(scale), levels.view(torch.uint8)), dim=1)


def quantize_q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """(N, 32) float32 -> (N, 18) bytes; the weight of largest size becomes level 0, which is -8
    times the scale.
    """
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / -8
    levels = (blocks * inverse(scale) + 8.5).trunc()
    return torch.cat((float16_bytes(scale), nibbles(levels)), dim=1)


def quantize_q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """(N, 32) float32 -> (N, 20) bytes"""
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scale = (high - low) / 15
    levels = ((blocks - low) * inverse(scale) + 0.5).trunc()
    return torch.cat((float16_bytes(scale), float16_bytes(low), nibbles(levels)), dim=1)


def best_scales(blocks: torch.Tensor) -> torch.Tensor:
    """(N, 16, 16) -> scales (N, 16) for levels -32..31: of 19 grids the one with the least error,
    large weights counting more.
    """
    weight = blocks**2
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))  # (N, 16, 1)
    best, gain = torch.zeros_like(largest), torch.full_like(largest, -1.0)
    for grid in range(-9, 10):
        levels = (blocks * (-(32 + grid / 10) * inverse(largest))).round().clamp(-32, 31)
        along = (weight * blocks * levels).sum(2, keepdim=True)
        size = (weight * levels**2).sum(2, keepdim=True)
        scale = along * inverse(size)  # of least squares, for these levels
        better = scale * along > gain
        best, gain = torch.where(better, scale, best), torch.where(better, scale * along, gain)
    return best.squeeze(2)


def quantize_q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """(N, 256) float32 -> (N, 210) bytes"""
    blocks = blocks.view(-1, 16, 16)
    scales = best_scales(blocks)  # (N, 16)
    largest = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    d = (largest / -128).half()
    scales = (scales * inverse(d.float())).round().clamp(-128, 127)
    levels = (blocks * inverse(d.float() * scales)[:, :, None]).round().clamp(-32, 31) + 32
    levels = levels.flatten(1).to(torch.uint8)
    low = (levels & 15).view(-1, 2, 2, 64)  # runs of 64 bytes with 4 bits of two levels
    high = (levels >> 4).view(-1, 2, 4, 32)  # runs of 32 bytes with 2 bits of four
    low = low[:, :, 0] | low[:, :, 1] << 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = low.flatten(1), high.flatten(1), scales.to(torch.int8).view(torch.uint8)
    return torch.cat((*parts, d.contiguous().view(torch.uint8)), dim=1)


QUANTIZERS = {  # (N, elements of a block) float32 -> (N, bytes of a block)
    "F32": lambda elements: elements.contiguous().view(torch.uint8),
    "F16": lambda elements: elements.half().contiguous().view(torch.uint8),
    "BF16": lambda elements: elements.bfloat16().contiguous().view(torch.uint8),
    "Q8_0": quantize_q8_0,
    "Q4_0": quantize_q4_0,
    "Q4_1": quantize_q4_1,
    "Q6_K": quantize_q6_k,
}

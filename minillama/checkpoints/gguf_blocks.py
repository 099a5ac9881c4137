"""7c. GGUF: four bits per weight, and everything in one file.

Written by notebooks/07c_gguf.ipynb: edit it there.
"""

import torch

from minillama.checkpoints.tensors import KINDS


def f16(block_bytes: torch.Tensor) -> torch.Tensor:
    """(N, 2) bytes -> (N, 1) float32"""
    return block_bytes.contiguous().view(torch.float16).float()


def unpack(data: torch.Tensor, bits: int, run: int) -> torch.Tensor:
    """(N, B) bytes -> (N, 8 B / bits) quantized values; in each run of bytes the lowest
    bits of all, then the next of all, ...
    """
    runs = data.reshape(len(data), -1, run)
    parts = [runs >> shift & 2**bits - 1 for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=2).flatten(1)


GGML_TYPES = (
    KINDS
    | {  # blocks of 32 weights with a scale of their own
        "Q4_0": (
            32,
            18,
            lambda block: f16(block[:, :2]) * (unpack(block[:, 2:], 4, 16).view(torch.int8) - 8),
        ),
        "Q4_1": (
            32,
            20,
            lambda block: f16(block[:, :2]) * unpack(block[:, 4:], 4, 16) + f16(block[:, 2:4]),
        ),
        "Q8_0": (32, 34, lambda block: f16(block[:, :2]) * block[:, 2:].view(torch.int8)),
    }
)


def six_bits(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 12) bytes -> scales (N, 8) and minima (N, 8) of a super-block's blocks, 0..63"""
    # the last four of each are cut: 4 bits shared, 2 above
    scales, minima, shared = data.reshape(-1, 3, 4).unbind(1)
    return (
        torch.cat((scales & 63, shared & 15 | scales >> 6 << 4), dim=1),
        torch.cat((minima & 63, shared >> 4 | minima >> 6 << 4), dim=1),
    )


def q4_k_or_q5_k(block: torch.Tensor) -> torch.Tensor:
    """Super-blocks of 8 blocks with 6-bit scales and minima: (N, 144) or, with a fifth bit, (N,
    176) -> (N, 256)
    """
    (scales, minima), levels = six_bits(block[:, 4:16]), unpack(block[:, -128:], 4, 32)
    if block.shape[1] == 176:
        levels |= unpack(block[:, 16:48], 1, 32) << 4
    scales, minima = f16(block[:, :2]) * scales, f16(block[:, 2:4]) * minima
    return (scales[:, :, None] * levels.view(-1, 8, 32) - minima[:, :, None]).flatten(1)


def q6_k(block: torch.Tensor) -> torch.Tensor:
    """Super-blocks of 16 blocks with 8-bit scales, no minima: (N, 210) -> (N, 256)"""
    levels = unpack(block[:, :128], 4, 64) | unpack(block[:, 128:192], 2, 32) << 4
    scales = f16(block[:, 208:]) * block[:, 192:208].view(torch.int8)
    return (scales[:, :, None] * (levels.view(torch.int8) - 32).view(-1, 16, 16)).flatten(1)


GGML_TYPES |= {
    "Q4_K": (256, 144, q4_k_or_q5_k),
    "Q5_K": (256, 176, q4_k_or_q5_k),
    "Q6_K": (256, 210, q6_k),
}


IQ4_NL = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
GGML_TYPES |= {  # what llama-quantize falls back to
    "Q5_0": (
        32,
        22,
        lambda block: f16(block[:, :2]) * (five_bits(block[:, 2:]).view(torch.int8) - 16),
    ),
    "Q5_1": (
        32,
        24,
        lambda block: f16(block[:, :2]) * five_bits(block[:, 4:]) + f16(block[:, 2:4]),
    ),
    "IQ4_NL": (32, 18, lambda block: f16(block[:, :2]) * IQ4_NL[unpack(block[:, 2:], 4, 16).int()]),
}


def five_bits(data: torch.Tensor) -> torch.Tensor:
    """(N, 20) bytes, highest bits and then nibbles -> (N, 32) levels, 0..31"""
    return unpack(data[:, 4:], 4, 16) | unpack(data[:, :4], 1, 1) << 4

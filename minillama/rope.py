"""RoPE: position as rotation, from 8,192 tokens to 131,072.

Written by notebooks/03_rope.ipynb: edit it there.
"""

import math

import torch

from minillama.config import LlamaConfig, RopeScaling


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> torch.Tensor:
    """Radians per position of each pair of a head, fastest first: (W/2,) float32."""
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    freqs = 1.0 / theta**exponents
    return freqs if scaling is None else scale_frequencies(freqs, scaling)


def rope_table(cfg: LlamaConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every angle: positions (..., T) -> two float32 tensors (..., T, W/2)."""
    freqs = rope_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling).to(positions.device)
    angles = positions.float().unsqueeze(-1) * freqs
    return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (x0, x1), (x2, x3), ... of every head by their angles.

    x (B, heads, T, W), cos and sin (T, W/2) -> (B, heads, T, W), same dtype; computed in float32.
    Su et al. 2021, arXiv:2104.09864; the pairs are neighbours, as in Meta's weights.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def scale_frequencies(freqs: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Llama 3.1's long-context scaling: (W/2,) -> (W/2,).

    Wavelengths that fit into the original context often enough stay, those that do not fit are
    stretched by `factor`, those between are blended. Source: apply_scaling in Meta's llama-models.
    """
    turns = scaling.original_max_seq_len * freqs / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0, 1)
    return keep * freqs + (1 - keep) * freqs / scaling.factor

"""Feed-forward: SwiGLU, a gate on every feature.

Written by notebooks/05_feedforward.ipynb: edit it there.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minillama.config import LlamaConfig


class FeedForward(nn.Module):
    """SwiGLU: x (B, T, D) -> two of (B, T, F), one gates the other -> (B, T, D). Shazeer 2020,
    arXiv:2002.05202.
    """

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        self.gate = nn.Linear(cfg.dim, cfg.ffn_dim, bias=False)
        self.up = nn.Linear(cfg.dim, cfg.ffn_dim, bias=False)
        self.down = nn.Linear(cfg.ffn_dim, cfg.dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

"""RMSNorm: vectors of one length.

Written by notebooks/02_rmsnorm.ipynb: edit it there.
"""

import torch
from torch import nn


class RMSNorm(nn.Module):
    """Divide each vector by its root mean square, then scale each entry by a learned weight.

    x (..., D) -> (..., D), in x's dtype if the weight has it too; computed in float32.
    Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x32 = x.float()
        mean_square = x32.pow(2).mean(-1, keepdim=True)
        return (x32 * torch.rsqrt(mean_square + self.eps)).to(x.dtype) * self.weight

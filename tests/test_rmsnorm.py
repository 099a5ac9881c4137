"""RMSNorm against toy numbers, numpy in float64 and torch's own."""

import numpy as np
import pytest
import torch

from minillama import RMSNorm


def test_toy_numbers():
    """Mean square of (3, 4) is 12.5; eps 12.5 inside the root makes the divisor exactly 5."""
    norm = RMSNorm(2, eps=12.5)
    assert norm(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([0.6, 0.8], abs=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
def test_as_numpy_and_torch(scale, eps):
    torch.manual_seed(0)
    norm, x = RMSNorm(48, eps), scale * torch.randn(3, 5, 48)
    torch.nn.init.normal_(norm.weight, 1, 0.3)
    x64 = x.double().numpy()
    exact = (
        x64
        / np.sqrt((x64**2).mean(-1, keepdims=True) + eps)
        * norm.weight.detach().double().numpy()
    )
    np.testing.assert_allclose(norm(x).detach().numpy(), exact, atol=2e-6, rtol=0)
    theirs = torch.nn.functional.rms_norm(x, (48,), norm.weight, eps)
    torch.testing.assert_close(norm(x), theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    """Squares of 300 overflow float16; the result is the float32 one, rounded once, then times the
    weight.
    """
    norm = RMSNorm(64)
    torch.nn.init.normal_(norm.weight, 1, 0.3, generator=torch.Generator().manual_seed(0))
    norm = norm.to(dtype)
    x = (300 * torch.randn(4, 64, generator=torch.Generator().manual_seed(1))).to(dtype)
    exact = torch.nn.functional.rms_norm(x.double(), (64,), eps=1e-5).to(dtype)
    assert norm(x).dtype == dtype
    assert torch.equal(norm(x), exact * norm.weight)


def test_zeros_stay_zeros():
    assert torch.equal(RMSNorm(8)(torch.zeros(2, 8)), torch.zeros(2, 8))

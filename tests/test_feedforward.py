"""SwiGLU against a number worked out by hand and numpy in float64."""

import math

import numpy as np
import pytest
import torch

from minillama import FeedForward, LlamaConfig


def feed_forward(dim, ffn_dim):
    return FeedForward(LlamaConfig(dim, 1, 1, 1, 2, ffn_dim, 8))


def test_toy_numbers():
    """x = 2: gate 3x = 6, up -x = -2, down 0.5: 0.5 * 6 / (1 + e^-6) * -2."""
    ffn = feed_forward(1, 1)
    for layer, value in ((ffn.gate, 3.0), (ffn.up, -1.0), (ffn.down, 0.5)):
        torch.nn.init.constant_(layer.weight, value)
    assert ffn(torch.tensor([2.0])).item() == pytest.approx(-6 / (1 + math.exp(-6)), abs=1e-6)


@torch.inference_mode()
def test_as_numpy():
    torch.manual_seed(0)
    ffn, x = feed_forward(24, 56), torch.randn(2, 3, 24)
    gate, up, down = (layer.weight.double().numpy() for layer in (ffn.gate, ffn.up, ffn.down))
    x64 = x.double().numpy()
    gated = x64 @ gate.T
    exact = (gated / (1 + np.exp(-gated)) * (x64 @ up.T)) @ down.T
    np.testing.assert_allclose(ffn(x).numpy(), exact, atol=1e-6, rtol=0)


def test_no_biases():
    assert sorted(name for name, _ in feed_forward(4, 8).named_parameters()) == [
        "down.weight", "gate.weight", "up.weight",
    ]  # fmt: skip

"""RoPE against Meta's frequencies and tables, complex numbers in float64, and the property it is
made for.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama import LlamaConfig, RopeScaling
from minillama.rope import apply_rope, rope_frequencies, rope_table


LLAMA = LlamaConfig.named("llama-3.1-8b")


def test_frequencies_as_meta(golden):
    """Rounding apart: three steps of float32."""
    for scaling, name in ((None, "freqs"), (RopeScaling(), "scaled")):
        np.testing.assert_allclose(
            rope_frequencies(128, 500_000.0, scaling), golden[name], rtol=3e-7, atol=0
        )


def test_table_as_meta_up_to_131071(golden):
    """An angle of 131,071 radians is only known to 0.004 in float32, so both must compute it
    alike.
    """
    cos, sin = rope_table(LLAMA, torch.from_numpy(golden["positions"]))
    np.testing.assert_allclose(cos, golden["cos"], atol=3e-5, rtol=0)
    np.testing.assert_allclose(sin, golden["sin"], atol=3e-5, rtol=0)


def test_which_pairs_change():
    plain, scaled = (
        rope_frequencies(128, 500_000.0),
        rope_frequencies(128, 500_000.0, RopeScaling()),
    )
    ratio = (plain / scaled).numpy()
    assert ratio[:29].tolist() == [1] * 29
    assert ((1 < ratio[29:35]) & (ratio[29:35] < 8)).all()
    assert ratio[35:].tolist() == [8] * 29


@pytest.mark.parametrize("factor", [2.0, 8.0, 32.0])
@pytest.mark.parametrize("head_dim", [2, 20, 80, 128])
def test_scaling_as_published_formula(factor, head_dim):
    """The three cases of Meta's apply_scaling by wavelength, in float64."""
    exact = []
    for pair in range(head_dim // 2):
        f = 500_000.0 ** (-2 * pair / head_dim)
        wavelength, smooth = 2 * np.pi / f, (8192 * f / (2 * np.pi) - 1) / 3
        blended = (1 - smooth) * f / factor + smooth * f
        exact.append(f if wavelength < 2048 else f / factor if wavelength > 8192 else blended)
    scaled = rope_frequencies(head_dim, 500_000.0, RopeScaling(factor))
    # the blend subtracts near 8192: a few roundings
    np.testing.assert_allclose(scaled, exact, rtol=3e-6, atol=0)


def test_toy_rotation():
    """A quarter turn of (1, 0) and (0, 1); neighbours make the pairs."""
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    quarter = apply_rope(x, torch.zeros(1, 2), torch.ones(1, 2))
    assert quarter.flatten().tolist() == [0, 1, -1, 0]


@pytest.mark.parametrize("head_dim", [16, 20, 80])
def test_as_complex_multiplication(head_dim):
    x = torch.randn(2, 3, 7, head_dim, generator=torch.Generator().manual_seed(0))
    angles = torch.linspace(-9, 9, 7 * head_dim // 2).view(7, head_dim // 2)
    pairs = x.double().numpy().view(np.complex128)
    exact = (pairs * np.exp(1j * angles.double().numpy())).view(np.float64)
    np.testing.assert_allclose(apply_rope(x, angles.cos(), angles.sin()), exact, atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 8000), st.integers(0, 8000), st.integers(0, 8000))
def test_scores_depend_on_distance_only(query_at, key_at, shift):
    q, k = torch.randn(2, 1, 1, 1, 128, generator=torch.Generator().manual_seed(0))

    def score(*positions):
        q_turned, k_turned = (
            apply_rope(x, *rope_table(LLAMA, torch.tensor([at])))
            for x, at in zip((q, k), positions, strict=True)
        )
        return (q_turned * k_turned).sum().item()

    assert score(query_at, key_at) == pytest.approx(
        score(query_at + shift, key_at + shift), abs=2e-2
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rotated_in_float32(dtype):
    x = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    cos, sin = rope_table(LlamaConfig.named("debug"), torch.arange(5))
    turned = apply_rope(x, cos, sin)
    assert turned.dtype == dtype
    assert torch.equal(turned, apply_rope(x.float(), cos, sin).to(dtype))

"""Quantized layers against float64 products of the numbers that are stored, and against the gguf
package.
"""

import copy

import gguf
import numpy as np
import pytest
import torch
from helpers import random_ids, tiny_pair
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama
from minillama.inference import loading, quantization
from minillama.inference.quantization import (
    Int4Linear,
    Int8Linear,
    from_levels,
    model_bytes,
    quantize,
    repack,
    to_levels,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.sampled_from([8, 32, 96]), st.integers(0, 999), st.floats(-3, 3))
def test_at_most_half_a_step(bits, group, seed, shift):
    weight = normal(5, 96, seed=seed) + shift
    levels, step, low = to_levels(weight, bits, group)
    assert levels.max().item() < 2**bits and step.shape == low.shape == (5, 96 // group)
    error = (from_levels(levels, step, low) - weight).abs().unflatten(1, (-1, group))
    assert (error <= step.unsqueeze(2) / 2 + 1e-5).all()


def test_groups_of_equal_numbers():
    weight = torch.full((2, 64), 0.25)
    torch.testing.assert_close(from_levels(*to_levels(weight, 4, 32)), weight, atol=1e-6, rtol=0)


def test_rows_that_do_not_divide():
    with pytest.raises(ValueError, match="100 weights do not divide into groups of 32"):
        to_levels(torch.zeros(2, 100), 4, 32)


def stored_4(levels, step, low):
    """What an Int4Linear stands for, in float64, its scales rounded as they are stored."""
    zero = (low + 8 * step).bfloat16().double()
    groups = levels.double().unflatten(1, (step.shape[1], -1)) - 8
    return (zero.unsqueeze(2) + step.bfloat16().double().unsqueeze(2) * groups).flatten(1)


@pytest.mark.parametrize("rows", [64, 100, 7], ids="{} rows".format)
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bits_few_and_many(rows, group, dtype):
    """Few vectors go through the packed kernel, many, and groups of 16, through the written-out
    matrix; any rows.
    """
    parts = to_levels(normal(rows, 256), 4, group)
    layer, exact_weight = Int4Linear(*parts), stored_4(*parts)
    for count in (1, quantization.MEMORY_BOUND_ROWS, quantization.MEMORY_BOUND_ROWS + 1, 40):
        x = normal(2, count, 256, seed=count)[:1].to(dtype)
        y, exact = layer(x), x.bfloat16().double() @ exact_weight.T
        assert y.dtype == dtype and y.shape == (1, count, rows)
        kernel = count <= quantization.MEMORY_BOUND_ROWS and group > 16
        assert (y - exact).abs().max() <= exact.abs().max() * (2**-8 if kernel else 2**-6)


@pytest.mark.parametrize("known", [False, True])
def test_the_weight_with_and_without_knowing_the_order(monkeypatch, known):
    """An unknown processor multiplies by the identity; both give the stored numbers."""
    tile = quantization.tile_rows() if known else None
    parts = to_levels(normal(70, 96), 4, 32)
    monkeypatch.setattr(quantization, "tile_rows", lambda: tile)
    weight, exact = Int4Linear(*parts).weight, stored_4(*parts)
    assert weight.shape == (70, 96) and (weight - exact).abs().max() <= exact.abs().max() * 2**-8


@pytest.mark.parametrize("count", [1, quantization.MEMORY_BOUND_ROWS, 40])
def test_eight_bits(count):
    weight = normal(50, 96)
    layer, x = Int8Linear(weight), normal(count, 96, seed=1)
    assert (
        layer.weight.float() - weight
    ).abs().max() <= 0.51 * layer.scale.float().max() + 2**-8 * weight.abs().max()
    exact = x.bfloat16().double() @ (layer.levels.double() * layer.scale.double().unsqueeze(1)).T
    assert (layer(x) - exact).abs().max() <= exact.abs().max() * (
        2**-8 if count <= quantization.MEMORY_BOUND_ROWS else 2**-6
    )


@pytest.mark.parametrize("width", [1, 8, 24, 40, 100])
def test_eight_bits_of_any_width(width):
    """The kernel reads 16 weights at a time and past a row's end: other widths must not reach it,
    it may crash.
    """
    layer = Int8Linear(normal(7, width))
    for count in (1, 2, quantization.MEMORY_BOUND_ROWS, 40):
        x = normal(count, width, seed=count)
        exact = (
            x.bfloat16().double() @ (layer.levels.double() * layer.scale.double().unsqueeze(1)).T
        )
        assert (layer(x) - exact).abs().max() <= exact.abs().max() * 2**-6


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_repacked_as_gguf_dequantizes(kind):
    """Levels are carried over; only the scales are rounded, to bfloat16: 2**-9 of a step, times up
    to 15 steps.
    """
    array = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    type_ = gguf.GGMLQuantizationType[kind]
    data = gguf.quantize(array, type_)
    layer = repack(torch.from_numpy(data.copy()).flatten(), kind, (96, 64))
    theirs = torch.from_numpy(gguf.dequantize(data, type_))
    assert (layer.weight.float() - theirs).abs().max() <= theirs.abs().max() * 2**-6
    levels = quantization.unpack(layer.packed, quantization.tile_rows())[:96]
    blocks = torch.from_numpy(data.copy()).view(96, 2, -1)[..., -16:]
    assert torch.equal(levels.view(96, 2, 32), torch.cat((blocks & 15, blocks >> 4), dim=2))


@torch.inference_mode()
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("name, bits", loading.QUANTIZE.items())
def test_straight_from_the_file_as_afterwards(tmp_path, tie, name, bits):
    """Loading quantized equals loading and quantizing; a random model's logits stay roughly what
    they were.
    """
    _, model = tiny_pair(tmp_path, tie_word_embeddings=tie)
    straight, _ = minillama.load(tmp_path, quantize=name)
    tokens = random_ids(12)
    exact, afterwards = model(tokens), quantize(copy.deepcopy(model), bits)
    assert torch.equal(straight(tokens), afterwards(tokens))
    assert (straight(tokens) - exact).std() < (0.06 if bits == 8 else 0.4) * exact.std()
    assert model_bytes(straight) < model_bytes(model) * (0.4 if bits == 8 else 0.36)
    embedded = straight.embedding(tokens)
    assert (
        embedded.dtype == torch.float32 and (embedded - model.embedding(tokens)).abs().max() < 0.01
    )


def test_generation_runs_quantized(tmp_path):
    tiny_pair(tmp_path)
    model, _ = minillama.load(tmp_path, quantize="int4", dtype=torch.bfloat16)
    assert len(list(minillama.generate(model, [1, 2, 3], max_new_tokens=5))) == 5


@pytest.mark.parametrize(
    "arguments", [{"quantize": "int3"}, {"quantize": "int4", "device": "meta"}, {"quantize": 4}]
)
def test_what_there_is_not(tmp_path, arguments):
    with pytest.raises(ValueError, match="quantize must be None or, on the CPU, one of int8, int4"):
        minillama.load(tmp_path, **arguments)


@pytest.mark.weights
@torch.inference_mode()
def test_the_real_model_barely_changes(ours, smollm2_path, golden):
    """Four bits straight from the file's own blocks: what is lost is the head's rounding and
    bfloat16 arithmetic.
    """
    model, _ = minillama.load(smollm2_path, quantize="int4")
    ids = torch.from_numpy(golden["ids"]).long()[None, :128]
    exact, quantized = (m(ids)[0].log_softmax(-1) for m in (ours[0], model))
    divergence = (exact.exp() * (exact - quantized)).sum(-1).mean().item()
    assert 0 < divergence < 0.005
    assert model_bytes(model) < smollm2_path.stat().st_size  # and less than the file

"""Compiled steps beside transformers, float64 and the model itself; what is kept on disk; no
compiler.
"""

import contextlib
import copy
import subprocess
import sys
from unittest import mock

import pytest
import torch
from helpers import random_ids, tiny_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import minillama
from minillama import KVCache, LlamaConfig
from minillama.inference import block_step, compilation
from minillama.inference.block_step import ConcatLinear, attend_one, join_layers
from minillama.inference.compilation import CompiledStep, CompileError
from minillama.inference.quantization import Int4Linear, Int8Linear, model_bytes, to_levels


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compiled_or_skip(model, *args, **kwargs) -> minillama.Llama:
    try:
        model.decode_step = CompiledStep(model, *args, **kwargs)
    except CompileError as error:
        pytest.skip(f"no compiler: {error}")
    return model


def uncompiled(model) -> minillama.Llama:
    """The same weights without a compiled step."""
    model = copy.copy(model)
    model.decode_step = None
    return model


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from([2, 16, 64]),
    st.floats(0, 30),
    st.integers(0, 99),
)
def test_attention_of_one_token_against_float64(K, G, S, W, scale, seed):
    q, k, v = (
        normal(K, G, W, seed=seed) * scale,
        normal(K, W, seed=seed + 1),
        normal(K, W, seed=seed + 2),
    )
    keys, values = normal(K, S, W, seed=seed + 3), normal(K, S, W, seed=seed + 4)
    for dtype, limit in ((torch.float32, 2e-5), (torch.bfloat16, 0.06)):
        past = keys.to(dtype), values.to(dtype)
        q_, k_, v_, keys_, values_ = (
            t.double() for t in (q.to(dtype) if dtype == torch.bfloat16 else q, k, v, *past)
        )
        # the past is looked at in its own type, the token itself in float32
        old = q_ @ keys_.transpose(1, 2) / W**0.5
        own = (q.double() * k_.unsqueeze(1)).sum(-1, keepdim=True) / W**0.5
        weights = torch.cat((old, own), -1).softmax(-1)
        want = weights @ torch.cat((values_, v_.unsqueeze(1)), 1)
        assert (attend_one(q, k, v, *past) - want).abs().max() < limit


def layers_of(kind: str, *sizes: int) -> list[nn.Module]:
    weights = [normal(n, 64, seed=n) for n in sizes]
    if kind == "int8":
        return [Int8Linear(w) for w in weights]
    if kind == "int4":
        return [Int4Linear(*to_levels(w, 4, 32)) for w in weights]
    plain = [nn.Linear(64, len(w), bias=False) for w in weights]
    for layer, w in zip(plain, weights, strict=True):
        layer.weight.data = w.clone()
    return plain


@pytest.mark.parametrize("kind", ["plain", "int8", "int4"])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_layers_side_by_side_give_the_same_from_the_same_bytes(kind, rows):
    layers, x = nn.ModuleList(layers_of(kind, 128, 64, 192)), normal(rows, 64)
    want, before = torch.cat([layer(x) for layer in layers], -1), model_bytes(layers)
    whole = join_layers(list(layers))
    assert type(whole) is type(layers[0]) and whole.out_features == 384
    torch.testing.assert_close(whole(x), want, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.cat([layer(x) for layer in layers], -1), want, atol=1e-5, rtol=0
    )
    storages = [
        t.untyped_storage()
        for t in block_step.named_weights(nn.ModuleList([*layers, whole])).values()
    ]
    assert (
        sum({each.data_ptr(): each.nbytes() for each in storages}.values())
        == model_bytes(layers)
        == before
    )


@pytest.mark.parametrize(
    "layers",
    [
        layers_of("int4", 64, 32, 64),
        [*layers_of("int4", 64), *layers_of("int8", 64)],
        [*layers_of("plain", 8), nn.Identity()][:1] * 2,
    ],
    ids=["filler between", "two kinds", "one layer twice"],
)
def test_layers_that_do_not_fit(layers):
    x = normal(2, 64)
    want = torch.cat([layer(x) for layer in layers], -1)
    torch.testing.assert_close(join_layers(layers)(x), want, atol=1e-5, rtol=0)


def test_layers_of_two_groups_stay_apart():
    weight = normal(64, 64)
    assert (
        type(join_layers([Int4Linear(*to_levels(weight, 4, g)) for g in (32, 64)])) is ConcatLinear
    )


@pytest.fixture(scope="module", params=["a block", "all blocks"])
def pair(request, tmp_path_factory):
    """(transformers' tiny model, ours compiled, the folder of packages)"""
    reference, model = tiny_pair(tmp_path_factory.mktemp("tiny"))
    folder = tmp_path_factory.mktemp("packages")
    return reference, compiled_or_skip(model, folder, whole=request.param == "all blocks"), folder


def read_by_token(model, ids: torch.Tensor, first: int, capacity: int) -> torch.Tensor:
    """Logits (T, V) of a text whose first tokens come as a prompt, the others one by one."""
    cache = KVCache(model.cfg, 1, capacity)
    with torch.inference_mode():
        return torch.cat(
            [model(piece, cache)[0] for piece in (ids[:, :first], *ids[:, first:].split(1, 1))]
        )


@pytest.mark.parametrize("first, capacity", [(1, 50), (2, 50), (17, 64), (49, 50), (5, 300)])
def test_every_logit_is_transformers(pair, first, capacity):
    reference, model, folder = pair
    ids = random_ids(50, seed=first)
    with torch.inference_mode():
        want = reference(ids).logits[0]
    assert (read_by_token(model, ids, first, capacity) - want).abs().max() < 1e-5
    assert len(list(folder.glob("*"))) == 1, "compiled for one length, good for all"


def test_the_compiled_code_is_what_runs(pair):
    _, model, _ = pair
    with mock.patch.object(model, "hidden", wraps=model.hidden) as plain:
        read_by_token(model, random_ids(20), 4, 20)
        assert plain.call_count == 1  # the prompt


def test_the_same_ids_drawn_and_in_batches(pair):
    _, model, _ = pair
    plain, ids = uncompiled(model), random_ids(12)[0].tolist()
    for settings_ in ({}, {"temperature": 1.0, "seed": 3}):
        one, other = (
            list(minillama.generate(each, ids, 30, **settings_)) for each in (model, plain)
        )
        assert one == other
    prompts = [ids, ids[:3], ids[:1]]
    assert minillama.generate_batch(model, prompts, 10) == minillama.generate_batch(
        plain, prompts, 10
    )


def test_a_full_cache_is_refused_and_stays_as_it_was(pair):
    _, model, _ = pair
    cache = KVCache(model.cfg, 1, 5)
    with torch.inference_mode():
        model(random_ids(5), cache)
        keys = cache.keys.clone()
        with pytest.raises(ValueError, match="5 \\+ 1 tokens do not fit a cache of 5"):
            model(random_ids(1), cache)
    assert cache.length == 5 and torch.equal(cache.keys, keys)


def test_a_row_left_of_a_batch(pair):
    """Its cache lies in memory otherwise than the compiled code expects."""
    _, model, _ = pair
    ids, cache = random_ids(12), KVCache(model.cfg, 3, 12)
    with torch.inference_mode():
        model(ids[:, :11].expand(3, -1), cache)
        cache.keep([1])
        torch.testing.assert_close(
            model(ids[:, 11:], cache)[0, 0], model(ids)[0, -1], atol=1e-5, rtol=0
        )


def test_what_is_compiled_is_not_compiled_again(pair, monkeypatch):
    reference, model, folder = pair
    monkeypatch.setattr(compilation, "build", lambda *_: pytest.fail("compiled again"))
    again = compiled_or_skip(copy.copy(model), folder, whole=model.decode_step.size > 1)
    ids = random_ids(9)
    with torch.inference_mode():
        assert (read_by_token(again, ids, 4, 9) - reference(ids).logits[0]).abs().max() < 1e-5


def test_another_form_has_another_name(pair):
    _, model, _ = pair
    steps = block_step.BlockSteps(model.cfg, [block_step.BlockStep(model.blocks[0])])
    name = compilation.package_name(steps, torch.float32)
    assert (
        name
        == compilation.package_name(steps, torch.float32)
        != compilation.package_name(steps, torch.bfloat16)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    other = compilation.package_name(steps, torch.float32)
    torch.set_num_threads(threads)
    assert other != name


def small() -> minillama.Llama:
    torch.manual_seed(0)
    return minillama.Llama(LlamaConfig(64, 2, 4, 2, 16, 128, 96)).eval()


def test_a_damaged_package_is_made_anew(tmp_path, monkeypatch):
    model, built = small(), []
    steps = block_step.BlockSteps(model.cfg, [block_step.BlockStep(model.blocks[0])])
    path = tmp_path / compilation.package_name(steps, torch.float32)
    path.write_bytes(b"half a package")
    monkeypatch.setattr(compilation, "build", lambda *args: built.append(args))
    with pytest.raises(CompileError, match="cannot be loaded"):
        CompiledStep(model, tmp_path)
    assert len(built) == 1


def test_without_a_compiler_it_says_so_and_goes_on(tmp_path, monkeypatch, no_compiler):
    reference, model = tiny_pair(tmp_path / "tiny")
    monkeypatch.setenv("MINILLAMA_CACHE", str(tmp_path))
    with pytest.warns(UserWarning, match="^falling back to uncompiled: .*[Cc]ompiler") as caught:
        model, _ = minillama.load(tmp_path / "tiny", compiled=True)
    assert len(caught) == 1 and "\n" not in str(caught[0].message) and model.decode_step is None
    ids = random_ids(20)
    with torch.inference_mode():
        assert (read_by_token(model, ids, 4, 20) - reference(ids).logits[0]).abs().max() < 1e-5
    assert not list((tmp_path / "compiled").glob("*"))


@pytest.mark.parametrize("level", ["min", 2, "True"])
def test_levels_that_there_are_not(level):
    with pytest.raises(ValueError, match="compiled must be one of"):
        minillama.load("smollm2-135m-instruct", compiled=level)


@contextlib.contextmanager
def two_threads():
    """Code that is compiled for several threads is other code; where two cores have other work, it
    waits a lot.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_real_weights_in_four_bits(smollm2_path, golden, meta_logits, tmp_path_factory):
    """Compiled, every distribution is as near to Meta's as chapter 12 found the uncompiled
    model's.
    """
    model, _ = minillama.load(smollm2_path, dtype=torch.bfloat16, quantize="int4")
    before = model_bytes(model)
    ids = torch.from_numpy(golden["ids"]).long()[None, :32]
    want, cache = (
        torch.from_numpy(meta_logits[20:32]).log_softmax(-1),
        KVCache(model.cfg, 1, 32, torch.bfloat16),
    )
    with torch.inference_mode():
        model(ids[:, :20], cache)
    with two_threads(), torch.inference_mode():
        model = compiled_or_skip(model, tmp_path_factory.mktemp("packages"))
        got = torch.cat([model(id, cache)[0] for id in ids[:, 20:].split(1, 1)]).log_softmax(-1)
    assert (want.exp() * (want - got)).sum(-1).mean() < 0.01
    assert model_bytes(model) == before


def test_the_command_line():
    command = [sys.executable, "-m", "minillama", "generate", "--help"]
    assert (
        "--compiled {block,max}"
        in subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    )

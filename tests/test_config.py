"""LlamaConfig: the published sizes, and what it refuses."""

import dataclasses
import itertools

import pytest
from helpers import table

from minillama import LlamaConfig, RopeScaling


GOOD = dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, vocab_size=128)


def ffn_width(dim, multiplier, multiple_of):
    """Meta's rule in params.json."""
    width = int(multiplier * int(2 * 4 * dim / 3))
    return -(-width // multiple_of) * multiple_of


@pytest.mark.parametrize(
    "name, dim, layers, heads, rule",
    [
        ("llama-3.1-8b", 4096, 32, 32, (1.3, 1024)),
        ("llama-3.1-70b", 8192, 80, 64, (1.3, 4096)),
        ("llama-3.1-405b", 16384, 126, 128, (1.2, 4096)),
    ],
)
def test_published_sizes(name, dim, layers, heads, rule):
    cfg = LlamaConfig.named(name)
    assert (cfg.dim, cfg.n_layers, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim) == (
        dim,
        layers,
        heads,
        8,
        128,
    )
    assert cfg.ffn_dim == ffn_width(dim, *rule)
    assert (cfg.vocab_size, cfg.norm_eps, cfg.rope_theta, cfg.max_seq_len) == (
        128_256,
        1e-5,
        500_000.0,
        131_072,
    )
    assert cfg.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192) and not cfg.tied_embeddings


def test_only_exact_names():
    with table() as row:
        for name in ("llama-3.1-8B", "8b", "", "llama-3.1", None):
            with row(name), pytest.raises(ValueError, match="llama-3.1-8b, llama-3.1-70b"):
                LlamaConfig.named(name)


SIZES = ["dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "vocab_size"]
SCALING = ["factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"]
NAN, INF = float("nan"), float("inf")


def test_sizes_are_positive_whole_numbers_and_settings_positive_ones():
    kinds = [
        (
            SIZES,
            lambda **changes: LlamaConfig(**GOOD | changes),
            [0, -1, True, 2.0, "8", None, NAN],
        ),
        (
            ["norm_eps", "rope_theta"],
            lambda **changes: LlamaConfig(**GOOD | changes),
            [0.0, -1.0, True, "1", NAN, INF],
        ),
        (SCALING, RopeScaling, [0, -1.0, True, "8", NAN, INF]),
    ]
    with table() as row:
        for fields, make, values in kinds:
            for field, value in itertools.product(fields, values):
                with row(field, repr(value)), pytest.raises(ValueError, match=field):
                    make(**{field: value})


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(n_kv_heads=3), "evenly"),
        (dict(head_dim=15), "even"),
        (dict(rope_scaling=8.0), "rope_scaling"),
    ],
)
def test_settings_that_do_not_fit_together(changes, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**GOOD | changes)


def test_scaling_bounds_are_in_order():
    with pytest.raises(ValueError, match="greater"):
        RopeScaling(low_freq_factor=4.0, high_freq_factor=4.0)


def test_unknown_keys_raise_and_nothing_can_be_changed():
    with pytest.raises(TypeError):
        LlamaConfig(**GOOD, n_experts=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        LlamaConfig(**GOOD).dim = 1

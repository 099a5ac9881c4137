"""The KV cache changes nothing but the time; what does not fit is refused before anything is written."""

import pytest
import torch
from helpers import random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama


CFG = minillama.LlamaConfig.named("debug")
LENGTH = 20


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return minillama.Llama(CFG).eval()


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(1, LENGTH - 1)))
def test_any_split_equals_one_shot(model, cuts):
    tokens = random_ids(2 * LENGTH, vocab_size=CFG.vocab_size).view(2, LENGTH)
    cache = minillama.KVCache(CFG, batch_size=2, max_seq_len=LENGTH)
    pieces = torch.tensor_split(tokens, sorted(cuts), dim=1)
    with torch.inference_mode():
        whole = model(tokens)
        split = torch.cat([model(piece, cache=cache) for piece in pieces], dim=1)
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=0)
    assert cache.length == LENGTH


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 6), (1, 999), (2, 1), (3, 5)])
def test_what_does_not_fit_leaves_the_cache_unchanged(model, shape):
    cache = minillama.KVCache(CFG, max_seq_len=10)
    model(random_ids(5), cache=cache)
    keys, values = cache.keys.clone(), cache.values.clone()
    with pytest.raises(ValueError, match="fit"):
        model(torch.zeros(shape, dtype=torch.int64), cache=cache)
    assert cache.length == 5 and torch.equal(cache.keys, keys) and torch.equal(cache.values, values)
    model(random_ids(5), cache=cache)  # and it can still be filled to the brim
    assert cache.length == 10


def test_bytes_per_token_as_published():
    """Llama 3.1 8B, bfloat16: 131,072 bytes a token."""
    cache = minillama.KVCache(minillama.LlamaConfig.named("llama-3.1-8b"), 1, 2, torch.bfloat16, "meta")
    assert cache.keys.nbytes + cache.values.nbytes == 2 * 131_072

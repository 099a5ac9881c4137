"""The KV cache changes nothing but the time; what does not fit is refused before anything is
written.
"""

import pytest
import torch
from helpers import random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama
from minillama import KVCache, LlamaConfig


CFG = LlamaConfig.named("debug")
LENGTH = 20
CLOSE = dict(atol=1e-5, rtol=0)  # float32; the logits reach about 1
cuts = st.sets(st.integers(1, LENGTH - 1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return minillama.Llama(CFG).eval()


def tokens_of(rows: int) -> torch.Tensor:
    return random_ids(rows * LENGTH, vocab_size=CFG.vocab_size).view(rows, LENGTH)


@torch.inference_mode()
def in_pieces(model, tokens, cuts=(), padding=None) -> torch.Tensor:
    """Logits (B, T, V) of tokens that go through a cache in pieces."""
    cache = KVCache(model.cfg, *tokens.shape, padding=padding)
    pieces = torch.tensor_split(tokens, sorted(cuts), dim=1)
    logits = torch.cat([model(piece, cache=cache) for piece in pieces], dim=1)
    assert cache.length == tokens.shape[1]
    return logits


@settings(max_examples=25, deadline=None)
@given(cuts)
def test_any_split_equals_one_shot(model, cuts):
    tokens = tokens_of(2)
    with torch.inference_mode():
        whole = model(tokens)
    torch.testing.assert_close(in_pieces(model, tokens, cuts), whole, **CLOSE)


@settings(max_examples=25, deadline=None)
@given(
    cuts,
    st.lists(st.integers(1, LENGTH), min_size=1, max_size=4),
    st.integers(0, CFG.vocab_size - 1),
)
def test_left_padded_rows_equal_the_rows_alone(model, cuts, lengths, filler):
    """Whatever the filler is, and wherever the pieces end, also inside it."""
    padding = [LENGTH - n for n in lengths]
    tokens = tokens_of(len(lengths))
    for row, n in zip(tokens, padding, strict=True):
        row[:n] = filler
    together = in_pieces(model, tokens, cuts, padding)
    assert together.isfinite().all()  # filler has no meaning, but it is no NaN either
    for logits, row, n in zip(together, tokens, padding, strict=True):
        with torch.inference_mode():
            alone = model(row[None, n:])[0]
        torch.testing.assert_close(logits[n:], alone, **CLOSE)


@settings(max_examples=15, deadline=None)
@given(cuts, st.permutations(range(4)))
def test_rows_in_another_order_give_the_same_in_that_order(model, cuts, order):
    tokens, padding = tokens_of(4), torch.tensor([0, 7, 3, 7])
    given = in_pieces(model, tokens, cuts, padding)
    torch.testing.assert_close(
        in_pieces(model, tokens[order], cuts, padding[order]), given[order], **CLOSE
    )


@settings(max_examples=25, deadline=None)
@given(
    cuts,
    st.integers(1, LENGTH - 1),
    st.integers(0, CFG.vocab_size - 1),
    st.sampled_from([None, [0, 5]]),
)
def test_a_future_token_changes_no_earlier_logit(model, cuts, position, token, padding):
    tokens = tokens_of(2)
    changed = tokens.clone()
    changed[:, position] = token
    before, after = (in_pieces(model, each, cuts, padding) for each in (tokens, changed))
    assert torch.equal(before[:, :position], after[:, :position])  # bit for bit


@pytest.mark.parametrize("padding", [[0], (0, 0), torch.zeros(3, dtype=torch.int64)])
def test_rows_of_one_length_need_no_padding(padding):
    assert KVCache(CFG, len(padding), padding=padding).padding is None


@torch.inference_mode()
@pytest.mark.parametrize("padding", [None, [2]])
@pytest.mark.parametrize("shape", [(1, 6), (1, 999), (2, 1), (3, 5)])
def test_what_does_not_fit_leaves_the_cache_unchanged(model, shape, padding):
    cache = KVCache(CFG, max_seq_len=10, padding=padding)
    model(random_ids(5), cache=cache)
    keys, values = cache.keys.clone(), cache.values.clone()
    with pytest.raises(ValueError, match="fit"):
        model(torch.zeros(shape, dtype=torch.int64), cache=cache)
    assert cache.length == 5 and torch.equal(cache.keys, keys) and torch.equal(cache.values, values)
    model(random_ids(5), cache=cache)  # and it can still be filled to the brim
    assert cache.length == 10


@torch.inference_mode()
@pytest.mark.parametrize("padding", [None, [0, 4]])
@pytest.mark.parametrize("length", [0, 1, 8, 12])
def test_a_truncated_cache_has_forgotten_what_came_after(model, length, padding):
    tokens = tokens_of(2)
    cache = KVCache(CFG, 2, LENGTH, padding=padding)
    model(tokens.flip(1)[:, :12], cache=cache)
    cache.truncate(0)
    # right, then wrong
    model(torch.cat([tokens[:, :length], tokens.flip(1)[:, : 12 - length]], dim=1), cache=cache)
    cache.truncate(length)
    rest = model(tokens[:, length:], cache=cache)
    torch.testing.assert_close(rest, in_pieces(model, tokens, padding=padding)[:, length:], **CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("padding", [None, [0, 4, 2, 9]])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1], [0, 3], [1, 2, 3]])
def test_the_rows_that_are_kept_go_on_as_if_alone(model, rows, padding):
    tokens = tokens_of(4)
    cache = KVCache(CFG, 4, LENGTH, padding=padding)
    model(tokens[:, :11], cache=cache)
    cache.keep(rows)
    rest = model(tokens[rows, 11:], cache=cache)
    torch.testing.assert_close(rest, in_pieces(model, tokens, padding=padding)[rows, 11:], **CLOSE)


NONSENSE = {
    "no rows": lambda: KVCache(CFG, batch_size=0),
    "no slots": lambda: KVCache(CFG, max_seq_len=0),
    "a negative size": lambda: KVCache(CFG, max_seq_len=-1),
    "more than there is memory": lambda: KVCache(CFG, max_seq_len=2**50),
    "more than can be counted": lambda: KVCache(CFG, max_seq_len=2**62),
    "padding for another batch": lambda: KVCache(CFG, 2, padding=[1]),
    "negative padding": lambda: KVCache(CFG, 2, padding=[0, -1]),
    "nothing but padding": lambda: KVCache(CFG, 2, 10, padding=[0, 10]),
    "half a token of padding": lambda: KVCache(CFG, 2, padding=[0, 1.5]),
    "padding of two dimensions": lambda: KVCache(CFG, 2, padding=[[0, 1]]),
    "truncated to more than it holds": lambda: KVCache(CFG).truncate(1),
    "truncated below nothing": lambda: KVCache(CFG).truncate(-1),
    "no row kept": lambda: KVCache(CFG, 3).keep([]),
    "a row that does not exist": lambda: KVCache(CFG, 3).keep([1, 3]),
    "a row twice": lambda: KVCache(CFG, 3).keep([1, 1]),
    "rows in another order": lambda: KVCache(CFG, 3).keep([1, 0]),
}


@pytest.mark.parametrize("what", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_in_one_line(what):
    with pytest.raises(ValueError) as caught:
        what()
    assert str(caught.value).strip() and "\n" not in str(caught.value)


@pytest.mark.parametrize("name, count", [("8b", 131_072), ("70b", 327_680), ("405b", 516_096)])
def test_bytes_per_token_as_published(name, count):
    """Llama 3.1 in bfloat16; with a kv head for each query head it would be 4, 8 and 16 times as
    much.
    """
    cfg = LlamaConfig.named(f"llama-3.1-{name}")
    cache = KVCache(cfg, 1, 2, torch.bfloat16, "meta")
    assert cache.keys.nbytes + cache.values.nbytes == 2 * count
    assert cfg.n_heads // cfg.n_kv_heads == {"8b": 4, "70b": 8, "405b": 16}[name]

"""Speculative decoding writes what greedy decoding writes, in fewer passes where the text repeats
itself.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama
from minillama import Statistics, generate, generation, speculate


def babbler(seed: int, vocab_size: int) -> minillama.Llama:
    """A random model with few words: it repeats itself, but not for ever; drafts hold fully,
    partly, not at all.
    """
    torch.manual_seed(seed)
    model = minillama.Llama(minillama.LlamaConfig(32, 1, 4, 2, 8, 48, vocab_size)).eval()
    for matrix in (each for each in model.parameters() if each.ndim == 2):
        torch.nn.init.normal_(matrix, std=0.3)
    return model


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 50),
    st.integers(2, 12),
    st.lists(st.integers(0, 1), min_size=1, max_size=30),
    st.integers(0, 40),
)
def test_speculation_gives_the_greedy_ids(seed, vocab_size, ids, count):
    model, stop = babbler(seed, vocab_size), [vocab_size - 1]
    assert list(speculate(model, ids, count)) == list(generate(model, ids, count))
    stopped = list(generate(model, ids, count, stop_ids=stop))
    assert list(speculate(model, ids, count, stop_ids=stop)) == stopped


def test_passes_give_one_id_to_nine_and_fewer_are_needed():
    gains = []
    for seed in range(30):
        model, ids, stats = babbler(seed, 3 + seed % 8), [0, 1, 2] * 3, Statistics()
        spoken = list(speculate(model, ids, 60, stats=stats))
        assert (
            spoken == list(generate(model, ids, 60))
            and 1 + sum(stats.gains) == 60
            and stats.prompt_tokens == 9
        )
        gains += stats.gains
    assert {1, 2, 3, 9} <= set(gains) <= set(range(1, 10)) and len(gains) < 30 * 60 / 2


def test_speculation_on_real_weights(ours):
    """A text to be copied, and a story; ids as plain greedy, and a third of the passes for the
    copy.
    """
    model, tokenizer = ours
    text = "The king went up the hill with forty thousand men. The king came down the hill, and never went up again."
    for question, gain in (
        (f"Repeat this text word for word:\n\n{text}", 3),
        ("Write a story about a lighthouse.", 1),
    ):
        prompt, stats = (
            minillama.chat.encode_dialog(tokenizer, [{"role": "user", "content": question}]),
            Statistics(),
        )
        ids = list(speculate(model, prompt, 40, tokenizer.stop_ids, stats))
        assert ids == list(generate(model, prompt, 40, stop_ids=tokenizer.stop_ids))
        assert sum(stats.gains) / len(stats.gains) >= gain


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9])
def test_a_prompt_in_pieces_gives_the_same(monkeypatch, length):
    model, ids = babbler(1, 3), [0, 1, 2, 0, 1, 2, 0, 1, 2][:length]
    whole = list(generate(model, ids, 30))
    # the least that holds a token and its draft
    monkeypatch.setattr(generation, "PREFILL_CHUNK", 9)
    assert list(speculate(model, ids, 30)) == whole


def test_the_context_can_be_filled_and_may_be_without_end():
    model = minillama.Llama(minillama.LlamaConfig(16, 1, 2, 1, 8, 24, 32, max_seq_len=12)).eval()
    assert len(list(speculate(model, [1, 2, 1, 2], 8))) == 8
    model.cfg = minillama.LlamaConfig(16, 1, 2, 1, 8, 24, 32, max_seq_len=2**60)
    assert len(list(speculate(model, [1, 2, 1, 2], 8))) == 8


@pytest.mark.parametrize(
    "ids, count", [([], 5), ([1], 12), ([32], 5), ([-1], 5), ([1.5], 5), ([1], -1), ([1], 1.5)]
)
def test_what_cannot_be_continued_is_refused_at_the_call(ids, count):
    model = minillama.Llama(minillama.LlamaConfig(16, 1, 2, 1, 8, 24, 32, max_seq_len=12))
    with pytest.raises(ValueError):
        speculate(model, ids, count)


def test_a_model_that_says_nothing_is_refused():
    model = babbler(0, 4)
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        next(speculate(model, [0, 1, 0, 1], 5))

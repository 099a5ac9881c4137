"""Sampling against transformers' own filters, generation against transformers' greedy, batches
against it.
"""

import itertools
import math

import pytest
import torch
from helpers import random_ids, table, tiny_pair
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import minillama
from minillama import generation, sample
from minillama.generation import Statistics, distribution, generate_batch


INF, NAN = math.inf, math.nan


def drawn(logits, count=4000, **settings) -> torch.Tensor:
    """How often each id comes, of `count` draws."""
    generator = torch.Generator().manual_seed(0)
    ids = sample(logits.expand(count, -1), generator=generator, **settings)
    return torch.bincount(ids, minlength=logits.shape[-1]) / count


def test_as_transformers_filters():
    with table() as row:
        for how in itertools.product(
            (0.3, 1.0, 2.0), (None, 1, 3, 1000), (None, 0.0, 0.4, 0.9, 1.0)
        ):
            with row(how):
                compare_filters(*how)


def compare_filters(temperature, top_k, top_p):
    """transformers counts top-p from the other end, but keeps the same set: cumsum - p <= top_p."""
    logits = 2 * torch.randn(1, 12, generator=torch.Generator().manual_seed(3))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    wanted = warpers(None, logits).softmax(-1)[0]
    torch.testing.assert_close(
        distribution(logits, temperature, top_k, top_p)[0], wanted, atol=1e-6, rtol=0
    )
    shares = drawn(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert (shares[wanted == 0] == 0).all()
    # four standard deviations of 4,000 draws
    torch.testing.assert_close(shares, wanted, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "top_p, kept",
    [
        (0.0, [0]),
        (0.49, [0]),
        (0.5, [0, 1]),
        (0.74, [0, 1]),
        (0.75, [0, 1, 2]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_a_token_while_what_comes_before_is_at_most_p(top_p, kept):
    """Probabilities 1/2, 1/4, 1/8, 1/8 are exact in float32, so the boundary is too."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log2() * math.log(2)
    assert drawn(logits, temperature=1.0, top_p=top_p).nonzero().flatten().tolist() == kept


@pytest.mark.parametrize(
    "settings", [dict(temperature=0), dict(temperature=1.0, top_k=1), dict(temperature=1e-6)]
)
def test_greedy(settings):
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample(logits, **settings), logits.argmax(-1))


def test_settings_without_meaning():
    """Here alone with every value; the layers above are asked only whether they hand on what is
    refused.
    """
    cases = [dict(temperature=t) for t in (-1.0, NAN, INF)]
    cases += [dict(temperature=1.0, top_p=p) for p in (-0.1, 1.1, NAN, INF)]
    cases += [dict(temperature=1.0, top_k=k) for k in (0, -3, 1.5, INF, NAN)]
    cases += [
        dict(temperature="warm"),
        dict(temperature=True),
        dict(top_k=True),
        dict(top_p=False),
        dict(top_p="all"),
    ]
    with table() as row:
        for settings in cases:
            with row(settings), pytest.raises(ValueError, match="must be"):
                sample(torch.zeros(1, 4), **settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "row", [[-INF] * 4, [NAN] * 4, [0.0, 1.0, NAN, 2.0], [0.0, INF, 1.0, 2.0]], ids=str
)
def test_rows_from_which_nothing_can_be_drawn(row, temperature):
    with pytest.raises(ValueError):
        sample(torch.tensor([[0.0, 1.0, 2.0, 3.0], row]), temperature=temperature)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 4), (3, 0)])
def test_logits_of_another_shape(shape):
    with pytest.raises(ValueError, match="shape"):
        sample(torch.zeros(shape))


@pytest.mark.parametrize(
    "settings", [dict(), dict(temperature=1.0, top_k=1), dict(temperature=1.0, top_p=0.0)]
)
def test_of_equal_logits_the_lower_id_is_the_greedy_one(settings):
    assert sample(torch.tensor([[0.0, 2.0, 2.0, 1.0]]), **settings).tolist() == [1]


def test_minus_infinity_is_never_drawn():
    assert drawn(torch.tensor([[0.0, -INF, 0.0, -INF]]), temperature=5.0)[[1, 3]].sum() == 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return tiny_pair(tmp_path_factory.mktemp("tiny"))


PROMPT = random_ids(7)[0].tolist()


def test_greedy_ids_as_transformers(pair):
    reference, model = pair
    theirs = reference.generate(
        torch.tensor([PROMPT]), max_new_tokens=30, do_sample=False, eos_token_id=None
    )
    assert list(minillama.generate(model, PROMPT, 30)) == theirs[0, len(PROMPT) :].tolist()


def test_a_seed_gives_the_same_ids(pair):
    first, second, other = (
        list(minillama.generate(pair[1], PROMPT, 30, temperature=1.0, seed=s)) for s in (1, 1, 2)
    )
    assert first == second != other


@pytest.mark.parametrize("how", [minillama.generate, minillama.speculate])
def test_ids_are_made_when_they_are_asked_for_and_the_mode_is_left_as_it_was(pair, how):
    ids, seen = how(pair[1], PROMPT, 30), []
    hook = pair[1].embedding.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[1])
    )
    for passes in ([7], [7, 1]):
        next(ids)
        assert seen == passes and not torch.is_inference_mode_enabled()
    hook.remove()


def test_stops_before_the_first_stop_id(pair):
    ids = list(minillama.generate(pair[1], PROMPT, 30))
    stop = ids[10]
    assert list(minillama.generate(pair[1], PROMPT, 30, stop_ids={stop})) == ids[: ids.index(stop)]


REFUSED = {
    "no prompt": dict(ids=[]),
    "longer than the context": dict(max_new_tokens=16_384),
    "negative temperature": dict(temperature=-1),
    "an id too large": dict(ids=[128]),
    "a negative id": dict(ids=[-1]),
    "half an id": dict(ids=[1.5]),
    "fewer than no tokens": dict(max_new_tokens=-1),
    "half a token": dict(max_new_tokens=1.5),
    "a negative seed": dict(seed=-1),
    "a seed in words": dict(seed="one"),
}


@pytest.mark.parametrize("how", [minillama.generate, generate_batch])
@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_generated_is_refused_at_the_call(pair, how, request_):
    settings = {"ids": PROMPT, "max_new_tokens": 5} | request_
    ids = settings.pop("ids")
    with pytest.raises(ValueError):
        how(pair[1], [PROMPT, ids] if how is generate_batch else ids, **settings)


def test_the_context_can_be_filled(tmp_path):
    _, model = tiny_pair(tmp_path, max_position_embeddings=12)
    assert len(list(minillama.generate(model, PROMPT, 5))) == 5
    assert list(map(len, generate_batch(model, [PROMPT, PROMPT[:2]], 5))) == [5, 5]


def test_a_context_without_end_costs_nothing():
    """A file may claim any length; only what was asked for is allocated, or refused in one line."""
    model = minillama.Llama(minillama.LlamaConfig(16, 1, 2, 1, 8, 24, 32, max_seq_len=2**60)).eval()
    assert len(list(minillama.generate(model, [1, 2, 3], 4))) == 4
    with pytest.raises(ValueError, match="no memory"):
        next(minillama.generate(model, [1, 2, 3], 2**52))


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9])
def test_a_prompt_in_pieces_gives_the_same(pair, monkeypatch, length):
    """Pieces of 4 tokens: no piece is ever longer, and every end of the last one is right."""
    prompts = [random_ids(length, seed=1)[0].tolist(), random_ids(9, seed=2)[0].tolist()]
    whole = [list(minillama.generate(pair[1], ids, 12)) for ids in prompts]
    seen = []
    hook = pair[1].embedding.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[1])
    )
    monkeypatch.setattr(generation, "PREFILL_CHUNK", 4)
    assert [list(minillama.generate(pair[1], ids, 12)) for ids in prompts] == whole
    hook.remove()
    assert max(seen) <= 4
    assert generate_batch(pair[1], prompts, 12) == whole


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=5)


@hypothesis_settings(max_examples=15, deadline=None)
@given(lengths, st.integers(0, 1000), st.booleans())
def test_a_batch_gives_what_each_prompt_gives_alone(pair, lengths, seed, greedy):
    """Row b with seed + b; a stop id that some rows meet early, some late and some never."""
    prompts = [random_ids(n, seed=seed + b)[0].tolist() for b, n in enumerate(lengths)]
    how = dict(temperature=0.0 if greedy else 1.5, top_k=100, top_p=0.95, stop_ids=range(8))
    alone = [
        list(minillama.generate(pair[1], ids, 15, **how, seed=seed + b))
        for b, ids in enumerate(prompts)
    ]
    assert generate_batch(pair[1], prompts, 15, **how, seed=seed) == alone


def test_a_batch_of_equal_prompts_draws_different_texts(pair):
    # the seeds go round
    drawn = generate_batch(pair[1], [PROMPT] * 4, 20, temperature=1.0, seed=2**64 - 2)
    assert len({tuple(ids) for ids in drawn}) == 4
    assert drawn[2] == list(minillama.generate(pair[1], PROMPT, 20, temperature=1.0, seed=0))


def test_rows_that_are_done_cost_nothing(pair):
    prompts = [random_ids(5, seed=b)[0].tolist() for b in range(3)]
    alone = [list(minillama.generate(pair[1], ids, 30)) for ids in prompts]
    stop = next(id for id in alone[0][:5] if id not in alone[1] + alone[2])
    seen = []
    hook = pair[1].embedding.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].numel())
    )
    answers = generate_batch(pair[1], prompts, 30, stop_ids=[stop])
    hook.remove()
    at = alone[0].index(stop)
    assert answers == [alone[0][:at], alone[1], alone[2]]
    assert seen == [15] + [3] * at + [2] * (29 - at)


def test_no_prompts_and_no_tokens(pair):
    assert generate_batch(pair[1], []) == []
    assert generate_batch(pair[1], [PROMPT, PROMPT[:3]], 0) == [[], []]
    assert list(minillama.generate(pair[1], PROMPT, 0)) == []


def test_a_batch_on_real_weights(ours):
    model, tokenizer = ours
    texts = ["The capital of France is", "Once upon a time there was a king who", "2, 4, 6,"]
    prompts = [tokenizer.encode(text) for text in texts]
    alone = [list(minillama.generate(model, ids, 24)) for ids in prompts]
    assert generate_batch(model, prompts, 24) == alone


def test_statistics_count_what_went_through(pair):
    stats = Statistics()
    list(minillama.generate(pair[1], PROMPT, 10, stats=stats))
    assert stats.prompt_tokens == len(PROMPT) and stats.gains == [1] * 9
    assert stats.prompt_seconds > 0 < stats.decode_seconds
    generate_batch(pair[1], [PROMPT, PROMPT[:3]], 10, stats=stats)  # they add up over calls
    assert stats.prompt_tokens == 2 * len(PROMPT) + 3 and stats.gains == [1] * 9 + [2] * 9
    assert "prompt " in str(stats) and "answer " in str(stats)
    assert "tokens/s" not in str(Statistics())


def test_statistics_do_not_count_the_reader(pair, monkeypatch):
    """A clock that stands still but while the reader reads."""
    now = [0.0]
    monkeypatch.setattr(generation.time, "perf_counter", lambda: now[0])
    stats = Statistics()
    for _ in minillama.generate(pair[1], PROMPT, 5, stats=stats):
        now[0] += 1.0
    assert now == [5.0] and stats.prompt_seconds == stats.decode_seconds == 0.0

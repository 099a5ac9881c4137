"""Sampling against transformers' own filters, and settings that have no meaning."""

import math

import pytest
import torch
from helpers import random_ids, tiny_pair
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import minillama
from minillama import sample


INF, NAN = math.inf, math.nan


def drawn(logits, count=4000, **settings) -> torch.Tensor:
    """How often each id comes, of `count` draws."""
    generator = torch.Generator().manual_seed(0)
    ids = sample(logits.expand(count, -1), generator=generator, **settings)
    return torch.bincount(ids, minlength=logits.shape[-1]) / count


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 1000])
@pytest.mark.parametrize("top_p", [None, 0.0, 0.4, 0.9, 1.0])
def test_as_transformers_filters(temperature, top_k, top_p):
    """transformers counts top-p from the other end, but keeps the same set: cumsum - p <= top_p."""
    logits = 2 * torch.randn(1, 12, generator=torch.Generator().manual_seed(3))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    wanted = warpers(None, logits).softmax(-1)[0]
    shares = drawn(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert (shares[wanted == 0] == 0).all()
    torch.testing.assert_close(shares, wanted, atol=0.03, rtol=0)  # four standard deviations of 4,000 draws


@pytest.mark.parametrize(
    "top_p, kept", [(0.0, [0]), (0.49, [0]), (0.5, [0, 1]), (0.74, [0, 1]), (0.75, [0, 1, 2]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_a_token_while_what_comes_before_is_at_most_p(top_p, kept):
    """Probabilities 1/2, 1/4, 1/8, 1/8 are exact in float32, so the boundary is too."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log2() * math.log(2)
    assert drawn(logits, temperature=1.0, top_p=top_p).nonzero().flatten().tolist() == kept


@pytest.mark.parametrize("settings", [dict(temperature=0), dict(temperature=1.0, top_k=1), dict(temperature=1e-6)])
def test_greedy(settings):
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample(logits, **settings), logits.argmax(-1))


@pytest.mark.parametrize(
    "settings",
    [dict(temperature=t) for t in (-1.0, NAN, INF)]
    + [dict(temperature=1.0, top_p=p) for p in (-0.1, 1.1, NAN, INF)]
    + [dict(temperature=1.0, top_k=k) for k in (0, -3)],
    ids=str,
)
def test_settings_without_meaning(settings):
    with pytest.raises(ValueError, match="must be"):
        sample(torch.zeros(1, 4), **settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("row", [[-INF] * 4, [NAN] * 4, [0.0, 1.0, NAN, 2.0], [0.0, INF, 1.0, 2.0]], ids=str)
def test_rows_from_which_nothing_can_be_drawn(row, temperature):
    with pytest.raises(ValueError):
        sample(torch.tensor([[0.0, 1.0, 2.0, 3.0], row]), temperature=temperature)


def test_minus_infinity_is_never_drawn():
    assert drawn(torch.tensor([[0.0, -INF, 0.0, -INF]]), temperature=5.0)[[1, 3]].sum() == 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return tiny_pair(tmp_path_factory.mktemp("tiny"))


PROMPT = random_ids(7)[0].tolist()


def test_greedy_ids_as_transformers(pair):
    reference, model = pair
    theirs = reference.generate(torch.tensor([PROMPT]), max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert list(minillama.generate(model, PROMPT, 30)) == theirs[0, len(PROMPT) :].tolist()


def test_a_seed_gives_the_same_ids(pair):
    first, second, other = (list(minillama.generate(pair[1], PROMPT, 30, temperature=1.0, seed=s)) for s in (1, 1, 2))
    assert first == second != other


def test_stops_before_the_first_stop_id(pair):
    ids = list(minillama.generate(pair[1], PROMPT, 30))
    stop = ids[10]
    assert list(minillama.generate(pair[1], PROMPT, 30, stop_ids={stop})) == ids[: ids.index(stop)]


@pytest.mark.parametrize(
    "ids, count, settings",
    [([], 5, {}), (PROMPT, 16_384, {}), (PROMPT, 5, dict(temperature=-1)), (PROMPT, 5, dict(top_k=0)),
     ([128], 5, {}), ([-1], 5, {}), (PROMPT, -1, {})],
)  # fmt: skip
def test_what_cannot_be_generated(pair, ids, count, settings):
    with pytest.raises(ValueError):
        list(minillama.generate(pair[1], ids, count, **settings))


def test_the_context_can_be_filled(tmp_path):
    _, model = tiny_pair(tmp_path, max_position_embeddings=12)
    assert len(list(minillama.generate(model, PROMPT, 5))) == 5

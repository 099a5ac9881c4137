"""Evaluation: from one number to a judgement.

Written by notebooks/15_evaluation.ipynb: edit it there.
"""

import hashlib
import json
from dataclasses import dataclass


def encode_pair(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of what continues it, cut where the context's own ids end.

    Spaces at the context's end belong to the continuation: tokens begin with a space.
    """
    bare = context.rstrip()
    continuation, context = context[len(bare) :] + continuation, bare
    if not context:
        return [prefix_id(tokenizer)], tokenizer.encode(continuation)
    ids = encode_text(tokenizer, context)
    return ids, encode_text(tokenizer, context + continuation)[len(ids) :]


def encode_text(tokenizer, text: str) -> list[int]:
    """Ids of a text, behind the token for its beginning if the model was trained with one."""
    return tokenizer.encode(text, bos=tokenizer.bos_id is not None)


def prefix_id(tokenizer) -> int:
    """The id that stands before a text's first: its beginning's or, without one, an ending's."""
    ids = (tokenizer.bos_id, tokenizer.eos_id, *tokenizer.stop_ids)
    if (found := next((id for id in ids if id is not None), None)) is None:
        raise ValueError("the tokenizer has no token for the beginning or the end of a text")
    return found


KINDS = {  # what an item asks for, and the fields that it must have
    "choice": ("question", "choices", "answer"),
    "exact": ("question", "answer"),
    "code": ("prompt", "test", "entry_point"),
    "text": ("text",),
}
MARKS = {"choice": "choices", "code": "test", "text": "text"}  # the field that tells the kind


@dataclass(frozen=True)
class Item:
    """One item of a benchmark: an answer to choose, to write or to program, or a text to predict.

    prompt: all that comes before an answer. answer: the index of the right choice, or the text
    wanted. group: items are also counted by it.
    """

    kind: str
    prompt: str
    choices: tuple[str, ...] = ()
    answer: int | str | None = None
    group: str = ""
    test: str = ""

    @property
    def right(self) -> str:
        """The right answer as text."""
        return self.choices[self.answer] if self.kind == "choice" else str(self.answer)


def parse_item(value) -> Item:
    """An item from a line's JSON value; ValueError says which field is missing or wrong."""
    if not isinstance(value, dict):
        raise ValueError('an item is an object, such as {"question": ..., "answer": ...}')
    kind = next((kind for kind, mark in MARKS.items() if mark in value), "exact")
    given = {*value, "question"} if "context" in value else {*value}
    if missing := [name for name in KINDS[kind] if name not in given]:
        raise ValueError(f"the field {missing[0]!r} is missing")
    for name in ("question", "context", "prompt", "test", "entry_point", "text", "group"):
        if name in value and not (isinstance(value[name], str) and value[name].strip()):
            raise ValueError(f"{name!r} must be a text that is not empty, not {value[name]!r:.40}")
    group = value.get("group", "")
    if kind == "text":
        return Item(kind, value["text"], group=group)
    if kind == "code":
        test = f"{value['test']}\ncheck({value['entry_point']})\n"
        return Item(kind, value["prompt"], group=group, test=test)
    prompt = value["context"] if "context" in value else question_prompt(value["question"])
    if kind == "exact":
        if not isinstance(value["answer"], str) or not value["answer"].strip():
            raise ValueError(f"'answer' must be a text, not {value['answer']!r:.40}")
        return Item(kind, prompt, answer=value["answer"].strip(), group=group)
    return Item(kind, prompt, *checked_choices(value["choices"], value["answer"]), group)


def checked_choices(choices, answer) -> tuple[tuple[str, ...], int]:
    """(choices, index of the right one), if they are; ValueError."""
    texts = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
    if not texts or len(set(choices)) < max(2, len(choices)):
        raise ValueError("'choices' must be a list of at least two different texts")
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise ValueError(f"'answer' must be the index of the right choice, not {answer!r:.40}")
    if not 0 <= answer < len(choices):
        raise ValueError(
            f"'answer' is {answer}, but {len(choices)} choices are counted from 0 to "
            f"{len(choices) - 1}"
        )
    return tuple(choices), answer


def question_prompt(question: str) -> str:
    """How a question is asked."""
    return f"Question: {question}\nAnswer:"


def with_examples(items: list[Item], count: int) -> tuple[str, list[Item]]:
    """(the first items with their answers as one text, the others); ValueError if none is left."""
    if count < 0 or count >= len(items):
        raise ValueError(
            f"the number of examples must be between 0 and {len(items) - 1}, not {count}"
        )
    if count and items[0].kind not in ("choice", "exact"):
        raise ValueError(f"items of the kind {items[0].kind!r} take no examples")
    shown = [f"{item.prompt} {item.right}\n\n" for item in items[:count]]
    return "".join(shown), items[count:]


def fingerprint(*parts) -> str:
    """A short name for anything that JSON can write: other parts, another name."""
    text = json.dumps(parts, default=lambda part: getattr(part, "__dict__", str(part)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]

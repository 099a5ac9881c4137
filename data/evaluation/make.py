"""The tasks whose best score is known: data/evaluation/stories.jsonl and addition.jsonl.

python data/evaluation/make.py

Stories come from the grammar of chapter 13a (validation stories), cut where one slot is filled.
BEST says which share the best possible model gets right: a slot that follows from the story can
always be known, of two tools that help the story takes either, and a place is drawn from ten, of
which four are offered. Additions are held-out problems of chapter 13c.
"""

import json
import random
from pathlib import Path

from minillama.checkpoints.atomic import write_whole
from minillama.studies import addition, stories


HERE, COUNT = Path(__file__).parent, 40  # items of each group
SLOTS = {  # group: its plot, its slot, whether the story has named it before
    "mend": ("broken", "mend", False),
    "remedy": ("fear", "remedy", False),
    "colour": ("lost", "colour", True),
    "tool": ("stuck", "tool", False),
    "place": ("lost", "place", False),
}
TOOLS = [tool for pair in stories.STUCK.values() for tool in pair]
OTHERS = {  # what else might fill a slot
    "mend": ["needle and thread", "glue", "a wet towel", "two long nails"],
    "remedy": [remedy for _, remedy, _ in stories.FEARS.values()],
    "colour": stories.COLOURS,
    "tool": list(dict.fromkeys(TOOLS)),
    "place": stories.PLACES,
}
BEST = {"mend": 1.0, "remedy": 1.0, "colour": 1.0, "tool": 0.5, "place": 0.25}


def cut(number: int, group: str) -> dict | None:
    """The story of that number as an item, if it is of the group's plot and says the slot."""
    plot, slot, named = SLOTS[group]
    found, lines, about = stories.choose(number, validation=True)
    text, wanted = " ".join(lines).format(**about), about[slot]
    at = text.rfind(f" {wanted}") if named else text.find(f" {wanted}")
    if found != plot or at < 0 or (named and wanted not in text[:at]):
        return None
    rng = random.Random(f"{group} {number}")
    wrong = [each for each in OTHERS[group] if each != wanted]
    if group == "tool":  # the other one that helps is among the choices
        also = [each for each in stories.STUCK[about["stuck"]] if each != wanted]
        wrong = also + rng.sample([each for each in wrong if each not in also], 2)
    choices = [wanted, *(wrong if group == "tool" else rng.sample(wrong, 3))]
    rng.shuffle(choices)
    return dict(context=text[:at], choices=choices, answer=choices.index(wanted), group=group)


def story_items() -> list[dict]:
    """Groups in turn, so that any first items hold all of them."""
    found = {group: [] for group in SLOTS}
    number = 0
    while min(map(len, found.values())) < COUNT:
        for group, items in found.items():
            if len(items) < COUNT and (item := cut(number, group)):
                items.append(item)
        number += 1
    return [item for items in zip(*found.values(), strict=True) for item in items]


def addition_items() -> list[dict]:
    """Sums of one to three digits, as a text that ends in "="."""
    problems = [(n, pair) for n in (1, 2, 3) for pair in addition.tests(n, COUNT)]
    return [
        dict(context=addition.question(a, b), answer=str(a + b), group=f"{n} digits")
        for n, (a, b) in problems
    ]


def main() -> None:
    for name, items in (("stories", story_items()), ("addition", addition_items())):
        lines = "".join(json.dumps(item) + "\n" for item in items)
        write_whole(HERE / f"{name}.jsonl", lines.encode())


if __name__ == "__main__":
    main()

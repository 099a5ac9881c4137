"""The data and the study of chapter 14a: orders as JSON, before and after fine-tuning.

    python data/studies/make_instructions.py data          orders.jsonl, orders_test.jsonl, general.jsonl
    python data/studies/make_instructions.py study         instructions.json and adapter/, with the real weights

The orders are drawn from a seeded grammar. The general answers are SmolLM2's own, greedy: they say
how it spoke before.
"""

import json
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from minillama import chat, generate_batch, load
from minillama.training.adapters import save_adapter
from minillama.training.finetuning import add_lora
from minillama.training.instructions import Dialogs, answers, dialog, finetune, mean_answer_loss
from minillama.training.jsonl import read_jsonl
from minillama.training.optimizer import Settings, trainable


HERE = Path(__file__).resolve().parent
COUNTS = {
    "a": 1,
    "one": 1,
    "two": 2,
    "a pair of": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "half a dozen": 6,
}
COUNTS |= {"seven": 7, "eight": 8, "nine": 9, "ten": 10, "a dozen": 12}
COLOURS = "red blue green yellow black white grey brown".split()
ITEMS = (
    "lamp cup plate chair table bowl vase clock mirror pillow towel basket candle carpet".split()
)
NAMES = (
    "Ada Ben Clara David Emma Felix Greta Hugo Ines Jonas Karin Leo Mara Nora Otto Paula".split()
)
NEW_ITEMS, NEW_NAMES = "kettle ladder blanket umbrella".split(), "Selma Viktor Yara Tim".split()
WAYS = """I would like {what}, please. My name is {name}.
{What} for {name}, please.
Hello, this is {name}. Could you send me {what}?
Please put {what} aside for {name}.
{name} here. I need {what} by next week.
My neighbour {name} wants {what} for the new flat.
We are looking for {what}.
Do you still have {what}? Then I will take it all.""".splitlines()
NEW_WAYS = """Can {what} be delivered to {name}?
After a long talk we decided on {what}. Write it down for {name}.""".splitlines()


def held_back(item: str, colour: str | None) -> bool:
    """Whether this item in this colour is kept for the test: one pair in seven."""
    return colour is not None and (ITEMS.index(item) + 3 * COLOURS.index(colour)) % 7 == 0


def order(rng: random.Random, kind: str) -> list[dict]:
    """One dialog. kind: "train"; "pairs", of items and colours that training never joins; "new",
    items, names, ways.
    """
    items, names, ways = (NEW_ITEMS, NEW_NAMES, NEW_WAYS) if kind == "new" else (ITEMS, NAMES, WAYS)
    while True:
        item, colour = (
            rng.choice(items),
            rng.choice([*COLOURS, None, None] if kind == "train" else COLOURS),
        )
        if kind == "new" or held_back(item, colour) == (kind == "pairs"):
            break
    words = rng.choice(list(COUNTS))
    plural = (
        item if COUNTS[words] == 1 else item + ("es" if item.endswith(("s", "x", "ch")) else "s")
    )
    what = " ".join(part for part in (words, colour, plural) if part)
    what = "an" + what[1:] if words == "a" and (colour or item)[0] in "aeiou" else what
    way, name = rng.choice(ways), rng.choice(names)
    text = way.format(what=what, What=what[0].upper() + what[1:], name=name)
    said = {
        "item": item,
        "colour": colour,
        "count": COUNTS[words],
        "name": name if "{name}" in way else None,
    }
    return [{"role": "user", "content": text}, {"role": "assistant", "content": json.dumps(said)}]


GENERAL = """What is the capital of France?
Name three fruits.
Why do leaves fall in autumn?
Give me a tip for sleeping well.
What is a triangle?
Write one sentence about the sea.
How many legs does a spider have?
What does a baker do?
Is the sun a star?
Translate "good morning" into Spanish.
What is the opposite of hot?
Say something kind to a friend who is sad.
What do bees make?
Name a country in Africa.
What is two plus three?
Who wrote Romeo and Juliet?
What should I wear when it rains?
Tell me a fact about cats.
Where do penguins live?
What colour is a ripe banana?
Name a musical instrument with strings.
What is ice made of?
How do you say hello politely?
Give me a word that rhymes with cat.""".splitlines()  # the last eight are held back


def write(name: str, dialogs) -> None:
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in dialogs]
    (HERE / name).write_text("".join(lines), encoding="utf-8", newline="\n")


def orders() -> dict[str, list]:
    """The dialogs of both files of orders."""
    train, test = random.Random("orders"), random.Random("orders held back")
    return {
        "orders.jsonl": [order(train, "train") for _ in range(240)],
        "orders_test.jsonl": [order(test, kind) for kind in ("pairs", "new") for _ in range(20)],
    }


def make_data() -> None:
    for name, dialogs in orders().items():
        write(name, dialogs)
    model, tokenizer = load("smollm2-135m-instruct")
    asked = [[{"role": "user", "content": text}] for text in GENERAL]
    prompts = [chat.encode_dialog(tokenizer, messages) for messages in asked]
    said = []  # without half a sentence at the end, which would teach to stop in one
    for ids in generate_batch(model, prompts, 48, stop_ids=tokenizer.stop_ids):
        text = tokenizer.decode(ids)
        said.append(text[: text.rfind(".") + 1] if len(ids) == 48 else text)
    write(
        "general.jsonl",
        [[*a, {"role": "assistant", "content": s}] for a, s in zip(asked, said, strict=True)],
    )


def score(model, tokenizer, dialogs) -> dict:
    """How many of the greedy answers end, are JSON, and are the right JSON; and the first few."""
    prompts = [chat.encode_dialog(tokenizer, messages[:-1]) for messages in dialogs]
    said = generate_batch(model, prompts, 48, stop_ids=tokenizer.stop_ids)
    texts, right, valid = [tokenizer.decode(ids) for ids in said], 0, 0
    for text, messages in zip(texts, dialogs, strict=True):
        try:
            right += json.loads(text) == json.loads(messages[-1]["content"])
            valid += 1
        except ValueError:
            pass
    return {
        "ended": sum(len(ids) < 48 for ids in said),
        "json": valid,
        "right": right,
        "of": len(said),
    } | {"first": texts[:3]}


def perplexity(model, tokenizer) -> float:
    """Of a text that has nothing to do with orders."""
    ids = torch.tensor(
        tokenizer.encode((HERE.parent / "golden" / "text.txt").read_text(encoding="utf-8"))
    )
    with torch.inference_mode():
        return math.exp(F.cross_entropy(model(ids[None, :-1])[0], ids[1:]).item())


def look(model, tokenizer, test, general) -> dict:
    """All that is measured of one model."""
    pairs = [answers(tokenizer, messages) for messages in general]
    prompts = [chat.encode_dialog(tokenizer, messages[:-1]) for messages in general]
    said = [
        tokenizer.decode(ids)
        for ids in generate_batch(model, prompts, 24, stop_ids=tokenizer.stop_ids)
    ]
    found = {"pairs": score(model, tokenizer, test[:20]), "new": score(model, tokenizer, test[20:])}
    found |= {
        "perplexity": perplexity(model, tokenizer),
        "general_loss": mean_answer_loss(model, Dialogs(pairs, 256)),
    }
    return found | {"general_as_json": sum("{" in text for text in said), "general_first": said[:3]}


def everything(pairs):
    return [(ids, [True] * len(ids)) for ids, _ in pairs]


def without_end(pairs):
    return [
        (ids, [now and after for now, after in zip(w, [*w[1:], False], strict=True)])
        for ids, w in pairs
    ]


FILES = ("orders", "orders_test", "general")
# name: (rank, peak learning rate, targets, general dialogs mixed in, what is done to the labels)
SETTINGS = {
    "rank 8": (8, 2e-3, None, False, None),
    "rank 8, general mixed in": (8, 2e-3, None, True, None),
    "rank 1": (1, 2e-3, None, False, None),
    "rank 4, wq and wv, general mixed in": (4, 5e-3, ["wq", "wv"], True, None),
    "rate 0.0002": (8, 2e-4, None, False, None),
    "loss on everything": (8, 2e-3, None, False, everything),
    "end without loss": (8, 2e-3, None, False, without_end),
}


def one(name: str, folder: Path | None = None) -> dict:
    """One setting, from the model as it was."""
    rank, rate, targets, mixed, change = SETTINGS[name]
    model, tokenizer = load("smollm2-135m-instruct")
    train, test, general = (read_jsonl(HERE / f"{name}.jsonl", dialog)[0] for name in FILES)
    before = [] if name != "rank 8" else look(model, tokenizer, test, general[16:])
    add_lora(model, rank, 2 * rank, **({"targets": targets} if targets else {}))
    used = train[:120] + general[:16] if mixed else train[:120]
    random.Random(0).shuffle(used)
    pairs = [answers(tokenizer, messages) for messages in used]
    dialogs = Dialogs(change(pairs) if change else pairs, 256, 3)
    held = Dialogs([answers(tokenizer, messages) for messages in train[120:136]], 256, 3)
    plan = Settings(
        steps=2 * dialogs.turns,
        peak_lr=rate,
        warmup=3,
        weight_decay=0.0,
        dtype="bfloat16",
        eval_every=10**6,
    )
    start = time.process_time()
    rows = finetune(model, dialogs, held, plan)
    seconds = time.process_time() - start
    if folder:
        save_adapter(model, folder)
    first = (
        {"before": before, "losses": [round(row["loss"], 4) for row in rows]}
        if name == "rank 8"
        else {}
    )
    return first | {
        "parameters": sum(p.numel() for p in trainable(model).values()), "steps": plan.steps,
        "validation_loss": rows[-1]["validation_loss"],
        "cpu_seconds": round(seconds), "after": look(model, tokenizer, test, general[16:]),
    }  # fmt: skip


def study(names) -> None:
    path = HERE / "instructions.json"
    for name in names or SETTINGS:
        found = one(name, HERE / "adapter" if "wq" in name else None)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        kept |= {name: found}
        path.write_text(
            json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
        )
        print(
            name, {key: value for key, value in kept[name].items() if key != "losses"}, flush=True
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_data() if sys.argv[1:] == ["data"] else study(sys.argv[2:])

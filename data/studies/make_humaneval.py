"""What SmolLM2 solves of HumanEval: data/studies/humaneval.json.

python data/studies/make_humaneval.py

Greedy, two ways to end the prompt: at the end of its docstring, and with the line break that
HumanEval's prompts end in; what the model wrote and how each program ended is kept after every
batch, and a run that was stopped goes on. About ten minutes of one core for each way.
"""

import json
from pathlib import Path

import torch
from tqdm import tqdm

from course.run_code import run_program
from minillama import generate_batch, load
from minillama.checkpoints.atomic import write_whole
from minillama.evaluation.exact import cut_at
from minillama.evaluation.pass_at_k import CODE_STOPS
from minillama.evaluation.runs import read_task
from minillama.evaluation.tasks import encode_text


NAME, OUT = "smollm2-135m-instruct", Path(__file__).with_name("humaneval.json")
WAYS = {"docstring's end": str.rstrip, "line break": str}
BATCH, LONGEST = 16, 128


def save(kept: dict) -> None:
    """Write everything, a line for each program."""
    about = {"command": "python data/studies/make_humaneval.py", "torch": torch.__version__}
    about |= {"model": NAME, "max_new_tokens": LONGEST, "decoding": "greedy", "dtype": "float32"}
    lines = (",\n  ".join(json.dumps([way, *row]) for row in rows) for way, rows in kept.items())
    text = f' "about": {json.dumps(about)},\n "written": [\n  ' + ",\n  ".join(filter(None, lines))
    write_whole(OUT, f"{{{text[1:]}\n]}}\n".encode())


def read() -> dict:
    """What is kept so far: for each way, [program's end, how it ended] of the first problems."""
    kept = {way: [] for way in WAYS}
    if OUT.exists():
        for way, *row in json.loads(OUT.read_text(encoding="utf-8"))["written"]:
            kept[way].append(row)
    return kept


def main() -> None:
    model, tokenizer = load(NAME)
    items = read_task("human-eval")
    kept = read()
    for way, end in WAYS.items():
        rows = kept[way]
        for at in tqdm(range(len(rows), len(items), BATCH), way):
            batch = items[at : at + BATCH]
            prompts = [encode_text(tokenizer, end(item.prompt)) for item in batch]
            said = generate_batch(model, prompts, LONGEST, stop_ids=tokenizer.stop_ids)
            for item, ids in zip(batch, said, strict=True):
                text = cut_at(tokenizer.decode(ids), CODE_STOPS)
                whole = end(item.prompt) + text + "\n" + item.test
                rows.append([text, run_program(whole)])
            save(kept)


if __name__ == "__main__":
    main()

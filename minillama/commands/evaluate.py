"""evaluate: a model asked all items of a task; the score goes to standard output."""

import json
import math
import sys
from argparse import RawDescriptionHelpFormatter

from minillama.checkpoints.assemble import progress_bar
from minillama.checkpoints.files import CheckpointError
from minillama.commands.options import add_model, load
from minillama.evaluation import runs
from minillama.evaluation.tasks import fingerprint, with_examples


HELP = """A task is a file with an item on each line, in one of these forms:
  {"question": "Two and two?", "answer": "four"}                      written, compared
  {"question": "...", "choices": ["three", "four"], "answer": 1}      chosen by log-probability
  {"context": "Two and two is", "choices": ["three", "four"], "answer": 1}
  {"text": "..."}                                                     predicted: bits per byte
  {"prompt": "def two():", "test": "...", "entry_point": "two"}       a program, written and kept
A question may have a "group", by which it is counted too. Or a name: """


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "evaluate",
        help="score a model on a task",
        description=HELP + ", ".join(runs.names()),
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_model(parser)
    parser.add_argument("--task", required=True, metavar="FILE_OR_NAME", help="what is asked")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only the first N items")
    parser.add_argument(
        "--few-shot",
        type=int,
        default=0,
        metavar="N",
        help="show the first N items with their answers, and ask the others (%(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="of a written answer (64; a program: 256)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--out", metavar="FILE", help="keep a line for every item; started again, go on behind it"
    )
    parser.set_defaults(run=run)


def run(args) -> int:
    """Read the task, ask what is not answered yet, print the score."""
    for name in ("limit", "max_new_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least 1, not {getattr(args, name)}")
    examples, items = with_examples(runs.read_task(args.task), args.few_shot)
    items = items[: args.limit]
    model, tokenizer = load(args)
    if tokenizer is None:
        raise CheckpointError(f"{args.model} has no tokenizer, so it can be asked nothing")
    asker = runs.Asker(model, tokenizer, examples, args.max_new_tokens)
    mark = fingerprint(
        examples, [vars(item) for item in items], runs.model_mark(model), args.quantize,
        args.adapter, args.max_new_tokens,
    )  # fmt: skip
    kept = runs.Kept(args.out, dict(task=args.task, items=len(items), fingerprint=mark))
    for n in progress_bar(range(len(kept.rows), len(items)), args.task):
        try:
            row = asker(items[n])
        except ValueError as error:
            raise ValueError(f"{args.task}: item {args.few_shot + n + 1}: {error}") from None
        kept.add(dict(item=args.few_shot + n, group=items[n].group) | row)
    report(args, kept.rows)
    return 0


def report(args, rows: list[dict]) -> None:
    """The scores, as a table or as one JSON object."""
    scores, groups = runs.summarize(rows), runs.by_group(rows)
    if args.json:
        value = dict(task=args.task, items=len(rows), few_shot=args.few_shot)
        value |= dict(scores=named(scores), groups={key: named(s) for key, s in groups.items()})
        print(json.dumps(value))
        return
    for label, found in {"": scores, **groups}.items():
        said = [
            f"{name} {mean:.3f}" + (f" ± {error:.3f}" if not math.isnan(error) else "")
            for name, (mean, error) in found.items()
        ]
        if said:
            print(f"{label or args.task}: " + ", ".join(said))
    if "said" in rows[0] and "answer" not in rows[0]:
        where = args.out or "--out FILE"
        print(f"{len(rows)} programs, none of them run: python -m course.run_code {where}")
    print(f"[{len(rows)} items]", file=sys.stderr)


def named(scores: dict) -> dict:
    """As JSON has it: no NaN."""
    return {
        name: dict(mean=mean, standard_error=None if math.isnan(error) else error)
        for name, (mean, error) in scores.items()
    }

"""`minillama finetune`: an adapter that makes a model answer as the conversations of a file do."""

import sys
from pathlib import Path

from minillama.checkpoints.atomic import put_in_place
from minillama.commands.options import (
    DEFAULT_MODEL,
    add_renamed,
    add_training_dtype,
    chat_layout,
    training_dtype,
)
from minillama.inference.loading import QUANTIZE, load
from minillama.training.adapters import CONFIG, WEIGHTS, save_adapter
from minillama.training.batches import shuffled
from minillama.training.finetuning import TARGETS, add_lora
from minillama.training.instructions import Dialogs, answers, dialog, finetune, mean_answer_loss
from minillama.training.jsonl import read_jsonl, summarize
from minillama.training.loss import count_targets
from minillama.training.optimizer import Settings, trainable


HELP = """A line of the file: {"messages": [{"role": "user", "content": ...}, {"role": "assistant",
"content": ...}]}. The folder keeps the adapter in peft's form, metrics.csv (a row per step) and
state.pt: started again, the run goes on where it was. Then: minillama chat --adapter FOLDER"""
RUN = {"state.pt", "metrics.csv", CONFIG, WEIGHTS}


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "finetune", help="teach a model to answer as your conversations do", description=HELP
    )
    parser.add_argument("data", help="a file of conversations, one JSON object per line")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="where the run and its adapter are kept"
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a name, a .gguf file or a folder (%(default)s)"
    )
    parser.add_argument(
        "--quantize",
        choices=QUANTIZE,
        help="keep the model in 8 or 4 bits while its adapter learns",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave lines out that cannot be used"
    )
    number = dict(metavar="N", type=int, help="(%(default)s)")
    parser.add_argument("--rank", default=8, **number)
    parser.add_argument("--alpha", default=16.0, metavar="X", type=float, help="(%(default)s)")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="(all)")
    parser.add_argument("--epochs", default=2, **number)
    parser.add_argument(
        "--lr",
        default=1e-3,
        type=float,
        metavar="R",
        help="the largest learning rate (%(default)s)",
    )
    parser.add_argument(
        "--length", default=512, metavar="N", type=int, help="tokens of a row (%(default)s)"
    )
    parser.add_argument(
        "--batch", default=2, metavar="N", type=int, help="rows of a step (%(default)s)"
    )
    parser.add_argument(
        "--held", default=0.1, type=float, metavar="SHARE", help="kept for validation (%(default)s)"
    )
    add_training_dtype(parser)
    add_renamed(
        parser,
        "--activation-checkpointing",
        "--recompute",
        action="store_true",
        help="less memory, a third more work",
    )
    parser.add_argument("--seed", default=0, **number)
    parser.set_defaults(run=run)


def run(args) -> int:
    """Read, train, write the adapter, say what it took."""
    check(args)
    model, tokenizer = load(args.model, quantize=args.quantize)
    chat_layout(args, tokenizer)
    pairs, complaints = read_jsonl(
        args.data, lambda value: answers(tokenizer, dialog(value)), args.skip_bad
    )
    if complaints:
        print(f"[left out {len(complaints)} bad lines: {summarize(complaints)}]", file=sys.stderr)
    add_lora(model, args.rank, args.alpha, args.targets, args.seed)
    if args.length > model.cfg.max_seq_len:
        raise ValueError(
            f"--length must be at most the model's {model.cfg.max_seq_len}, not {args.length}"
        )
    rows, held = split(pairs, args)
    # of the model as it was: nothing has been learned or read yet
    before = mean_answer_loss(model, held)
    steps = args.epochs * rows.turns
    settings = Settings(
        steps=steps,
        peak_lr=args.lr,
        warmup=min(10, steps // 10),
        weight_decay=0.0,
        seed=args.seed,
        dtype=training_dtype(args),
        activation_checkpointing=args.activation_checkpointing,
        save_every=50,
        eval_every=rows.turns,
    )
    metrics = finetune(model, rows, held, settings, Path(args.out))
    write_adapter(model, Path(args.out))
    report(model, rows, (before, mean_answer_loss(model, held)), metrics, args.out)
    return 0


def check(args) -> None:
    """ValueError for invalid values and for a folder with something else in it."""
    for name in ("rank", "epochs", "batch", "length"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed must be between 0 and 2**32 - 1, not {args.seed}")
    if not 0 < args.held < 1:
        raise ValueError(f"--held must be between 0 and 1, not {args.held}")
    Path(args.data).stat()  # before a model is read
    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another name for the folder")
    names = (
        {path.name for path in folder.glob("*") if not path.name.startswith(".")}
        if folder.exists()
        else set()
    )
    # without it there is no run to go on with
    allowed = RUN if "state.pt" in names else {"metrics.csv"}
    if others := sorted(names - allowed):
        raise ValueError(
            f"{folder} holds {others[0]!r} and is no run to go on with: choose another folder"
        )


def split(pairs: list, args) -> tuple[Dialogs, Dialogs]:
    """(rows to train on, rows held back): a share of the conversations that fit a row, drawn with
    the seed.
    """
    fit = [pair for pair in pairs if len(pair[0]) <= args.length + 1]
    count = max(1, round(args.held * len(fit)))
    if len(fit) <= count:
        found = f"{args.data} has {len(fit)} conversations of at most {args.length + 1} tokens"
        raise ValueError(
            f"{found}, and {count} would be held back: none is left to learn from (see --length, "
            f"--held)"
        )
    if left_out := len(pairs) - len(fit):
        print(
            f"[left out {left_out} conversations longer than {args.length + 1} tokens]",
            file=sys.stderr,
        )
    order = shuffled(len(fit), args.seed).tolist()
    held, train = sorted(order[:count]), sorted(order[count:])
    parts = ([fit[i] for i in train], [fit[i] for i in held])
    return tuple(Dialogs(part, args.length, args.batch, args.seed) for part in parts)


def write_adapter(model, folder: Path) -> None:
    """The adapter's two files beside the run's, each whole or not at all."""
    new = folder / ".adapter"
    save_adapter(model, new)
    for name in (WEIGHTS, CONFIG):
        put_in_place(new / name, folder / name)
    new.rmdir()


def report(model, rows: Dialogs, losses: tuple[float, float], metrics: list[dict], out) -> None:
    """One line on standard error. losses: before and after; metrics: may be lost, of a run that had
    ended.
    """
    speeds = sorted(row["tokens_per_second"] for row in metrics)
    asked = sum(count_targets(rows(i)) for i in range(rows.turns))
    print(
        f"[{sum(p.numel() for p in trainable(model).values()):,} new parameters, {len(metrics)} "
        f"steps, {asked:,} "
        f"tokens of the assistant; validation loss {losses[0]:.3f}, then {losses[1]:.3f}; "
        + "".join(f"{speed:,.0f} tokens/s; " for speed in speeds[len(speeds) // 2 :][:1])
        + f"minillama chat --adapter {out}]",
        file=sys.stderr,
    )

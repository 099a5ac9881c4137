"""`minillama train`: a small Llama from nothing, on the stories of chapter 13a or on your own
text.
"""

import re
import sys
from argparse import RawDescriptionHelpFormatter
from dataclasses import replace
from pathlib import Path

import torch

from minillama.checkpoints.assemble import progress_bar
from minillama.checkpoints.hugging_face_writer import save_hugging_face
from minillama.commands.options import add_renamed, add_training_dtype, training_dtype
from minillama.model import Llama
from minillama.studies.stories import story
from minillama.studies.story_model import CONFIG, ROW_LENGTH, SETTINGS, story_tokenizer, train
from minillama.training.flops import flops_per_token, peak_flops


HELP = f"""Train a tiny Llama from nothing: 7 to 8 minutes on two free cores that multiply bfloat16
themselves.

The folder keeps metrics.csv, a row per step, and state.pt, written every
{SETTINGS.save_every} steps. Started again with the same options, the run goes on where it
was. The finished model is in FOLDER/model:

    minillama generate --raw --max-new-tokens 300 --temperature 0.7 --model FOLDER/model "One day,"

The model in data/stories was made so, with no options at all, in bfloat16; chapter 13a looks into
it."""


def add(commands) -> None:
    """The parser of this command."""
    words = dict(
        help="train a tiny Llama from nothing",
        description=HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser = commands.add_parser("train", **words)
    parser.add_argument("folder", help="where the run and its model are kept")
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="UTF-8; empty lines separate documents (default: our stories)",
    )
    parser.add_argument(
        "--stories", type=int, default=60_000, metavar="N", help="how many to read (%(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=SETTINGS.steps, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of weights and order (%(default)s)"
    )
    add_training_dtype(parser)
    parser.add_argument(
        "--peak-lr",
        type=float,
        default=SETTINGS.peak_lr,
        metavar="R",
        help="(%(default)s)",
    )
    add_renamed(
        parser,
        "--gradient-accumulation-steps",
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="batches of a step (%(default)s)",
    )
    add_renamed(
        parser,
        "--activation-checkpointing",
        "--recompute",
        action="store_true",
        help="less memory, a third more work",
    )
    parser.add_argument("--no-compile", action="store_true", help="start at once, and be slower")
    parser.set_defaults(run=run)


def run(args) -> int:
    """Train, say what it took, write the model."""
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed must be between 0 and 2**32 - 1, not {args.seed}")
    settings = replace(
        SETTINGS,
        steps=args.steps,
        peak_lr=args.peak_lr,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        seed=args.seed,
        dtype=training_dtype(args),
        compiled=not args.no_compile,
        activation_checkpointing=args.activation_checkpointing,
    )
    folder, (texts, held, tokenizer) = Path(args.folder), read(args)
    cfg = replace(CONFIG, vocab_size=tokenizer.vocab_size)
    waiting = "; the first step compiles for half a minute" if settings.compiled else ""
    if sys.stderr.isatty():  # where the bar is, too
        print(
            f"[{len(texts):,} texts to learn from, {len(held):,} held back{waiting}]",
            file=sys.stderr,
        )
    model, rows = train(cfg, tokenizer, texts, held, settings, folder)
    save_hugging_face(model, tokenizer, folder / "model", torch.bfloat16)
    report(model, rows, folder, settings.dtype)
    return 0


def read(args) -> tuple:
    """(texts to train on, texts held back, a tokenizer of them); ValueError if there are too
    few.
    """
    if args.text is None:
        if args.stories < 100:
            raise ValueError(f"--stories must be at least 100, not {args.stories}")
        texts = [story(n) for n in progress_bar(range(args.stories), "stories")]
        return (
            texts,
            [story(number, validation=True) for number in range(500)],
            story_tokenizer(texts),
        )
    try:
        documents = re.split(r"\n\s*\n", Path(args.text).read_text(encoding="utf-8").strip())
    except OSError as error:
        raise ValueError(f"{args.text} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{args.text} is not UTF-8: {error.reason} at byte {error.start}"
        ) from None
    held = documents[9::10]  # one in ten
    if not held:
        raise ValueError(
            f"{args.text} has {len(documents)} documents; at least 10, separated by empty lines, "
            f"are needed"
        )
    texts = [text for i, text in enumerate(documents) if i % 10 != 9]
    return texts, held, story_tokenizer(texts)


def report(model: Llama, rows: list[dict], folder: Path, dtype: str) -> None:
    """One line on standard error."""
    speeds = sorted(row["tokens_per_second"] for row in rows)
    speed, flops = speeds[len(speeds) // 2], flops_per_token(model.cfg, ROW_LENGTH)
    count, loss = sum(p.numel() for p in model.parameters()), rows[-1]["validation_loss"]
    share = speed * flops / peak_flops(getattr(torch, dtype))
    print(
        f"[{count:,} parameters, {len(rows)} steps, validation loss {loss:.4f}; {speed:,.0f} "
        f"tokens/s, "
        f"{speed * flops / 1e9:.0f} GFLOP/s, {share:.0%} of what one large product reaches here; "
        f"{folder / 'model'}]",
        file=sys.stderr,
    )

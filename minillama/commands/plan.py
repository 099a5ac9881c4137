"""`minillama plan`: memory, layouts, times and cost of a Llama on so many accelerators. Arithmetic;
nothing is run.
"""

import json
from argparse import RawDescriptionHelpFormatter

from minillama.commands.options import add_renamed
from minillama.config import LlamaConfig
from minillama.distributed.accelerators import ACCELERATORS, USABLE
from minillama.distributed.memory import Job
from minillama.distributed.planning import plan


HELP = """Which layouts of a model on so many cards fit, what each card holds, and how fast it can
be at most: bytes over bandwidth and operations over rate, from the makers' data sheets. Real
machines reach a part of it (chapter 17).

  minillama plan llama-3.1-405b --gpus 16 --gpu h100-80gb --context 131072 --batch 4 --price 2
  minillama plan llama-3.1-8b --gpus 8 --context 8192 --batch 8 --train"""
FORMS = ("fp8", "int8", "int4")


def add(commands) -> None:
    parser = commands.add_parser(
        "plan", help="what a model needs on how many accelerators", description=HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("size", help="llama-3.1-8b, llama-3.1-70b, llama-3.1-405b, smollm2-135m")
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="how many cards (%(default)s)"
    )
    parser.add_argument(
        "--gpu",
        default="h100-80gb",
        metavar="CARD",
        help=f"{', '.join(ACCELERATORS)} (%(default)s)",
    )
    parser.add_argument(
        "--context", type=int, default=8192, metavar="TOKENS", help="in each row (%(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=1, metavar="ROWS", help="rows together (%(default)s)"
    )
    parser.add_argument(
        "--quantize", choices=FORMS, help="weights in fewer bits (default: bfloat16)"
    )
    parser.add_argument("--train", action="store_true", help="a step of AdamW in place of serving")
    add_renamed(
        parser,
        "--no-activation-checkpointing",
        "--no-recompute",
        action="store_true",
        help="in training, keep all activations",
    )
    parser.add_argument("--price", type=float, metavar="DOLLARS", help="for one card and hour")
    parser.add_argument(
        "--efficiency",
        type=float,
        default=1.0,
        help="share of the data sheet reached (%(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="the same for programs, in bytes and seconds"
    )
    parser.set_defaults(run=run)


def run(args) -> int:
    check(args)
    cfg, gpu = LlamaConfig.named(args.size), ACCELERATORS[args.gpu]
    if args.context > cfg.max_seq_len:
        raise ValueError(
            f"--context {args.context:,}: {args.size} was made for {cfg.max_seq_len:,} tokens"
        )
    job = Job(
        args.batch,
        args.context,
        args.quantize or "bfloat16",
        args.train,
        not args.no_activation_checkpointing,
    )
    rows = [finished(row, args) for row in plan(cfg, gpu, args.gpus, job)]
    if args.json:
        asked = {name: value for name, value in vars(args).items() if name not in ("run", "json")}
        print(json.dumps({"asked": asked, "source": gpu.source, "layouts": rows}, indent=1))
    else:
        print("\n".join(table(rows, args)))
    return 0


def check(args) -> None:
    """ValueError for invalid values."""
    for name, most in (("gpus", 2**17), ("context", 2**31), ("batch", 2**31)):
        if not 1 <= getattr(args, name) <= most:
            raise ValueError(f"--{name} must be from 1 to {most:,}, not {getattr(args, name)}")
    if args.gpu not in ACCELERATORS:
        raise ValueError(f"no card is named {args.gpu!r}; the names are {', '.join(ACCELERATORS)}")
    if args.price is not None and not 0 < args.price < 1e9:
        raise ValueError(f"--price must be a positive number, not {args.price}")
    if not 0 < args.efficiency <= 1:
        raise ValueError(f"--efficiency must be above 0 and at most 1, not {args.efficiency}")
    if args.train and args.quantize:
        raise ValueError("--train is in float32 and bfloat16: leave out --quantize")
    if args.no_activation_checkpointing and not args.train:
        raise ValueError("--no-activation-checkpointing needs --train")


def finished(row: dict, args) -> dict:
    """A row of the plan at the efficiency asked for, with what a million tokens cost."""
    row = {
        name: value / args.efficiency if name.endswith("_seconds") else value
        for name, value in row.items()
    }
    if "tokens_per_second" in row:
        row["tokens_per_second"] *= args.efficiency
        if args.price:
            row["dollars_per_million_tokens"] = (
                args.gpus * args.price / 3600 / row["tokens_per_second"] * 1e6
            )
    return row


def table(rows: list[dict], args) -> list[str]:
    """The lines of the plan: the best layout's card by part, those that fit, and why the others do
    not.
    """
    gpu, fits = ACCELERATORS[args.gpu], [row for row in rows if row["reason"] is None]
    what = "training step" if args.train else f"serving in {args.quantize or 'bfloat16'}"
    lines = [
        f"{args.size}, {what}: {args.batch:,} x {args.context:,} tokens on {args.gpus:,} {args.gpu}"
    ]
    lines += [
        f"{USABLE * gpu.memory / 1e9:.1f} of {gpu.memory / 1e9:.0f} GB a card are planned with; "
        f"{gpu.source}",
        "",
    ]
    if fits:
        parts = {name: size for name, size in fits[0]["bytes"].items() if size}
        lines += ["the fullest card of the first layout, in GB (1e9 bytes):"]
        lines += [f"  {name:12}{size / 1e9:8.2f}" for name, size in parts.items()]
        lines += [f"  {'together':12}{sum(parts.values()) / 1e9:8.2f}", ""]
    lines += [heading(args)] * bool(fits) + [fitting(row, args) for row in fits]
    missing = [f"{place(row)}  does not fit: {row['reason']}" for row in rows if row["reason"]]
    lines += [""] * bool(fits and missing) + missing
    lines += (
        []
        if fits
        else ["", "no layout fits: more cards, fewer rows, a shorter context, or --quantize"]
    )
    bound = (
        "bounds from data sheets: a real machine is slower" if args.efficiency == 1 else "estimates"
    )
    return lines + ["", f"tensor ranks x stages x copies; {bound}. GB are 1e9 bytes."]


def place(row: dict) -> str:
    return f"{row['tensor']:4} x {row['pipeline']:3} x {row['copies']:5}"


def heading(args) -> str:
    columns = ["s/step"] if args.train else ["ms/token", "s/prompts"]
    columns += ["tokens/s"] + ["$/million"] * bool(args.price)
    return f"{'layout':18}{'GB/card':>9}" + "".join(f"{name:>14}" for name in columns)


def fitting(row: dict, args) -> str:
    used = sum(row["bytes"].values()) / 1e9
    times = (
        [row["step_seconds"]]
        if args.train
        else [1e3 * row["token_seconds"], row["prefill_seconds"]]
    )
    cost = [row["dollars_per_million_tokens"]] if args.price else []
    return f"{place(row):18}{used:9.1f}" + "".join(
        f"{value:14,.2f}" for value in (*times, row["tokens_per_second"], *cost)
    )

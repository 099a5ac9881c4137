"""What several commands ask for: which model, how it is loaded, how its tokens are drawn."""

from argparse import SUPPRESS

import torch

from minillama.chat_formats import format_of
from minillama.checkpoints.files import CheckpointError
from minillama.generation import SamplingParams
from minillama.inference import loading
from minillama.inference.attention_backends import BACKENDS
from minillama.inference.quantization import bfloat16_is_native
from minillama.training.adapters import load_adapter
from minillama.training.finetuning import merge_lora


TORCHRUN = """among ranks, each of which keeps a piece of every matrix of a folder in Hugging Face's
form (chapter 17a):
  torchrun --standalone --nproc-per-node 2 -m minillama {} --model FOLDER
  one rank reads and prints; Ctrl-C ends all of them
"""
DEFAULT_MODEL = "smollm2-135m-instruct"
LEVELS = {"block": True, "max": "max"}
DTYPE_NAMES = ("float32", "bfloat16", "float16")


def add_model(parser) -> None:
    """--model and how it is loaded; `load` reads them."""
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a name, a .gguf file or a folder (%(default)s)"
    )
    parser.add_argument(
        "--adapter", metavar="FOLDER", help="of finetune or peft: a small learned change"
    )
    parser.add_argument(
        "--quantize", choices=loading.QUANTIZE, help="keep the weights in 8 or 4 bits (CPU)"
    )
    parser.add_argument(
        "--compiled", choices=LEVELS, help="compile one block, or everything (max), once, for speed"
    )
    parser.add_argument(
        "--attention", choices=BACKENDS, help="attention backend (naive; if compiled, the fastest)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=DTYPE_NAMES,
        default="float32",
        help="of the weights in memory (%(default)s)",
    )


def load(args):
    """(model, tokenizer) that the arguments of `add_model` name. Errors: `loading.load`'s and
    `load_adapter`'s.
    """
    if lead := getattr(args, "lead", None):  # on several ranks
        return lead(args)
    level = LEVELS.get(args.compiled, False)
    if args.adapter is not None and level:
        raise ValueError(
            "--adapter goes without --compiled: minillama convert --adapter writes a model that "
            "has both"
        )
    model, tokenizer = loading.load(
        args.model,
        dtype=getattr(torch, args.dtype),
        device=args.device,
        quantize=args.quantize,
        compiled=level,
        attention=args.attention,
    )
    if args.adapter is not None:  # an empty name is a mistake, and not the model without an adapter
        load_adapter(model, args.adapter)
        # faster; few levels take no small update
        model = model if args.quantize else merge_lora(model)
    return model, tokenizer


def add_sampling(parser) -> None:
    """How long an answer may be, and how its tokens are drawn; `sampling` reads it."""
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="stop after N (%(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)"
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="draw only from the K likeliest tokens"
    )
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw only from the likeliest tokens that reach P"
    )
    parser.add_argument("--seed", type=int, help="the same seed draws the same tokens")


def sampling(args) -> SamplingParams:
    """How the arguments ask for an answer to be drawn; ValueError if one has no meaning."""
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, not {args.max_new_tokens}")
    if args.seed is not None and not 0 <= args.seed < 2**64:
        raise ValueError(f"--seed must be between 0 and 2**64 - 1, not {args.seed}")
    return SamplingParams(args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed)


def add_renamed(parser, name: str, old: str, **settings) -> None:
    """An option whose old name is understood for a release, and no longer shown."""
    parser.add_argument(name, **settings)
    hidden = settings | {"help": SUPPRESS, "dest": name.strip("-").replace("-", "_")}
    parser.add_argument(old, **(hidden | ({"default": SUPPRESS})))


def add_training_dtype(parser) -> None:
    """--dtype of the products of a training; `training_dtype` reads it."""
    text = "of the products (default: bfloat16 where the processor has instructions for it)"
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help=text)


def training_dtype(args) -> str:
    """What --dtype names, or else what is faster on this processor."""
    return args.dtype or ("bfloat16" if bfloat16_is_native() else "float32")


def chat_layout(args, tokenizer, hint=""):
    """The `ChatFormat` of the model's conversations; CheckpointError, with the hint, says why there
    is none.
    """
    try:
        if tokenizer is not None:
            return format_of(tokenizer)
        why = "it has no tokenizer"
    except ValueError as error:
        why = error
    raise CheckpointError(
        f"{args.model} was not made for chat, or not for one that is known here ({why}){hint}"
    )

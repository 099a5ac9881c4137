"""generate: one prompt, one answer; the answer alone goes to standard output."""

import sys
from argparse import RawDescriptionHelpFormatter
from dataclasses import replace

import torch

from minillama import chat
from minillama.checkpoints.files import CheckpointError
from minillama.commands.options import (
    TORCHRUN,
    add_model,
    add_sampling,
    chat_layout,
    load,
    sampling,
)
from minillama.generation import Statistics, generate
from minillama.model import Llama


DEFAULT_PROMPT = "Explain in three sentences why the sky is blue."
EXAMPLES = """examples:
  minillama generate "Name three rivers in Asia."
  minillama generate --temperature 0.8 --top-p 0.9 --seed 1 "Tell me a story."
  minillama generate --raw "Once upon a time" --max-new-tokens 40
  minillama generate --model path/to/model.gguf - < question.txt
  minillama chat --system "Answer in one sentence."
"""


def add(commands) -> None:
    parser = commands.add_parser(
        "generate",
        help="answer a prompt, token by token",
        epilog=EXAMPLES + "\n" + TORCHRUN.format("generate"),
        formatter_class=RawDescriptionHelpFormatter,
        description="Answer a prompt. The answer goes to standard output, everything else to "
        "standard error.",
    )
    prompt = "default: %(default)s; - reads standard input"
    parser.add_argument("prompt", nargs="?", default=DEFAULT_PROMPT, help=prompt)
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as plain text, without chat format"
    )
    add_model(parser)
    add_sampling(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    params = sampling(args)
    prompt = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    model, tokenizer = load(args)
    ids = encode_prompt(tokenizer, prompt, args)
    stats = Statistics()
    stream = generate(model, ids, stats=stats, params=replace(params, stop_ids=tokenizer.stop_ids))
    for text in tokenizer.decode_stream(stream):
        print(text, end="", flush=True)
    print(flush=True)
    with torch.device("meta"):  # quantized layers have no parameters to count
        count = sum(p.numel() for p in Llama(getattr(model, "whole", model.cfg)).parameters())
    ran = "".join(
        f", {passes} passes {name}"
        for name, passes in model.ran.items()
        if set(model.ran) != {"naive"}
    )
    print(f"[{count:,} parameters, {stats}{ran}]", file=sys.stderr)
    return 0


def encode_prompt(tokenizer, prompt: str, args) -> list[int]:
    """Ids of the prompt, as a chat's first message or, with --raw, as plain text; CheckpointError
    if it cannot be.
    """
    if tokenizer is None:
        raise CheckpointError(f"{args.model} has no tokenizer, so there is no text to continue")
    if args.raw:
        return tokenizer.encode(prompt, bos=tokenizer.bos_id is not None)
    chat_layout(args, tokenizer, "; add --raw to continue the prompt as plain text")
    return chat.encode_dialog(tokenizer, [{"role": "user", "content": prompt}])

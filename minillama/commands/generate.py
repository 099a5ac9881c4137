"""generate: one prompt, one answer; the answer alone goes to standard output."""

import json
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
from minillama.inference.json_schema import JsonSchema
from minillama.inference.patterns import Regex
from minillama.inference.token_masks import TokenMasks
from minillama.model import Llama
from minillama.strict_json import unique


DEFAULT_PROMPT = "Explain in three sentences why the sky is blue."
EXAMPLES = """examples:
  minillama generate "Name three rivers in Asia."
  minillama generate --temperature 0.8 --top-p 0.9 --seed 1 "Tell me a story."
  minillama generate --raw "Once upon a time" --max-new-tokens 40
  minillama generate --regex "(yes|no)" "Is the sky blue? Answer yes or no."
  minillama generate --schema person.json "Invent a person, as JSON." --max-new-tokens 200
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
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--schema", metavar="FILE", help="answer with JSON that fits this JSON Schema (chapter 10a)"
    )
    form.add_argument("--regex", metavar="PATTERN", help="answer with a text of this pattern")
    add_model(parser)
    add_sampling(parser)
    parser.set_defaults(run=run, lead=None)  # runs on several ranks: `ranks` sets how to load


def run(args) -> int:
    params = sampling(args)
    prompt = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    form = wanted_form(args)
    model, tokenizer = load(args)
    ids = encode_prompt(tokenizer, prompt, args)
    stats, answer = Statistics(), ""
    masks = TokenMasks(tokenizer, form) if form else None
    params = replace(params, stop_ids=tokenizer.stop_ids, constraint=masks)
    stream = generate(model, ids, stats=stats, params=params)
    for text in tokenizer.decode_stream(stream):
        print(text, end="", flush=True)
        answer += text
    print(flush=True)
    if form and not form.matches(answer):
        raise ValueError(
            f"the answer was cut off after {params.max_new_tokens} tokens and is not complete; "
            "allow more with --max-new-tokens, or bound its strings with maxLength"
        )
    with torch.device("meta"):  # quantized layers have no parameters to count
        count = sum(p.numel() for p in Llama(getattr(model, "whole", model.cfg)).parameters())
    ran = "".join(
        f", {passes} passes {name}"
        for name, passes in model.ran.items()
        if set(model.ran) != {"naive"}
    )
    print(f"[{count:,} parameters, {stats}{ran}]", file=sys.stderr)
    return 0


def wanted_form(args):
    """What --schema or --regex allow, or None; ValueError if they cannot be read or kept."""
    if args.regex is not None:
        return Regex(args.regex)
    if args.schema is None:
        return None
    try:
        with open(args.schema, encoding="utf-8") as file:
            schema = json.load(file, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{args.schema} is not JSON: {error}") from None
    return JsonSchema(schema)


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

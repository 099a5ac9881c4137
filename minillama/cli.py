"""The command line: fetch, generate, verify. Errors are one line and exit code 2, never a traceback."""

import argparse
import sys
import time

from minillama import chat, hub
from minillama.checkpoints import CheckpointError
from minillama.generation import generate


DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_PROMPT = "Explain in three sentences why the sky is blue."


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        return args.run(args)
    except (hub.FetchError, CheckpointError, ValueError, OSError) as error:
        print(f"minillama: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="minillama", description="Llama 3.1 from scratch: run real weights.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="fetch real weights or a vocabulary by name, once")
    fetch.add_argument("name", help=" or ".join([*hub.ARTEFACTS, "all"]))
    fetch.set_defaults(run=run_fetch)

    gen = commands.add_parser("generate", help="answer a prompt, token by token")
    gen.add_argument("prompt", nargs="?", default=DEFAULT_PROMPT, help=f"default: {DEFAULT_PROMPT}")
    gen.add_argument("--model", default=DEFAULT_MODEL, help="a name, a .gguf file or a folder (default: %(default)s)")
    gen.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    gen.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    gen.add_argument("--top-k", type=int, metavar="K", help="draw only from the K likeliest tokens")
    gen.add_argument("--top-p", type=float, metavar="P", help="draw only from the likeliest tokens that reach P")
    gen.add_argument("--seed", type=int, help="the same seed draws the same tokens")
    gen.add_argument("--raw", action="store_true", help="continue the prompt as plain text, without chat format")
    gen.set_defaults(run=run_generate)

    verify = commands.add_parser("verify", help="compare the real weights' logits with Meta's own code")
    verify.set_defaults(run=run_verify)
    return parser


def run_fetch(args) -> int:
    for name in hub.ARTEFACTS if args.name == "all" else [args.name]:
        print(f"{name}: {hub.fetch(name)} ({hub.known(name).licence})")
    return 0


def run_generate(args) -> int:
    model, tokenizer = hub.load(args.model)
    if tokenizer is None:
        raise CheckpointError(f"{args.model} has no tokenizer, so there is no text to continue")
    if args.raw:
        ids = tokenizer.encode(args.prompt, bos=tokenizer.bos_id is not None)
    else:
        ids = chat.encode_dialog(tokenizer, [{"role": "user", "content": args.prompt}])
    settings = dict(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed)
    times = [time.perf_counter()]

    def timed(stream):
        for id in stream:
            times.append(time.perf_counter())
            yield id

    stream = generate(model, ids, args.max_new_tokens, stop_ids=tokenizer.stop_ids, **settings)
    for text in tokenizer.decode_stream(timed(stream)):
        print(text, end="", flush=True)
    print()
    print(figures(model, len(ids), times), file=sys.stderr)
    return 0


def figures(model, n_prompt: int, times: list[float]) -> str:
    """One line: size, speed of prompt and answer, peak memory."""
    parameters = sum(p.numel() for p in model.parameters())
    parts = [f"{parameters:,} parameters"]
    if len(times) > 1:
        parts.append(f"prompt {n_prompt / (times[1] - times[0]):.0f} tokens/s")
    if len(times) > 2:
        parts.append(f"answer {(len(times) - 2) / (times[-1] - times[1]):.1f} tokens/s")
    if peak := peak_memory():
        parts.append(f"peak memory {peak / 1e9:.2f} GB")
    return "[" + ", ".join(parts) + "]"


def peak_memory() -> int | None:
    """Most bytes this process ever had in memory, or None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_verify(args) -> int:
    raise NotImplementedError

"""The command line: fetch, generate, chat, verify, convert. Mistakes are one line and exit code 2, no traceback."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from minillama import __version__, chat, hub, repository, verify
from minillama.checkpoints import CheckpointError
from minillama.generation import Statistics, check_settings, generate
from minillama.hugging_face import save_hugging_face
from minillama.meta import save_meta
from minillama.model import Llama


DTYPES = ("float32", "bfloat16", "float16")
LEVELS = {"block": True, "max": "max"}
DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_PROMPT = "Explain in three sentences why the sky is blue."
EXAMPLES = """examples:
  minillama generate "Name three rivers in Asia."
  minillama generate --temperature 0.8 --top-p 0.9 --seed 1 "Tell me a story."
  minillama generate --raw "Once upon a time" --max-new-tokens 40
  minillama generate --model path/to/model.gguf - < question.txt
  minillama chat --system "Answer in one sentence."
"""
CHAT_HELP = "/system TEXT  /reset  /save FILE  /load FILE; Ctrl-C stops an answer, Ctrl-D ends the chat"
TOOLS_HELP = "let a Llama 3.1 model run Python on this computer, each time after you agree; it is no sandbox"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    warnings.formatwarning = lambda message, *_, **__: f"minillama: {message}\n"
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:  # whoever read our output has enough: `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (hub.FetchError, CheckpointError, ValueError, OSError) as error:
        print(f"minillama: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="minillama", description="Llama 3.1 from scratch: run real weights.", epilog=EXAMPLES, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"minillama {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_file_commands(commands)
    gen = commands.add_parser(
        "generate", help="answer a prompt, token by token", epilog=EXAMPLES, formatter_class=raw,
        description="Answer a prompt. The answer goes to standard output, everything else to standard error.",
    )  # fmt: skip
    gen.add_argument("prompt", nargs="?", default=DEFAULT_PROMPT, help="default: %(default)s; - reads standard input")
    gen.add_argument("--raw", action="store_true", help="continue the prompt as plain text, without chat format")
    gen.set_defaults(run=run_generate)

    talk = commands.add_parser("chat", help="talk with the model, turn by turn", epilog=CHAT_HELP)
    talk.add_argument("--system", default="", metavar="TEXT", help="the system message")
    talk.add_argument("--tools", choices=["python"], help=TOOLS_HELP)
    talk.set_defaults(run=run_chat)
    for each in (gen, talk):
        each.add_argument("--model", default=DEFAULT_MODEL, help="a name, a .gguf file or a folder (%(default)s)")
        each.add_argument("--quantize", choices=hub.QUANTIZE, help="keep the weights in 8 or 4 bits (CPU)")
        each.add_argument("--compiled", choices=LEVELS, help="compile one block, or everything (max), once, for speed")
        each.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="stop after N (%(default)s)")
        each.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
        each.add_argument("--top-k", type=int, metavar="K", help="draw only from the K likeliest tokens")
        each.add_argument("--top-p", type=float, metavar="P", help="draw only from the likeliest tokens that reach P")
        each.add_argument("--seed", type=int, help="the same seed draws the same tokens")
    return parser


def add_file_commands(commands) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    fetch = commands.add_parser(
        "fetch", help="fetch real weights or a vocabulary by name, once", epilog=repository.HELP, formatter_class=raw
    )
    fetch.add_argument("name", help=", ".join([*hub.ARTEFACTS, "all (both)", "or ORG/NAME at Hugging Face"]))
    fetch.set_defaults(run=run_fetch)

    check = commands.add_parser("verify", help="check a checkpoint, and compare it with Meta's code and transformers")
    check.add_argument("model", nargs="?", default=DEFAULT_MODEL, help="a name, a .gguf file or a folder (%(default)s)")
    check.set_defaults(run=run_verify)

    change = commands.add_parser(
        "convert", help="write any checkpoint as a folder that others read",
        description="Write a checkpoint as a folder of Hugging Face's form, which most programs read, or of Meta's. "
        "An older checkpoint there is replaced when the new one is complete; a folder with other files is left alone.",
    )  # fmt: skip
    change.add_argument("source", help="a name, a .gguf file or a folder")
    change.add_argument("folder", help="where to write")
    change.add_argument("--format", choices=["hugging-face", "meta"], default="hugging-face", help="(%(default)s)")
    change.add_argument("--dtype", choices=DTYPES, help="of the numbers (the source's; float32 if it is quantized)")
    change.set_defaults(run=run_convert)


def run_fetch(args) -> int:
    for name in hub.ARTEFACTS if args.name == "all" else [args.name]:
        path = hub.fetch(name)
        print(f"{name}: {path}" + (f" ({hub.ARTEFACTS[name].licence})" if name in hub.ARTEFACTS else ""))
    return 0


def sampling(args) -> dict:
    """The settings of `generate` that the arguments ask for; ValueError if one has no meaning."""
    check_settings(args.temperature, args.top_k, args.top_p)
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, not {args.max_new_tokens}")
    if args.seed is not None and not 0 <= args.seed < 2**64:
        raise ValueError(f"--seed must be between 0 and 2**64 - 1, not {args.seed}")
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    return {name: getattr(args, name) for name in names}


def run_generate(args) -> int:
    settings = sampling(args)
    prompt = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    model, tokenizer = hub.load(args.model, quantize=args.quantize, compiled=LEVELS.get(args.compiled, False))
    ids = encode_prompt(tokenizer, prompt, args)
    stats = Statistics()
    stream = generate(model, ids, stop_ids=tokenizer.stop_ids, stats=stats, **settings)
    for text in tokenizer.decode_stream(stream):
        print(text, end="", flush=True)
    print(flush=True)
    with torch.device("meta"):  # quantized layers have no parameters to count
        count = sum(p.numel() for p in Llama(model.cfg).parameters())
    print(f"[{count:,} parameters, {stats}]", file=sys.stderr)
    return 0


def encode_prompt(tokenizer, prompt: str, args) -> list[int]:
    """Ids of the prompt, as a chat's first message or, with --raw, as plain text; CheckpointError if it cannot be."""
    if tokenizer is None:
        raise CheckpointError(f"{args.model} has no tokenizer, so there is no text to continue")
    if args.raw:
        return tokenizer.encode(prompt, bos=tokenizer.bos_id is not None)
    if not made_for_chat(tokenizer):
        raise CheckpointError(f"{args.model} was not made for chat; add --raw to continue the prompt as plain text")
    return chat.encode_dialog(tokenizer, [{"role": "user", "content": prompt}])


def made_for_chat(tokenizer) -> bool:
    return tokenizer is not None and bool({"<|start_header_id|>", "<|im_start|>"} & tokenizer.specials.keys())


def run_chat(args) -> int:
    settings = sampling(args)
    model, tokenizer = hub.load(args.model, quantize=args.quantize, compiled=LEVELS.get(args.compiled, False))
    if not made_for_chat(tokenizer):
        raise CheckpointError(f"{args.model} was not made for chat")
    if args.tools and "<|python_tag|>" not in tokenizer.specials:
        raise CheckpointError(f"{args.model} was not trained to call tools; --tools wants Llama 3.1")
    tools = {"code_interpreter": ask_and_run} if args.tools else {}
    messages = obey(f"/system {args.system}", [], tokenizer, tools)
    with contextlib.suppress(ImportError):  # arrow keys and a history of lines, where the system has them
        import readline  # noqa: F401
    print(CHAT_HELP, file=sys.stderr)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
            if line.startswith("/"):
                messages = obey(line, messages, tokenizer, tools)
            elif line:
                messages = answer(model, tokenizer, [*messages, {"role": "user", "content": line}], settings, tools)
        except EOFError:
            print(end="\n" if sys.stdin.isatty() else "")
            return 0
        except KeyboardInterrupt:
            print("\n[Ctrl-D ends the chat]", file=sys.stderr)
        except ValueError as error:  # the chat goes on as it was
            print(f"minillama: {error}", file=sys.stderr)


def ask_and_run(code: str) -> str:
    """The interpreter of `chat --tools python`: the code has been printed, and runs if the user says so."""
    if input("run this on your computer, without a sandbox? [y/N] ").strip().lower() not in ("y", "yes"):
        return "error: the user did not let this run"
    result = chat.PythonInterpreter()(code)
    print(result)
    return result


def answer(model, tokenizer, messages: list[dict], settings: dict, tools: dict) -> list[dict]:
    """Print the answer as it comes; the conversation with it, without the oldest turns if they did not fit."""
    kept, dropped = chat.fit(tokenizer, messages, model.cfg.max_seq_len - settings["max_new_tokens"])
    if dropped:
        what = f"{len(dropped)} oldest messages, from {dropped[0]['content'][:40]!r} on"
        print(f"[dropped the {what}: the context holds {model.cfg.max_seq_len} tokens]", file=sys.stderr)
    said = []

    def reply(ids):
        said.clear()
        for text in tokenizer.decode_stream(heard(generate(model, ids, **settings), tokenizer.stop_ids, said)):
            print(text, end="", flush=True)
        print(flush=True)
        return list(said)

    try:
        told = chat.run_dialog(reply, tokenizer, kept, tools)
    except KeyboardInterrupt:
        print("\n[stopped]", flush=True)
        return [*kept, {"role": "assistant", "content": tokenizer.decode(said)}] if said else messages[:-1]
    return [each if each.get("calls") else {"role": each["role"], "content": each["content"]} for each in told]


def heard(stream, stop_ids, said: list[int]):
    """The ids until one of stop_ids; `said` gets all of them, that one too."""
    for id in stream:
        said.append(id)
        if id in stop_ids:
            return
        yield id


def obey(line: str, messages: list[dict], tokenizer, tools: dict) -> list[dict]:
    """The conversation after a line that begins with a slash."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    system = [message for message in messages[:1] if message["role"] == "system"]
    if command == "/system":
        text = chat.system_prompt(rest, interpreter=bool(tools))
        return [{"role": "system", "content": text}] * bool(text) + messages[len(system) :]
    if command == "/reset" and not rest:
        return system
    if command not in ("/save", "/load") or not rest:
        raise ValueError(f"{line[:40]!r} is none of: {CHAT_HELP}")
    try:
        return save_chat(Path(rest), messages) if command == "/save" else load_chat(Path(rest), tokenizer)
    except OSError as error:
        raise ValueError(f"{rest}: {error.strerror}") from None


def save_chat(path: Path, messages: list[dict]) -> list[dict]:
    """Write the conversation as JSON, whole or not at all; returns it."""
    text = json.dumps(messages, ensure_ascii=False, indent=1) + "\n"
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    print(f"[{len(messages)} messages saved to {path}]", file=sys.stderr)
    return messages


def load_chat(path: Path, tokenizer) -> list[dict]:
    """The conversation in a file; ValueError if it holds anything else."""
    try:
        messages = [
            {"role": each["role"], "content": each["content"]}
            | {key: each[key] for key in ("calls", "tag", "end") if key in each}
            for each in json.loads(path.read_bytes())
        ]
        chat.encode_dialog(tokenizer, messages)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f'{path} is no conversation: [{{"role": ..., "content": ...}}, ...]') from None
    print(f"[{len(messages)} messages from {path}]", file=sys.stderr)
    return messages


def run_verify(args) -> int:
    return verify.verify(args.model)


def run_convert(args) -> int:
    model, tokenizer = hub.load(args.source, dtype=getattr(torch, args.dtype) if args.dtype else None)
    save = save_meta if args.format == "meta" else save_hugging_face
    save(model, tokenizer, args.folder)
    count, dtype = sum(p.numel() for p in model.parameters()), model.norm.weight.dtype
    without = "" if tokenizer else ", and no tokenizer, as the source has none"
    print(f"{args.folder}: {count:,} parameters in {str(dtype).removeprefix('torch.')}{without}")
    return 0

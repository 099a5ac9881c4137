"""chat: a conversation, turn by turn, that can be saved and goes on after a mistake."""

import contextlib
import json
import os
import select
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from minillama import chat
from minillama.checkpoints.atomic import write_whole
from minillama.checkpoints.files import CheckpointError
from minillama.commands.options import (
    TORCHRUN,
    add_model,
    add_sampling,
    chat_layout,
    load,
    sampling,
)
from minillama.generation import SamplingParams, generate


CHAT_HELP = (
    "/system TEXT  /reset  /save FILE  /load FILE; Ctrl-C stops an answer, Ctrl-D ends the chat"
)
TOOLS_HELP = (
    "let a Llama 3.1 model run Python on this computer, each time after you agree; it is no sandbox"
)


def add(commands) -> None:
    parser = commands.add_parser(
        "chat", help="talk with the model, turn by turn",
        epilog=f"{CHAT_HELP}\npasted lines are one message\n\n{TORCHRUN.format('chat')}",
        formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--system", default="", metavar="TEXT", help="the system message")
    parser.add_argument("--tools", choices=["python"], help=TOOLS_HELP)
    add_model(parser)
    add_sampling(parser)
    parser.set_defaults(run=run, lead=None)  # runs on several ranks: `ranks` sets how to load


def run(args) -> int:
    params = sampling(args)
    model, tokenizer = load(args)
    layout = chat_layout(args, tokenizer)
    if args.tools and (layout.name != "llama3" or "<|python_tag|>" not in tokenizer.specials):
        raise CheckpointError(
            f"{args.model} was not trained to call tools; --tools wants Llama 3.1"
        )
    tools = {"code_interpreter": ask_and_run} if args.tools else {}
    messages = run_command(f"/system {args.system}", [], tokenizer, tools)
    edit_lines()
    print(
        CHAT_HELP + (" (on several ranks Ctrl-C does, too)" if args.lead else ""), file=sys.stderr
    )
    while True:
        try:
            line = read_message()
            if line.startswith("/"):
                messages = run_command(line, messages, tokenizer, tools)
            elif line:
                messages = answer(
                    model, tokenizer, [*messages, {"role": "user", "content": line}], params, tools
                )
        except EOFError:
            print(end="\n" if sys.stdin.isatty() else "")
            return 0
        except KeyboardInterrupt:
            print("\n[Ctrl-D ends the chat]", file=sys.stderr)
        except ValueError as error:  # the chat goes on as it was
            print(f"minillama: {error}", file=sys.stderr)


def edit_lines() -> None:
    """Arrow keys, a history of lines, and pasted lines marked as one text, where the system and the
    terminal can.
    """
    with contextlib.suppress(ImportError):
        import readline

        if os.environ.get("TERM", "dumb") != "dumb":
            readline.parse_and_bind("set enable-bracketed-paste on")


def read_message() -> str:
    """What was typed or, at a terminal, pasted: lines that come at once are one message. EOFError
    at the end.
    """
    lines = [input("> " if sys.stdin.isatty() else "")]
    while sys.stdin.isatty() and not lines[0].startswith("/") and more_is_waiting():
        lines.append(input())
    return "\n".join(lines).strip()


def more_is_waiting() -> bool:
    """Whether a terminal has more to read, as it has in the middle of a paste."""
    try:
        return bool(select.select([sys.stdin], [], [], 0.05)[0])
    except (OSError, ValueError):  # Windows cannot say
        return False


def ask_and_run(code: str) -> str:
    """The interpreter of `chat --tools python`: the code has been printed, and runs if the user
    says so.
    """
    if input("run this on your computer, without a sandbox? [y/N] ").strip().lower() not in (
        "y",
        "yes",
    ):
        return "error: the user did not let this run"
    result = chat.PythonInterpreter()(code)
    print(result)
    return result


def answer(
    model, tokenizer, messages: list[dict], params: SamplingParams, tools: dict
) -> list[dict]:
    """Print the answer as it comes; the conversation with it, without the oldest turns if they did
    not fit.
    """
    kept, dropped = chat.fit(tokenizer, messages, model.cfg.max_seq_len - params.max_new_tokens)
    if dropped:
        what = f"{len(dropped)} oldest messages, from {dropped[0]['content'][:40]!r} on"
        print(
            f"[dropped the {what}: the context holds {model.cfg.max_seq_len} tokens]",
            file=sys.stderr,
        )
    said = []

    def reply(ids):
        said.clear()
        for text in tokenizer.decode_stream(
            until_stop(generate(model, ids, params=params), tokenizer.stop_ids, said)
        ):
            print(text, end="", flush=True)
        print(flush=True)
        return list(said)

    try:
        dialog = chat.run_dialog(reply, tokenizer, kept, tools)
    except KeyboardInterrupt:
        print("\n[stopped]", flush=True)
        return (
            [*kept, {"role": "assistant", "content": tokenizer.decode(said)}]
            if said
            else messages[:-1]
        )
    return [
        each if each.get("calls") else {"role": each["role"], "content": each["content"]}
        for each in dialog
    ]


def until_stop(stream, stop_ids, said: list[int]):
    """The ids until one of stop_ids; `said` gets all of them, that one too."""
    for id in stream:
        said.append(id)
        if id in stop_ids:
            return
        yield id


def run_command(line: str, messages: list[dict], tokenizer, tools: dict) -> list[dict]:
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
    path = Path(os.path.expanduser(rest))
    try:
        return save_chat(path, messages) if command == "/save" else load_chat(path, tokenizer)
    except OSError as error:
        raise ValueError(f"{rest}: {error.strerror}") from None


def save_chat(path: Path, messages: list[dict]) -> list[dict]:
    """Write the conversation as JSON, whole or not at all; returns it."""
    text = json.dumps(messages, ensure_ascii=False, indent=1) + "\n"
    write_whole(path, text.encode("utf-8", errors="replace"))
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
        raise ValueError(
            f'{path} is no conversation: [{{"role": ..., "content": ...}}, ...]'
        ) from None
    print(f"[{len(messages)} messages from {path}]", file=sys.stderr)
    return messages

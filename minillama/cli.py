"""The command line; its commands are minillama/commands. Mistakes are one line and exit code 2, no
traceback.
"""

import argparse
import contextlib
import os
import sys
import warnings

from minillama import __version__
from minillama.checkpoints import hub
from minillama.checkpoints.files import CheckpointError
from minillama.commands import chat, evaluate, files, finetune, generate, plan, train


COMMANDS = (
    files,
    generate,
    chat,
    train,
    finetune,
    evaluate,
    plan,
)  # in the order of `minillama --help`


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def exit(self, status=0, message=None):
        super().exit(status if speaks() else 0, message)

    def _print_message(self, message, file=None):
        if speaks():
            super()._print_message(message, file)
            file.flush()  # or a full disk would be noticed only at Python's end


def among_ranks() -> bool:
    """Whether torchrun has started several of us (chapter 17a)."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def speaks() -> bool:
    """Whether this process is the one that prints: of several, only rank 0."""
    return not among_ranks() or os.environ["RANK"] == "0"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    open_streams()
    warnings.formatwarning = lambda message, *_, **__: f"minillama: {message}\n"
    try:
        code = run(build_parser().parse_args(argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has enough: `| head -1`
        return 0
    except (hub.FetchError, CheckpointError, ValueError, OSError) as error:
        complain(f"minillama: {error}")
        return 2
    except KeyboardInterrupt:
        complain("\nstopped")
        return 130
    finally:
        give_up_what_cannot_be_written()


def run(args) -> int:
    """What was asked for, by one process or several; returns the exit code."""
    if among_ranks():
        from minillama.commands import ranks  # takes seconds, and is rarely wanted

        return ranks.run(args)
    return args.run(args)


def open_streams() -> None:
    """Standard streams in UTF-8; the null device for one that is closed, or None in a program
    without a console.
    """
    # subtle: each gets the lowest free number
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


def complain(text: str) -> None:
    """A line on standard error, if it can be written."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def give_up_what_cannot_be_written() -> None:
    """Send the rest of the output nowhere, or Python would try again at its end, and fail with many
    lines.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="minillama",
        description="Llama 3.1 from scratch: run real weights.",
        epilog=generate.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minillama {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser

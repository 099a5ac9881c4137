"""The command line; its commands are minillama/commands. Mistakes are one line and exit code 2, no traceback."""

import argparse
import os
import sys
import warnings

from minillama import __version__, hub
from minillama.checkpoints import CheckpointError
from minillama.commands import chat, files, finetune, generate, plan, train


COMMANDS = (files, generate, chat, train, finetune, plan)  # in the order of `minillama --help`


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def exit(self, status=0, message=None):
        super().exit(status if speaks() else 0, message)

    def _print_message(self, message, file=None):
        if speaks():
            super()._print_message(message, file)


def among_ranks() -> bool:
    """Whether torchrun has started several of us (chapter 17a)."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def speaks() -> bool:
    """Whether this process is the one that prints: of several, only rank 0."""
    return not among_ranks() or os.environ["RANK"] == "0"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    warnings.formatwarning = lambda message, *_, **__: f"minillama: {message}\n"
    args = build_parser().parse_args(argv)
    try:
        if among_ranks():
            from minillama.commands import ranks  # takes seconds, and is rarely wanted

            return ranks.run(args)
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

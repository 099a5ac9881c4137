"""Programs that a model wrote, run against their tests: each in a process of its own, confined as
students' work is (course/confine.py), which is no sandbox.

python -m course.run_code FILE    what `minillama evaluate --task human-eval --out FILE` has kept
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from course.confine import Limits, confine
from course.export import ROOT


SECONDS, MEMORY = 5, 1 << 30  # for each program


def program(item, completion: str) -> str:
    """Prompt, what the model wrote, and the test that calls it; `item` is one of
    minillama.evaluation.tasks.
    """
    return f"{item.prompt.rstrip()}{completion}\n{item.test}"


def run_program(text: str, seconds: float = SECONDS) -> str:
    """ "passed", "timed out", or the name of the error that ended the program.

    subtle: an exit status could be had by `sys.exit()` before any test; the word that says that the
    end was reached is drawn anew and never shown to the program.
    """
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        env = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", "-m", "course.run_code", "--child", folder],
            cwd=folder,
            env=env | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            encoding="utf-8",
        )
        try:
            said, _ = process.communicate(json.dumps([text, word]), timeout=seconds + 5)
        except subprocess.TimeoutExpired:
            said = "timed out"
        finally:
            with contextlib.suppress(OSError):  # it, and whatever it has started
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.wait()
    if said == word:
        return "passed"
    if process.returncode == -getattr(signal, "SIGXCPU", 0):
        return "timed out"
    return said if said.isidentifier() or said == "timed out" else "ended early"


def child(folder: str) -> None:
    """Run the program of standard input, and say how it ended."""
    text, word = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nowhere, stream)
    confine(Limits(memory=MEMORY, seconds=SECONDS, file=1 << 20), Path(folder))
    try:
        exec(compile(text, "program", "exec"), {"__name__": "program"})
    except BaseException as error:  # SystemExit and KeyboardInterrupt too
        word = type(error).__name__
    answer.write(word)
    answer.flush()
    os._exit(0)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course.run_code", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        child(args.file)
        return 0
    from minillama.evaluation import runs, uncertainty

    try:
        header, *rows = map(json.loads, Path(args.file).read_text(encoding="utf-8").splitlines())
        items = runs.read_task(header["task"])
        ended = [run_program(program(items[row["item"]], row["said"])) for row in rows]
        mean, error = uncertainty.mean_and_error([float(each == "passed") for each in ended])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        print(f"{args.file}: not what evaluate --out keeps of programs ({error})", file=sys.stderr)
        return 2
    for row, each in zip(rows, ended, strict=True):
        print(f"{row['item']}: {each}")
    print(f"pass@1 {mean:.3f} ± {error:.3f} of {len(rows)} problems")
    return 0


if __name__ == "__main__":
    sys.exit(main())

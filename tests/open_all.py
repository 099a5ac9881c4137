"""Loads every checkpoint whose path stands on standard input; a JSON line for each. helpers.py runs
it.

A process of its own, so that memory can be measured and everything that is touched can be seen.
"""

import json
import sys
import time
import warnings
from pathlib import Path

from minillama.checkpoints.files import CheckpointError
from minillama.inference.loading import load


WATCHED = (
    "open",
    "os.",
    "shutil.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "exec",
    "compile",
    "pickle.find_class",
)
RESET = Path("/proc/self/clear_refs")
events = []


def watch(event: str, arguments: tuple) -> None:
    if event.startswith(WATCHED):
        events.append((event, *map(str, arguments[:2])))


def memory(field: str) -> int:
    """Bytes: VmHWM is the most since it was last reset, VmRSS what is in use now; 0 where the
    system is not Linux.
    """
    if not RESET.exists():
        return 0
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split(field + ":")[1].split()[0])


def attempt(path: str) -> dict:
    """What loading it did: the error's type and text (None if it loaded), seconds, extra bytes,
    what was touched.
    """
    if RESET.exists():
        RESET.write_text("5", encoding="utf-8")  # the peak starts anew
    before, start = memory("VmRSS"), time.process_time()
    events.clear()
    try:
        load(path)
        error = None
    except Exception as caught:
        error = caught
    touched, seconds = [*events], time.process_time() - start
    return {
        "path": path,
        "error": type(error).__name__,
        "text": str(error),
        "known": isinstance(error, CheckpointError),
        "seconds": seconds,
        "bytes": memory("VmHWM") - before,
        "touched": touched,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    paths = sys.stdin.read().splitlines()
    load(paths[0])  # a good one: whatever is imported on first use is imported now
    "".encode("cp437")  # the names in an old zip archive
    sys.addaudithook(watch)
    for path in paths[1:]:
        print(json.dumps(attempt(path)), flush=True)

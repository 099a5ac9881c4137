"""Files with one JSON value per line (packed by gzip, if they are called .gz), as people write
them: every bad line is named, and may be left out.
"""

import codecs
import gzip
import json
from pathlib import Path

from minillama.strict_json import unique


MAX_LINE_BYTES = 1_000_000  # bytes of a line
MAX_SHOWN = 3  # bad lines that a message shows


def no_constant(name: str):
    """NaN and Infinity, which Python would read and JSON does not have."""
    raise ValueError(f"{name} is no number of JSON")


JSON = json.JSONDecoder(object_pairs_hook=unique, parse_constant=no_constant)


def read_jsonl(path, parse, skip_bad: bool = False) -> tuple[list, list[str]]:
    """(what `parse` makes of every line's value, a complaint for every bad line); empty lines do
    not count.

    A line is bad if it is not JSON in UTF-8 of at most MAX_LINE_BYTES bytes, or if parse raises
    ValueError. ValueError that names the first bad lines unless skip_bad, and in any case if no
    good one is left; OSError.
    """
    values, complaints = [], []
    path = Path(path)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, line in enumerate(lines(file), 1):
            try:
                if line is None:
                    raise ValueError(f"longer than {MAX_LINE_BYTES:,} bytes")
                if text := line.decode("utf-8").strip():
                    values.append(parse(JSON.decode(text)))
            except RecursionError:
                complaints.append(f"line {number}: nested too deeply")
            except json.JSONDecodeError as error:
                complaints.append(f"line {number}: {error.msg} at column {error.colno}")
            except UnicodeDecodeError as error:
                complaints.append(f"line {number}: not UTF-8 at byte {error.start}")
            except ValueError as error:
                complaints.append(f"line {number}: {error}")
    if complaints and (not skip_bad or not values):
        raise ValueError(f"{path}: {summarize(complaints)}")
    if not values:
        raise ValueError(f"{path} is empty")
    return values, complaints


def lines(file):
    """The lines of a binary file, without a byte order mark; None for one that is too long, which
    is not kept.
    """
    first = True
    while line := file.readline(MAX_LINE_BYTES + 2):
        if len(line) > MAX_LINE_BYTES + 1:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            yield None
        else:
            yield line.removeprefix(codecs.BOM_UTF8) if first else line
        first = False


def summarize(complaints: list[str]) -> str:
    """The first complaints, and how many more there are, on one line."""
    shown = "; ".join(" ".join(complaint.split())[:200] for complaint in complaints[:MAX_SHOWN])
    return shown + (
        f"; and {len(complaints) - MAX_SHOWN} more bad lines" if len(complaints) > MAX_SHOWN else ""
    )

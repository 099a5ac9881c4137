"""Checkpoints: one model, several file formats, equal logits.

Written by notebooks/07_checkpoints.ipynb: edit it there.
"""

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

import torch

from minillama.strict_json import unique


# bytes of a header or of a JSON file; the largest that Llama 3.1 comes with has about 17 million
LIMIT = 32_000_000


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: one line that says what is wrong, whatever the file put
    into it.
    """

    def __init__(self, message):
        super().__init__(" ".join(str(message).split())[:1000])


@contextmanager
def reading(what: str):
    """Whatever a value of an unexpected kind sets off inside becomes a CheckpointError that says
    where.
    """
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{what} has no {error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{what} is malformed: {error}") from None


class RawFile:
    """A file read in slices: never past its end, and never after it has changed."""

    def __init__(self, path: Path):
        if not path.is_file():  # subtle: opening a named pipe would block for ever
            raise CheckpointError(f"No such file: {path.name}")
        self.path, stat = path, path.stat()
        self.size, self.modified = stat.st_size, stat.st_mtime_ns
        if not self.size:
            raise CheckpointError(f"{path.name} is empty")

    def read(self, at: int, size: int) -> torch.Tensor:
        """The bytes at, ..., at + size - 1 in memory of their own: (size,) uint8"""
        if at + size > self.size:
            raise CheckpointError(
                f"{self.path.name} should have {at + size} bytes, but has {self.size}: truncated?"
            )
        data = torch.empty(size, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(at)
            complete, stat = file.readinto(data.numpy()) == size, os.fstat(file.fileno())
        if not complete or (stat.st_size, stat.st_mtime_ns) != (self.size, self.modified):
            raise CheckpointError(f"{self.path.name} changed while it was read")
        return data

    def read_small(self, at: int, size: int) -> bytes:
        """Bytes that describe something, so that there cannot be very many of them."""
        if size > LIMIT:
            raise CheckpointError(
                f"{self.path.name} describes itself in {size} bytes; at most {LIMIT} are read"
            )
        return self.read(at, size).numpy().tobytes()


def parse_json(data: bytes, name: str) -> dict:
    """A JSON object, refusing what most parsers let pass: a repeated key, of which the last would
    win.
    """
    with reading(f"the JSON of {name}"):
        # Llama 3's tokenizer has about 970,000 commas
        if data.count(b",") > 1_200_000 or data.count(b"{") > 100_000:
            raise ValueError("it has more items than any Llama's")
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        return value


def inside(folder: Path, name: str) -> Path:
    """The file of that plain name, which must lie in the folder (or in the blobs of a Hugging Face
    cache).
    """
    plain = isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,200}", name)
    home, path = (Path(os.path.realpath(p)) for p in (folder, folder / (name if plain else "")))
    # or a folder in one
    snapshots = [up.parent for up in (home, home.parent) if up.parent.name == "snapshots"]
    allowed = {home, *(snapshot.parent / "blobs" for snapshot in snapshots)}
    if not plain or path.parent not in allowed:
        raise CheckpointError(f"only files inside the folder are read, not {name!r}")
    return path


def read_json(folder: Path, name: str) -> dict:
    """The JSON object in a file of the folder."""
    file = RawFile(inside(folder, name))
    return parse_json(file.read_small(0, file.size), name)

"""Files and folders that appear whole or not at all: chapter 7 says why."""

import ctypes
import os
import re
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from minillama.checkpoints.files import CheckpointError


FILES = re.compile(  # of a checkpoint, which a new one may replace
    r"(model|consolidated)[\w.-]*\.(safetensors|index\.json|pth)|(params|config|generation_config)\.json"
    r"|(tokenizer|tokenizer_config|special_tokens_map)\.json|tokenizer\.model|chat_template\.jinja"
)


def write_whole(path: Path, content: bytes) -> None:
    """Put a file there whole or not at all: a kill, or a full disk, leaves the old one. OSError."""
    partial = path.parent / f".{path.name}.partial"
    try:
        partial.write_bytes(content)
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def put_in_place(partial: Path, target: Path) -> None:
    """Give a finished file or folder its name, in one step, once it has reached the disk. OSError.

    A file of that name is replaced; for a folder the name must be free.
    """
    flush_all(partial)
    os.replace(partial, target)
    flush(target.parent)


@contextmanager
def new_folder(folder, replaces: re.Pattern = FILES):
    """A folder to write into, which takes its name at the end: a kill at any moment leaves the old
    one or the new.

    replaces: the names of the files that may be lost. CheckpointError if the folder cannot be
    written, and if the name is taken by anything but an older folder of such files.
    """
    target = Path(folder).resolve()
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        check_replaceable(target, replaces)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        flush_all(partial)
        check_replaceable(target, replaces)  # again: writing may have taken an hour
        (swap if target.exists() else os.rename)(partial, target)
        flush(target.parent)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # what is not finished, or what was replaced


@contextmanager
def new_file(path, force=False):
    """A file to write bytes into, which takes its name at the end: a kill at any moment leaves what
    was there before, or the new one.

    force: whether a file of that name may be lost. CheckpointError if it may not, and if the file
    cannot be written.
    """
    target = Path(path).resolve()
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        check_free(target, force)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            yield file
        check_free(target, force)  # again: writing may have taken an hour
        put_in_place(partial, target)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_free(target: Path, force=False) -> None:
    """CheckpointError if the name is a folder's or, unless forced, a file's."""
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder: name a file in it")
    if os.path.lexists(target) and not force:
        raise CheckpointError(f"{target} exists: choose another name, or --force to replace it")


def check_replaceable(target: Path, replaces: re.Pattern) -> None:
    """CheckpointError unless the name is free, or that of a folder with nothing in it but files of
    these names.
    """
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file: choose another name for the folder")
    if others := [
        path.name for path in target.glob("*") if path.is_dir() or not replaces.fullmatch(path.name)
    ]:
        raise CheckpointError(
            f"{target} holds {min(others)!r}, which would be lost: choose another folder"
        )


def flush_all(path: Path) -> None:
    """Wait until a file, or a folder with its files, has reached the disk."""
    for each in (*path.iterdir(), path) if path.is_dir() else (path,):
        flush(each)


def flush(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, has reached the disk."""
    if os.name == "nt" and path.is_dir():  # Windows keeps its lists in order by itself
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def swap(a: Path, b: Path) -> None:
    """Two folders exchange their names: on Linux and macOS in one step, elsewhere in three."""
    one, other = os.fsencode(a), os.fsencode(b)
    for name, arguments in (
        ("renameat2", (-100, one, -100, other, 2)),
        ("renamex_np", (one, other, 2)),
    ):
        # this system, or this disk, has no such call
        with suppress(OSError, TypeError, AttributeError):
            if getattr(ctypes.CDLL(None), name)(*arguments) == 0:
                return
    old = b.with_name(a.name + ".old")
    for before, after in ((b, old), (a, b), (old, a)):
        os.rename(before, after)

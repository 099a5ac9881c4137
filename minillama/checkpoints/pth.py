"""7d. PTH: a file that is a program.

Written by notebooks/07d_pth.ipynb: edit it there.
"""

import io
import pickletools
import zipfile
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from minillama.checkpoints.files import CheckpointError, RawFile, reading
from minillama.checkpoints.tensors import StoredTensor, n_bytes, read_bytes, read_tensor


@dataclass(frozen=True)
class View:
    """A tensor as a program describes it: part of a storage ("storage", kind, entry, device, number
    of elements).

    offset and stride count elements of the storage. Nothing of this has been checked.
    """

    storage: tuple
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def rebuild_tensor(storage, offset, shape, stride, needs_gradient, hooks, metadata=None) -> View:
    """Stands in for torch._utils._rebuild_tensor_v2, and only records its arguments."""
    return View(storage, offset, shape, stride)


ALLOWED_GLOBALS = {  # all that a program may ask for by name, and what it gets
    "torch._utils _rebuild_tensor_v2": rebuild_tensor,
    "torch._utils _rebuild_parameter": lambda view, needs_gradient, hooks: view,
    "collections OrderedDict": lambda: {},
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
}
CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "EMPTY_TUPLE": ()}
MAX_INSTRUCTIONS = 200_000  # instructions; the largest file of Llama 3.1 has about 35,000


def fill(target: dict, items: list) -> None:
    """Put keys and values, one after another, into a dictionary that the program has made."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(target) is not dict or type(key) is not str or key in target:
            raise ValueError("a name in its program is no text, or comes twice")
        target[key] = value


def run_pickle(program: bytes):
    """What a pickle describes, run by a machine that can do nothing else. ValueError, LookupError,
    TypeError.
    """
    stack, outer, memory = [], [], {}
    for step, (instruction, value, _) in enumerate(pickletools.genops(program)):
        if step == MAX_INSTRUCTIONS:
            raise ValueError(f"its program has more than {MAX_INSTRUCTIONS} instructions")
        match instruction.name:
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(value)
            case "NEWTRUE" | "NEWFALSE" | "NONE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[instruction.name])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(instruction.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "BINPUT" | "LONG_BINPUT":
                memory[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memory[value])
            case "SETITEM":
                items = [stack.pop(), stack.pop()][::-1]
                fill(stack[-1], items)
            case "SETITEMS":
                items, stack = stack, outer.pop()
                fill(stack[-1], items)
            case "GLOBAL" if value in ALLOWED_GLOBALS:
                stack.append(ALLOWED_GLOBALS[value])
            case "REDUCE":
                arguments = stack.pop()
                stack.append(stack.pop()(*arguments))
            case "BUILD":  # attributes of a dictionary: versions of PyTorch's modules
                stack.pop()
            case "PROTO" | "BINPERSID":  # the storage stays what it is, a tuple that names it
                pass
            case "STOP":
                return stack.pop()
            case other:
                raise ValueError(
                    f"its program asks for {other} {value or ''!r}, which no weights need"
                )


# bytes of an archive's directory, and of its program; Llama 3.1's have about 200,000 each
MAX_DESCRIPTION = 1_000_000
MAX_ENTRIES = 4_000


class Bounded(io.FileIO):
    """A file that hands out no more than a description's bytes at a time, whatever it is asked
    for.
    """

    def read(self, size: int = -1) -> bytes:
        return super().read(MAX_DESCRIPTION if size < 0 else min(size, MAX_DESCRIPTION))


def archive_entries(file: RawFile) -> dict[str, tuple[int, int]]:
    """Where the entries of an archive lie, without the folder that all of them are in: name ->
    (position, bytes).
    """
    name = file.path.name
    try:
        with Bounded(file.path) as source, zipfile.ZipFile(source) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        raise CheckpointError(
            f"{name} is no zip archive: truncated, or from a PyTorch older than 1.6?"
        ) from None
    entries, end = {}, 0
    for info in infos[: MAX_ENTRIES + 1]:
        entry = info.filename.partition("/")[2]
        if info.compress_type or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise CheckpointError(
                f"{name} has a compressed or encrypted entry; weights are stored as they are"
            )
        if info.header_offset < end or entry in entries or len(entries) == MAX_ENTRIES:
            raise CheckpointError(
                f"{name} has entries that overlap, one twice, or more than {MAX_ENTRIES}"
            )
        header = file.read_small(info.header_offset, 30)
        start = (
            info.header_offset
            + 30
            + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        )
        end = start + info.file_size
        entries[entry] = (start, info.file_size)
    if end > file.size:
        raise CheckpointError(f"{name} ends inside its last entry: truncated?")
    return entries


def locate(file: RawFile, entries: dict, view: View) -> tuple[int, tuple[int, ...], str]:
    """(position in the file, shape, kind) of a tensor that the program describes; ValueError if it
    cannot be.
    """
    (_, kind, key, _, count), shape, stride = view.storage, view.shape, view.stride
    if (
        type(shape) is not tuple
        or type(stride) is not tuple
        or not 1 <= len(shape) == len(stride) <= 2
    ):
        raise ValueError("a tensor has not one or two dimensions")
    if any(
        type(number) is not int or not 0 <= number < 2**62
        for number in (*shape, *stride, view.offset, count)
    ):
        raise ValueError("a size is not a whole number from 0 on")
    if kind not in ("F32", "F16", "BF16") or type(key) is not str:
        raise ValueError("a storage is not named as PyTorch does")
    (start, size), width = entries[f"data/{key}"], n_bytes((1,), kind)
    if count * width != size or view.offset * width + n_bytes(shape, kind) > size:
        raise ValueError(f"a tensor of shape {shape} does not fit its storage of {size} bytes")
    if any(
        n > 1 and step != gap for n, step, gap in zip(shape, stride, (*shape[1:], 1), strict=True)
    ):
        raise ValueError("a tensor's rows do not lie one after another: save it with .contiguous()")
    return start + view.offset * width, shape, kind


def open_pth(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one .pth file, under the names they have there. CheckpointError."""
    file, places, tensors = RawFile(path), {}, {}
    entries = archive_entries(file)
    with reading(path.name):
        if entries["data.pkl"][1] > MAX_DESCRIPTION or file.read_small(
            *entries.get("byteorder", (0, 0))
        ) not in (
            b"",
            b"little",
        ):
            raise ValueError("its program is too long, or its elements are big-endian")
        try:
            views = run_pickle(file.read_small(*entries["data.pkl"]))
        except LookupError:
            raise ValueError("its program has a stack underflow") from None
        for name, view in views.items():
            if not name.endswith("rope.freqs"):
                places[name] = locate(file, entries, view)
    for (name, place), (other, after) in pairwise(sorted(places.items(), key=lambda item: item[1])):
        tied = place == after and {name, other} == {"tok_embeddings.weight", "output.weight"}
        if place[0] + n_bytes(*place[1:]) > after[0] and not tied:
            raise CheckpointError(f"{path.name}: {name!r} and {other!r} share bytes")
    for name, (at, shape, kind) in places.items():
        raw = partial(read_bytes, file, at, n_bytes(shape, kind))
        tensors[name] = StoredTensor(shape, partial(read_tensor, file, at, shape, kind), kind, raw)
    return tensors

"""Checkpoints: one model, several file formats, equal logits.

Written by notebooks/07_checkpoints.ipynb: edit it there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from minillama.checkpoints.files import CheckpointError, RawFile, parse_json, reading


KINDS = {  # elements of a block, bytes of a block, (N, bytes) uint8 -> (N, elements)
    "F32": (1, 4, lambda block: block.view(torch.float32)),
    "F16": (1, 2, lambda block: block.view(torch.float16)),
    "BF16": (1, 2, lambda block: block.view(torch.bfloat16)),
}
SLICE = 2**20  # elements that are dequantized at a time


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file: its shape, and `read`, which reads it; if its rows
    may stay in the order of the file, also the kind of its elements and `raw(first=0, last=None)`,
    its bytes as they are.
    """

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]
    kind: str | None = None
    raw: Callable[..., torch.Tensor] | None = None


def n_bytes(shape: tuple[int, ...], kind: str, kinds: dict = KINDS) -> int:
    """What a tensor takes in the file; ValueError where its rows do not divide into blocks."""
    elements, size, _ = kinds[kind]
    if not 1 <= len(shape) <= 4 or 0 in shape or shape[-1] % elements:
        raise ValueError(f"its shape {str(shape)[:80]} does not divide into {kind} blocks")
    return math.prod(shape) // elements * size


def padded(position: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-position // alignment) * alignment


def read_tensor(
    file: RawFile, at: int, shape: tuple[int, ...], kind: str, kinds: dict = KINDS
) -> torch.Tensor:
    """A tensor's bytes as elements, dequantized block by block in slices, so that only the result
    is large.
    """
    elements, size, to_elements = kinds[kind]
    if elements == 1:
        return to_elements(file.read(at, n_bytes(shape, kind, kinds)).view(-1, size)).view(shape)
    result = torch.empty(math.prod(shape) // elements, elements)
    for first in range(0, len(result), SLICE // elements):
        part = result[first : first + SLICE // elements]
        part.copy_(to_elements(file.read(at + first * size, len(part) * size).view(-1, size)))
    return result.view(shape)


def read_bytes(file: RawFile, at: int, size: int, first=0, last=None) -> torch.Tensor:
    """A tensor's bytes from `first` up to `last`, or all of them: (last - first,) uint8"""
    return file.read(at + first, min(size, last or size) - first)


def same_bytes(a: StoredTensor | None, b: StoredTensor | None, slice_bytes=2**22) -> bool:
    """Whether two stored tensors are one; read in slices, until they differ, so that neither is
    ever whole in memory.
    """
    if not (a and b) or (a.shape, a.kind) != (b.shape, b.kind):
        return False
    starts = range(0, n_bytes(a.shape, a.kind), slice_bytes)
    return all(
        torch.equal(a.raw(start, start + slice_bytes), b.raw(start, start + slice_bytes))
        for start in starts
    )


def lay_out(
    file: RawFile, start: int, infos: list[tuple], alignment: int = 1, kinds: dict = KINDS
) -> dict[str, StoredTensor]:
    """Tensors (name, shape, kind, offset from `start`), each of which must begin where the one
    before ends, padded.

    kinds: the kinds of elements that the format has, as KINDS.
    """
    tensors, expected = {}, 0
    for name, shape, kind, offset in infos:
        with reading(f"{file.path.name}, tensor {name!r},"):
            end = offset + n_bytes(shape, kind, kinds)
            if name in tensors:
                raise ValueError("it is stored twice")
            if start + end > file.size:
                raise ValueError(
                    f"it ends at byte {start + end}, the file at {file.size}: truncated?"
                )
            if offset != expected:
                raise ValueError("it overlaps another, is misaligned or leaves a hole")
            read = partial(read_tensor, file, start + offset, shape, kind, kinds)
            raw = partial(read_bytes, file, start + offset, end - offset)
            tensors[name] = StoredTensor(shape, read, kind, raw)
            expected = padded(end, alignment)
    return tensors


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file: 8 bytes of header length, the header as JSON, then the
    elements.
    """
    file, infos = RawFile(Path(path)), []
    start = end = 8 + int.from_bytes(file.read_small(0, 8), "little")
    header = parse_json(file.read_small(8, start - 8), file.path.name)
    header.pop("__metadata__", None)
    if len(header) > 2_000:  # 405B has 1,138
        raise CheckpointError(f"{file.path.name} has {len(header)} tensors, more than any Llama")
    for name, info in header.items():
        with reading(f"{file.path.name}, tensor {name!r},"):
            if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
                raise ValueError("it needs dtype, shape and data_offsets")
            kind, shape, (first, last) = info["dtype"], tuple(info["shape"]), info["data_offsets"]
            if kind not in ("F32", "F16", "BF16"):
                raise ValueError(f"its type {kind!r} is not F32, F16 or BF16")
            if not all(
                type(number) is int and 0 <= number < 2**63 for number in (*shape, first, last)
            ):
                raise ValueError("a size or offset is not a whole number from 0 on")
            if last - first != n_bytes(shape, kind):
                raise ValueError("it does not have the size of its shape")
            infos.append((name, shape, kind, first))
            end = max(end, start + last)
    if file.size != end:
        raise CheckpointError(
            f"{file.path.name} has {file.size} bytes, its header describes {end}: truncated?"
        )
    return lay_out(file, start, sorted(infos, key=lambda info: info[3]))

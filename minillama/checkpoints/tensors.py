"""Checkpoints: one model, several file formats, equal logits.

Written by notebooks/07_checkpoints.ipynb: edit it there.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.tokenizer import Tokenizer


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

    def unique(pairs):
        if len(pairs) != len(dict(pairs)):
            raise ValueError("a key is repeated")
        return dict(pairs)

    with reading(f"the JSON of {name}"):
        # Llama 3's tokenizer has about 970,000 commas
        if data.count(b",") > 1_200_000 or data.count(b"{") > 100_000:
            raise ValueError("it has more items than any Llama's")
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        return value


KINDS = {  # of numbers: how many in a unit, bytes of a unit, (N, bytes) uint8 -> (N, how many)
    "F32": (1, 4, lambda unit: unit.view(torch.float32)),
    "F16": (1, 2, lambda unit: unit.view(torch.float16)),
    "BF16": (1, 2, lambda unit: unit.view(torch.bfloat16)),
}
SLICE = 2**20  # numbers that are turned from blocks at a time


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file: its shape, and `read`, which fetches it; if its rows
    may stay in the order of the file, also the kind of its numbers and `raw(first=0, last=None)`,
    its bytes as they are.
    """

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]
    kind: str | None = None
    raw: Callable[..., torch.Tensor] | None = None


def n_bytes(shape: tuple[int, ...], kind: str, kinds: dict = KINDS) -> int:
    """What a tensor takes in the file; ValueError where its rows do not divide into units."""
    numbers, size, _ = kinds[kind]
    if not 1 <= len(shape) <= 4 or 0 in shape or shape[-1] % numbers:
        raise ValueError(f"its shape {str(shape)[:80]} does not divide into {kind} blocks")
    return math.prod(shape) // numbers * size


def padded(position: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-position // alignment) * alignment


def read_tensor(
    file: RawFile, at: int, shape: tuple[int, ...], kind: str, kinds: dict = KINDS
) -> torch.Tensor:
    """A tensor's bytes, turned into numbers: blocks slice by slice, so that nothing but the result
    is large.
    """
    numbers, size, to_numbers = kinds[kind]
    if numbers == 1:
        return to_numbers(file.read(at, n_bytes(shape, kind, kinds)).view(-1, size)).view(shape)
    result = torch.empty(math.prod(shape) // numbers, numbers)
    for first in range(0, len(result), SLICE // numbers):
        part = result[first : first + SLICE // numbers]
        part.copy_(to_numbers(file.read(at + first * size, len(part) * size).view(-1, size)))
    return result.view(shape)


def read_bytes(file: RawFile, at: int, size: int, first=0, last=None) -> torch.Tensor:
    """A tensor's bytes from `first` up to `last`, or all of them: (last - first,) uint8"""
    return file.read(at + first, min(size, last or size) - first)


def lay_out(
    file: RawFile, start: int, infos: list[tuple], alignment: int = 1, kinds: dict = KINDS
) -> dict[str, StoredTensor]:
    """Tensors (name, shape, kind, offset from `start`), each of which must begin where the one
    before ends, padded.

    kinds: the kinds of numbers that the format knows, as KINDS.
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
    numbers.
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


NAMES = (  # minillama, Meta, Hugging Face, GGUF; N is the number of the block
    ("embedding", "tok_embeddings", "model.embed_tokens", "token_embd"),
    (
        "blocks.N.attention_norm",
        "layers.N.attention_norm",
        "model.layers.N.input_layernorm",
        "blk.N.attn_norm",
    ),
    (
        "blocks.N.attention.wq",
        "layers.N.attention.wq",
        "model.layers.N.self_attn.q_proj",
        "blk.N.attn_q",
    ),
    (
        "blocks.N.attention.wk",
        "layers.N.attention.wk",
        "model.layers.N.self_attn.k_proj",
        "blk.N.attn_k",
    ),
    (
        "blocks.N.attention.wv",
        "layers.N.attention.wv",
        "model.layers.N.self_attn.v_proj",
        "blk.N.attn_v",
    ),
    (
        "blocks.N.attention.wo",
        "layers.N.attention.wo",
        "model.layers.N.self_attn.o_proj",
        "blk.N.attn_output",
    ),
    (
        "blocks.N.ffn_norm",
        "layers.N.ffn_norm",
        "model.layers.N.post_attention_layernorm",
        "blk.N.ffn_norm",
    ),
    (
        "blocks.N.feed_forward.gate",
        "layers.N.feed_forward.w1",
        "model.layers.N.mlp.gate_proj",
        "blk.N.ffn_gate",
    ),
    (
        "blocks.N.feed_forward.up",
        "layers.N.feed_forward.w3",
        "model.layers.N.mlp.up_proj",
        "blk.N.ffn_up",
    ),
    (
        "blocks.N.feed_forward.down",
        "layers.N.feed_forward.w2",
        "model.layers.N.mlp.down_proj",
        "blk.N.ffn_down",
    ),
    ("norm", "norm", "model.norm", "output_norm"),
    ("head", "output", "lm_head", "output"),
)
META, HUGGING_FACE, GGUF = (
    {names[i] + ".weight": names[0] + ".weight" for names in NAMES} for i in (1, 2, 3)
)


def rename(name: str, table: dict[str, str]) -> str:
    """minillama's name of a tensor; CheckpointError if the format's table does not list it."""
    number = re.search(r"(?<=\.)(0|[1-9][0-9]{0,5})(?=\.)", name)
    pattern = name if number is None else name[: number.start()] + "N" + name[number.end() :]
    if pattern not in table or ".N." in name:
        raise CheckpointError(f"tensor {name!r} is not part of a Llama")
    return table[pattern] if number is None else table[pattern].replace("N", number[0])


SIZES = (  # LlamaConfig, Hugging Face, GGUF
    ("dim", "hidden_size", "llama.embedding_length"),
    ("n_layers", "num_hidden_layers", "llama.block_count"),
    ("n_heads", "num_attention_heads", "llama.attention.head_count"),
    ("n_kv_heads", "num_key_value_heads", "llama.attention.head_count_kv"),
    ("head_dim", "head_dim", "llama.attention.key_length"),
    ("ffn_dim", "intermediate_size", "llama.feed_forward_length"),
    ("vocab_size", "vocab_size", "llama.vocab_size"),
    ("norm_eps", "rms_norm_eps", "llama.attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope_theta", "llama.rope.freq_base"),
    ("max_seq_len", "max_position_embeddings", "llama.context_length"),
)


def sizes(column: int, values: dict, defaults: dict) -> dict:
    """LlamaConfig's sizes from a format's names (1 Hugging Face, 2 GGUF); KeyError for one that is
    missing.
    """
    names = {row[0]: row[column] for row in SIZES}
    values = defaults | {key: value for key, value in values.items() if value is not None}
    values.setdefault(names["n_kv_heads"], values[names["n_heads"]])
    if names["head_dim"] not in values:
        values[names["head_dim"]] = values[names["dim"]] // values[names["n_heads"]]
    return {ours: values[theirs] for ours, theirs in names.items()}


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


def build_tokenizer(
    ids, specials, merges, pattern, bos, stop, whole_chunks, plain=None
) -> Tokenizer:
    """Tokenizer.from_gpt2 for parts that came out of a file; ValueError for ids that cannot be."""
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    merged = (
        {token for left, right in merges for token in (left, right, left + right)}
        if plain
        else set()
    )
    merged &= (plain or {}).keys()  # added tokens that are ordinary ones as well
    vocab = {token: id for token, id in ids.items() if token not in specials or token in merged}
    stop = [id for id in dict.fromkeys(stop) if id is not None]
    used, control = {*vocab.values(), *specials.values()}, {bos, *stop} - {None}
    if not all(type(id) is int and id >= 0 for id in used):
        raise ValueError("a token's id is not a whole number from 0 on")
    if (
        not control <= used
        or any(type(id) is not int for id in control)
        or type(whole_chunks) is not bool
    ):
        raise ValueError(f"its control ids {bos!r} and {stop!r} are not in the vocabulary")
    eos = stop[0] if stop else None
    return Tokenizer.from_gpt2(
        vocab, specials, merges, pattern, bos, eos, stop, whole_chunks, plain
    )


@dataclass
class Checkpoint:
    """An opened file or folder: sizes, tensors under minillama's names, the tokenizer if it has
    one.
    """

    cfg: LlamaConfig
    tensors: dict[str, StoredTensor]
    tokenizer: Tokenizer | None

    def __post_init__(self):
        if self.tokenizer and self.tokenizer.vocab_size > (rows := self.cfg.vocab_size):
            raise CheckpointError(
                f"the tokenizer has ids up to {self.tokenizer.vocab_size - 1}, the embedding "
                f"{rows} rows"
            )


def progress_bar(items=None, label=None, shown=True, leave=False, **how) -> tqdm:
    """A bar on standard error; none where that is no terminal, or closed, or None as in a program
    without a console.
    """
    hidden = not shown or getattr(sys.stderr, "closed", True)
    return tqdm(items, label, disable=hidden or None, leave=leave, **how)


class SkipInit(TorchFunctionMode):
    """While it is active, modules are built without drawing their first weights, which nobody will
    see.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def skeleton(cfg: LlamaConfig, n_tensors: int) -> Llama:
    """A model whose parameters have shapes and no memory, unless that many tensors cannot fill
    it.
    """
    if 9 * cfg.n_layers > n_tensors or n_tensors > 2_000:
        raise CheckpointError(
            f"{n_tensors} tensors cannot be those of a Llama of {cfg.n_layers} layers"
        )
    try:
        with torch.device("meta"), SkipInit():
            return Llama(cfg)
    except (RuntimeError, TypeError, OverflowError):
        raise CheckpointError(
            f"an embedding of vocab_size {cfg.vocab_size}, dim {cfg.dim} fits no computer"
        ) from None


def assemble(checkpoint: Checkpoint, dtype=torch.float32, device="cpu", convert=None) -> Llama:
    """The model, filled one tensor at a time; CheckpointError for a missing, extra or misshapen
    tensor.

    convert(name, tensor) may return a layer to put instead of the one of that name (chapter
    12), or None.
    """
    model, tensors = skeleton(checkpoint.cfg, len(checkpoint.tensors)), checkpoint.tensors
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise CheckpointError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if extra := sorted(tensors.keys() - shapes.keys()):
        raise CheckpointError(f"{len(extra)} tensors too many, the first is {extra[0]}")
    if wrong := [name for name in shapes if tensors[name].shape != shapes[name]]:
        raise CheckpointError(
            f"{wrong[0]} has shape {tensors[wrong[0]].shape}, not {shapes[wrong[0]]}"
        )
    for name, tensor in progress_bar(tensors.items(), "loading", unit="tensor"):
        owner, _, leaf = name.rpartition(".")
        if convert and (layer := convert(owner, tensor)):
            model.set_submodule(owner, layer)
        else:
            setattr(
                model.get_submodule(owner),
                leaf,
                nn.Parameter(tensor.read().to(device=device, dtype=dtype)),
            )
    if checkpoint.cfg.tied_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval()

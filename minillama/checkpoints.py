"""Checkpoints: one model, several file formats, equal logits.

Written by notebooks/07_checkpoints.ipynb: edit it there.
"""

import json
import math
import os
import re
import struct
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from minillama.config import LlamaConfig, RopeScaling
from minillama.model import Llama
from minillama.rope import rope_frequencies
from minillama.tokenizer import GPT2_SPLIT, LLAMA3_PATTERN, SMOLLM_SPLIT, Tokenizer


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: one line that says what is wrong, whatever the file put into it."""

    def __init__(self, message):
        super().__init__(" ".join(str(message).split())[:1000])


@contextmanager
def reading(what: str):
    """Whatever a value of an unexpected kind sets off inside becomes a CheckpointError that says where."""
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{what} has no {error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{what} is malformed: {error}") from None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file: its shape, and `read`, which fetches it."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


@dataclass
class Checkpoint:
    """An opened file or folder: sizes, tensors under minillama's names, the tokenizer if it has one."""

    cfg: LlamaConfig
    tensors: dict[str, StoredTensor]
    tokenizer: Tokenizer | None = None


class RawFile:
    """A file read in slices: never past its end, and never after it has changed."""

    def __init__(self, path: Path):
        if not path.is_file():  # subtle: opening a named pipe would block for ever
            raise CheckpointError(f"{path.name} is missing or not a file")
        self.path, stat = path, path.stat()
        self.size, self.modified = stat.st_size, stat.st_mtime_ns
        if not self.size:
            raise CheckpointError(f"{path.name} is empty")

    def read(self, at: int, size: int) -> torch.Tensor:
        """The bytes at, ..., at + size - 1 in memory of their own: (size,) uint8"""
        if at + size > self.size:
            raise CheckpointError(f"{self.path.name} should have {at + size} bytes, but has {self.size}: truncated?")
        data = torch.empty(size, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(at)
            complete, stat = file.readinto(data.numpy()) == size, os.fstat(file.fileno())
        if not complete or (stat.st_size, stat.st_mtime_ns) != (self.size, self.modified):
            raise CheckpointError(f"{self.path.name} changed while it was read")
        return data

    def bytes(self, at: int, size: int) -> bytes:
        return self.read(at, size).numpy().tobytes()


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
JSON_LIMIT = 1_000_000  # bytes of a header, index or configuration; the index of the 405B model has some 100,000


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file: 8 bytes of header length, the header as JSON, then the numbers."""
    file = RawFile(Path(path))
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > JSON_LIMIT:
        raise CheckpointError(f"{file.path.name} claims a header of {length} bytes; at most {JSON_LIMIT} are read")
    header = parse_json(file.bytes(8, length), file.path.name)
    header.pop("__metadata__", None)
    tensors, at = {}, 8 + length
    with reading(file.path.name):
        entries = [safetensors_entry(name, info) for name, info in header.items()]
        for name, dtype, shape, start, end in sorted(entries, key=lambda entry: entry[3:]):
            if 8 + length + start != at or end - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"tensor {name!r} leaves a hole, overlaps or does not have the size of its shape")
            tensors[name] = StoredTensor(shape, partial(raw, file, at, end - start, shape, dtype))
            at += end - start
    if at != file.size:
        raise CheckpointError(f"{file.path.name} has {file.size} bytes, its header describes {at}")
    return tensors


def raw(file: RawFile, at: int, size: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """One tensor as it stands in the file."""
    return file.read(at, size).view(dtype).view(shape)


def safetensors_entry(name: str, info: dict) -> tuple:
    """(name, dtype, shape, start, end) of one entry of the header; ValueError for values of other types."""
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} needs dtype, shape and data_offsets")
    shape, (start, end) = tuple(info["shape"]), info["data_offsets"]
    if info["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name!r} has type {info['dtype']!r}, not one of {', '.join(DTYPES)}")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, start, end)):
        raise ValueError(f"tensor {name!r} has a size or offset that is not a whole number from 0 on")
    return name, DTYPES[info["dtype"]], shape, start, end


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict:
    """The JSON object in a file of at most `limit` bytes; CheckpointError if it is anything else."""
    file = RawFile(path)
    if file.size > limit:
        raise CheckpointError(f"{path.name} has {file.size} bytes; at most {limit} are read")
    return parse_json(file.bytes(0, file.size), path.name)


def parse_json(data: bytes, name: str) -> dict:
    """A JSON object, refusing what most parsers let pass: repeated keys (the last would win) and NaN."""

    def unique(pairs):
        if len(pairs) != len(dict(pairs)):
            raise ValueError("a key is repeated")
        return dict(pairs)

    def refuse(constant):
        raise ValueError(f"{constant} is not a JSON number")

    with reading(f"the JSON of {name}"):
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        return value


def f16(block_bytes: torch.Tensor) -> torch.Tensor:
    """(N, 2) bytes -> (N, 1) float32"""
    return block_bytes.contiguous().view(torch.float16).float()


def nibbles(block_bytes: torch.Tensor) -> torch.Tensor:
    """(N, 16) bytes -> (N, 32) numbers 0..15: all low halves, then all high halves."""
    return torch.cat((block_bytes & 15, block_bytes >> 4), dim=1)


DEQUANTIZE = {  # GGUF type: name, numbers in a block, bytes in a block, (N, bytes) uint8 -> (N, numbers) float32
    0: ("F32", 1, 4, lambda block: block.view(torch.float32)),
    1: ("F16", 1, 2, lambda block: block.view(torch.float16).float()),
    30: ("BF16", 1, 2, lambda block: block.view(torch.bfloat16).float()),
    2: ("Q4_0", 32, 18, lambda block: f16(block[:, :2]) * (nibbles(block[:, 2:]).float() - 8)),
    3: ("Q4_1", 32, 20, lambda block: f16(block[:, :2]) * nibbles(block[:, 4:]) + f16(block[:, 2:4])),
    8: ("Q8_0", 32, 34, lambda block: f16(block[:, :2]) * block[:, 2:].contiguous().view(torch.int8)),
}


class GGUFHeader:
    """Reads a GGUF header front to back; never past its end, and never more than MAX_ITEMS items."""

    SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    STRING, ARRAY = 8, 9
    MAX_ITEMS = 1_000_000  # Llama 3's has about 540,000, nearly all of them the tokenizer's

    def __init__(self, data: bytes):
        self.data, self.at, self.items = data, 0, 0

    def bytes(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise CheckpointError(
                f"the header wants {size} bytes at {self.at}, but ends at {len(self.data)}: truncated?"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str):
        return struct.unpack("<" + code, self.bytes(struct.calcsize("<" + code)))[0]

    def count(self) -> int:
        """The number of items that follow, refused before anything is built if it is absurd."""
        count = self.number("Q")
        self.items += count
        if self.items > self.MAX_ITEMS:
            raise CheckpointError(
                f"a count or array of {count} items at byte {self.at} of the header: no Llama has that many"
            )
        return count

    def string(self) -> str:
        with reading(f"the UTF-8 string at byte {self.at} of the header"):
            return self.bytes(self.number("Q")).decode("utf-8")

    def value(self, kind: int):
        if kind == self.STRING:
            return self.string()
        if kind == self.ARRAY:
            return self.array(self.number("I"), self.count())
        if kind not in self.SCALARS:
            raise CheckpointError(f"the header has a value of unknown type {kind} at byte {self.at}")
        return self.number(self.SCALARS[kind])

    def array(self, kind: int, count: int) -> list:
        if kind == self.STRING:
            return [self.string() for _ in range(count)]
        if kind not in self.SCALARS:  # arrays of arrays among them
            raise CheckpointError(f"the header has an array of unsupported type {kind} at byte {self.at}")
        code = f"<{count}{self.SCALARS[kind]}"
        return list(struct.unpack(code, self.bytes(struct.calcsize(code))))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (slowest dimension first, as in PyTorch), type and offset of the next tensor."""
        name, n_dims = self.string(), self.number("I")
        if not 1 <= n_dims <= 4:
            raise CheckpointError(f"tensor {name!r} has {n_dims} dimensions")
        shape = tuple(self.number("Q") for _ in range(n_dims))[::-1]
        return name, shape, self.number("I"), self.number("Q")


def gguf_header(header: GGUFHeader) -> tuple[dict, list[tuple]]:
    """Everything before the numbers: the keys with their values, and what `header.tensor` says of each tensor."""
    if header.bytes(4) != b"GGUF":
        raise CheckpointError("this is not a GGUF file (it does not start with GGUF)")
    if (version := header.number("I")) not in (2, 3):
        raise CheckpointError(f"GGUF version {version} is not supported, only 2 and 3")
    n_tensors, n_keys, meta = header.count(), header.count(), {}
    for _ in range(n_keys):
        key = header.string()
        if not key or key in meta:
            raise CheckpointError(f"the header has an empty or repeated key {key!r}")
        meta[key] = header.value(header.number("I"))
    return meta, [header.tensor() for _ in range(n_tensors)]


HEADER_LIMIT = 32_000_000  # bytes; Llama 3's header has about 8 million


def open_gguf(path: Path) -> Checkpoint:
    """Read a GGUF file's header; a tensor is read and dequantized to float32 when it is asked for."""
    file = RawFile(Path(path))
    header = GGUFHeader(file.bytes(0, min(file.size, HEADER_LIMIT)))
    meta, infos = gguf_header(header)
    alignment = meta.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment % 8:
        raise CheckpointError(f"general.alignment must be a multiple of 8, not {alignment!r}")
    return gguf_checkpoint(meta, gguf_tensors(file, infos, header.at, alignment))


def padded(position: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-position // alignment) * alignment


def dequantized(file: RawFile, at: int, size: int, shape: tuple[int, ...], kind: int) -> torch.Tensor:
    """One tensor's blocks, read and turned into float32 numbers."""
    _, _, block_bytes, dequantize = DEQUANTIZE[kind]
    return dequantize(file.read(at, size).view(-1, block_bytes)).view(shape)


def gguf_tensors(file: RawFile, infos: list[tuple], end: int, alignment: int) -> dict[str, StoredTensor]:
    """The tensors of a file whose header stops at byte `end`; each begins where the one before ends, padded."""

    tensors, start, expected = {}, padded(end, alignment), 0
    for name, shape, kind, offset in infos:
        if kind not in DEQUANTIZE:
            raise CheckpointError(f"tensor {name!r} has type {kind}, which is not supported")
        kind_name, numbers, block_bytes, _ = DEQUANTIZE[kind]
        if shape[-1] % numbers or not math.prod(shape):
            raise CheckpointError(f"tensor {name!r} of shape {shape} does not divide into {kind_name} blocks")
        if name in tensors:
            raise CheckpointError(f"tensor {name!r} is stored twice")
        size = math.prod(shape) // numbers * block_bytes
        if (stop := start + offset + size) > file.size:
            raise CheckpointError(f"tensor {name!r} ends at byte {stop}, the file at {file.size}: truncated?")
        if offset != expected:
            raise CheckpointError(f"tensor {name!r} overlaps another, is misaligned or leaves a hole")
        tensors[name] = StoredTensor(shape, partial(dequantized, file, stop - size, size, shape, kind))
        expected = padded(offset + size, alignment)
    return tensors


NAMES = (  # minillama, GGUF, Hugging Face; N is the number of the block
    ("embedding", "token_embd", "model.embed_tokens"),
    ("blocks.N.attention_norm", "blk.N.attn_norm", "model.layers.N.input_layernorm"),
    ("blocks.N.attention.wq", "blk.N.attn_q", "model.layers.N.self_attn.q_proj"),
    ("blocks.N.attention.wk", "blk.N.attn_k", "model.layers.N.self_attn.k_proj"),
    ("blocks.N.attention.wv", "blk.N.attn_v", "model.layers.N.self_attn.v_proj"),
    ("blocks.N.attention.wo", "blk.N.attn_output", "model.layers.N.self_attn.o_proj"),
    ("blocks.N.ffn_norm", "blk.N.ffn_norm", "model.layers.N.post_attention_layernorm"),
    ("blocks.N.feed_forward.gate", "blk.N.ffn_gate", "model.layers.N.mlp.gate_proj"),
    ("blocks.N.feed_forward.up", "blk.N.ffn_up", "model.layers.N.mlp.up_proj"),
    ("blocks.N.feed_forward.down", "blk.N.ffn_down", "model.layers.N.mlp.down_proj"),
    ("norm", "output_norm", "model.norm"),
    ("head", "output", "lm_head"),
)
GGUF_NAMES = {theirs + ".weight": ours + ".weight" for ours, theirs, _ in NAMES}
HUGGING_FACE_NAMES = {theirs + ".weight": ours + ".weight" for ours, _, theirs in NAMES}


def rename(name: str, table: dict[str, str]) -> str:
    """minillama's name of a tensor; CheckpointError if the format's table does not list it."""
    number = re.search(r"(?<=\.)(0|[1-9][0-9]{0,5})(?=\.)", name)
    pattern = name if number is None else name[: number.start()] + "N" + name[number.end() :]
    if pattern not in table or ".N." in name:
        raise CheckpointError(f"tensor {name!r} is not part of a Llama")
    return table[pattern] if number is None else table[pattern].replace("N", number[0])


def open_hugging_face(folder: Path) -> Checkpoint:
    """Read a Hugging Face folder: config.json, *.safetensors, and the tokenizer if it is there."""
    folder = Path(folder)
    cfg = hugging_face_config(read_json(inside(folder, "config.json")))
    stored = safetensors_folder(folder)
    if cfg.tied_embeddings and (head := stored.pop("lm_head.weight", None)):
        if not torch.equal(head.read(), stored.get("model.embed_tokens.weight", head).read()):
            raise CheckpointError("config.json ties the head to the embedding, but there is a head of its own")
    tensors = {}
    for name, tensor in stored.items():
        heads = {"q_proj": cfg.n_heads, "k_proj": cfg.n_kv_heads}.get(name.removesuffix(".weight").split(".")[-1])
        tensors[rename(name, HUGGING_FACE_NAMES)] = tensor if heads is None else interleaved(tensor, heads)
    return Checkpoint(cfg, tensors, hugging_face_tokenizer(folder, cfg))


def inside(folder: Path, name: str) -> Path:
    """The file of that plain name, which must lie in the folder (or in the blobs of a Hugging Face cache)."""
    plain = isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,200}", name)
    home, path = (Path(os.path.realpath(p)) for p in (folder, folder / (name if plain else "")))
    allowed = {home} | ({home.parent.parent / "blobs"} if home.parent.name == "snapshots" else set())
    if not plain or path.parent not in allowed:
        raise CheckpointError(f"only files inside the folder are read, not {name!r}")
    if not path.is_file():
        raise CheckpointError(f"No such file in the folder: {name}")
    return path


def safetensors_folder(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of model.safetensors, or of all the files that the index lists, which must agree with it."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return open_safetensors(inside(folder, "model.safetensors"))
    listed, tensors = read_json(inside(folder, index.name)).get("weight_map"), {}
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index.name} has no weight_map from tensors to files")
    paths = {name: inside(folder, shard) for name, shard in listed.items()}
    for path in dict.fromkeys(paths.values()):
        found = open_safetensors(path)
        if twice := sorted(found.keys() & tensors.keys()):
            raise CheckpointError(f"tensor {twice[0]!r} is stored twice, the second time in {path.name}")
        if wrong := sorted(found.keys() ^ {name for name in paths if paths[name] == path}):
            raise CheckpointError(f"{index.name} and {path.name} disagree about tensor {wrong[0]!r}")
        tensors |= found
    return tensors


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of wq or wk from Hugging Face's order (first halves, second halves) to neighbouring pairs, per head."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def interleaved(tensor: StoredTensor, heads: int) -> StoredTensor:
    """The stored tensor, its rows interleaved when it is read."""
    return StoredTensor(tensor.shape, lambda: interleave(tensor.read(), heads))


class Bare(TorchFunctionMode):
    """While it is active, modules are built without drawing their first weights, which nobody will see."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def skeleton(cfg: LlamaConfig) -> Llama:
    """A model on the meta device: every parameter has its shape and no memory."""
    with torch.device("meta"), Bare():
        return Llama(cfg)


def assemble(checkpoint: Checkpoint, dtype=torch.float32, device="cpu") -> Llama:
    """The model, filled one tensor at a time; CheckpointError for a missing, extra or misshapen tensor."""
    check_shapes(checkpoint.cfg, checkpoint.tensors)
    model = skeleton(checkpoint.cfg)
    for name, tensor in tqdm(checkpoint.tensors.items(), "loading", unit="tensor", disable=None, leave=False):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.read().to(device=device, dtype=dtype)))
    if checkpoint.cfg.tied_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval()


def check_shapes(cfg: LlamaConfig, tensors: dict[str, StoredTensor]) -> None:
    """CheckpointError unless these are exactly the tensors of a Llama of that size; reads and builds none of them."""
    if cfg.n_layers > len(tensors) or len(tensors) > 10_000:
        raise CheckpointError(f"{len(tensors)} tensors cannot be those of a Llama of {cfg.n_layers} layers")
    try:
        one_block = skeleton(replace(cfg, n_layers=1))
    except (RuntimeError, TypeError, OverflowError):
        raise CheckpointError(f"an embedding of vocab_size {cfg.vocab_size}, dim {cfg.dim} fits no computer") from None
    wanted = {}
    for name, parameter in one_block.named_parameters():  # a tied head is listed once, as the embedding
        layers = range(cfg.n_layers) if name.startswith("blocks.") else [0]
        wanted |= {name.replace("blocks.0.", f"blocks.{layer}."): tuple(parameter.shape) for layer in layers}
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise CheckpointError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if extra := sorted(tensors.keys() - wanted.keys()):
        raise CheckpointError(f"{len(extra)} tensors too many, the first is {extra[0]}")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise CheckpointError(f"{name} has shape {tensors[name].shape}, not {shape}")


def load_checkpoint(path, dtype=torch.float32, device="cpu") -> tuple[Llama, Tokenizer | None]:
    """Model and tokenizer of a GGUF file or a Hugging Face folder; CheckpointError if it is neither or broken."""
    path = Path(path)
    try:
        if not path.exists():
            raise CheckpointError("no such file or folder")
        if path.is_dir() and not (path / "config.json").exists():
            raise CheckpointError("neither a .gguf file nor a folder with a config.json")
        checkpoint = open_hugging_face(path) if path.is_dir() else open_gguf(path)
        return assemble(checkpoint, dtype, device), checkpoint.tokenizer
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


GGUF_KEYS = {  # of the keys that change rotation or attention, those that we honour
    "rope.freq_base", "rope.dimension_count", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
}  # fmt: skip


def gguf_checkpoint(meta: dict, tensors: dict[str, StoredTensor]) -> Checkpoint:
    """Sizes, names and tokenizer of a GGUF file under minillama's names."""
    if (architecture := meta.get("general.architecture")) != "llama":
        raise CheckpointError(f"the architecture is {architecture!r}, not 'llama'")
    for key in meta:
        if re.match(r"llama\.(rope|attention)\.", key) and key.removeprefix("llama.") not in GGUF_KEYS:
            raise CheckpointError(f"the header has {key!r}, which Llama 3.1 does not know")
    divisors = tensors.get("rope_freqs.weight")
    tensors = {rename(name, GGUF_NAMES): tensor for name, tensor in tensors.items() if tensor is not divisors}
    with reading("the header"):
        cfg = gguf_config(meta, divisors, tied="head.weight" not in tensors)
    return Checkpoint(cfg, tensors, gguf_tokenizer(meta, cfg))


def width_per_head(dim, n_heads):
    """dim // n_heads; where that is impossible 2, so that LlamaConfig names the size that is wrong."""
    return dim // n_heads if type(dim) is type(n_heads) is int and n_heads > 0 else 2


def gguf_config(meta: dict, divisors: StoredTensor | None, tied: bool) -> LlamaConfig:
    """LlamaConfig from a GGUF file's keys; KeyError, TypeError or ValueError where they make none."""
    dim, n_heads = meta["llama.embedding_length"], meta["llama.attention.head_count"]
    head_dim = meta.get("llama.attention.key_length", width_per_head(dim, n_heads))
    vocab_size = meta["llama.vocab_size"] if "llama.vocab_size" in meta else len(meta["tokenizer.ggml.tokens"])
    cfg = LlamaConfig(
        dim=dim, n_layers=meta["llama.block_count"], n_heads=n_heads, head_dim=head_dim, vocab_size=vocab_size,
        n_kv_heads=meta.get("llama.attention.head_count_kv", n_heads), ffn_dim=meta["llama.feed_forward_length"],
        norm_eps=meta["llama.attention.layer_norm_rms_epsilon"], rope_theta=meta.get("llama.rope.freq_base", 10_000.0),
        max_seq_len=meta["llama.context_length"], tied_embeddings=tied,
    )  # fmt: skip
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if (width := meta.get(key, head_dim)) != head_dim:
            raise ValueError(f"{key} is {width!r}, but a head is {head_dim!r} wide")
    return replace(cfg, rope_scaling=gguf_rope_scaling(divisors, cfg.head_dim, cfg.rope_theta))


def gguf_rope_scaling(divisors: StoredTensor | None, head_dim: int, theta: float) -> RopeScaling | None:
    """The scaling whose effect the file's rope_freqs tensor stores, as one divisor per pair of a head."""
    if divisors is None:
        return None
    for scaling in (None, RopeScaling(8.0), RopeScaling(32.0)) if divisors.shape == (head_dim // 2,) else ():
        expected = rope_frequencies(head_dim, theta) / rope_frequencies(head_dim, theta, scaling)
        if torch.allclose(expected, divisors.read(), rtol=1e-4):
            return scaling
    raise CheckpointError("rope_freqs.weight holds a scaling that is neither Llama 3.1's nor 3.2's")


def hugging_face_config(config: dict) -> LlamaConfig:
    """LlamaConfig from config.json, as transformers 4 wrote it (rope_scaling) and 5 does (rope_parameters)."""
    fixed = dict(model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False, partial_rotary_factor=1)
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"config.json has {key} = {config[key]!r}; a Llama has {value!r}")
    with reading("config.json"):
        theta, scaling = hugging_face_rope(config)
        dim, n_heads = config["hidden_size"], config["num_attention_heads"]
        tied = config.get("tie_word_embeddings", False)
        if type(tied) is not bool:
            raise ValueError(f"tie_word_embeddings must be true or false, not {tied!r}")
        kv_heads, head_dim = config.get("num_key_value_heads"), config.get("head_dim")
        return LlamaConfig(
            dim=dim, n_layers=config["num_hidden_layers"], n_heads=n_heads, ffn_dim=config["intermediate_size"],
            n_kv_heads=n_heads if kv_heads is None else kv_heads,
            head_dim=width_per_head(dim, n_heads) if head_dim is None else head_dim,
            vocab_size=config["vocab_size"], norm_eps=config.get("rms_norm_eps", 1e-6), rope_theta=theta,
            rope_scaling=scaling, max_seq_len=config.get("max_position_embeddings", 2048),
            tied_embeddings=tied,
        )  # fmt: skip


def hugging_face_rope(config: dict) -> tuple[float, RopeScaling | None]:
    """Theta and scaling; unknown kinds and keys are refused, never ignored."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"the rope settings are not an object but {rope!r}")
    rope = dict(rope)
    theta = rope.pop("rope_theta", config.get("rope_theta", 10_000.0))
    if config.get("rope_theta", theta) != theta:
        raise ValueError(f"rope_theta is both {theta!r} and {config['rope_theta']!r}")
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    if kind == "default" and not rope:
        return theta, None
    known = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    if kind != "llama3" or rope.keys() != known:
        raise ValueError(f"rope scaling {kind!r} with {', '.join(sorted(rope)) or 'nothing'} is not known")
    return theta, RopeScaling(original_max_seq_len=rope.pop("original_max_position_embeddings"), **rope)


def hugging_face_tokenizer(folder: Path, cfg: LlamaConfig) -> Tokenizer | None:
    """The tokenizer of a folder: Meta's tokenizer.model if present, else tokenizer.json, else None."""
    if (folder / "tokenizer.model").exists():
        with reading("tokenizer.model"):
            tokenizer = Tokenizer.from_file(inside(folder, "tokenizer.model"))
            if tokenizer.vocab_size > cfg.vocab_size:
                raise ValueError(f"it has {tokenizer.vocab_size} ids, the model only {cfg.vocab_size}")
            return tokenizer
    if not (folder / "tokenizer.json").exists():
        return None
    file = read_json(inside(folder, "tokenizer.json"), limit=30_000_000)
    with reading("tokenizer.json"):
        model, pattern = file["model"], split_pattern(file)
        specials = {token["content"]: token["id"] for token in file["added_tokens"]}
        vocab = {token: id for token, id in model["vocab"].items() if token not in specials}
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        bos, stop = hugging_face_control_ids(folder)
        bos = bos if "TemplateProcessing" in str(file.get("post_processor")) else None  # named, but never added
        return build_tokenizer(cfg, vocab, specials, merges, pattern, bos, stop, model.get("ignore_merges", False))


def split_pattern(file: dict) -> str:
    """The regular expression that cuts text into chunks; ValueError for a way of cutting that we do not know."""
    if file.get("normalizer") is not None:
        raise ValueError("it rewrites the text before it cuts it")
    if (parts := file["pre_tokenizer"]) is None:
        return r"[\s\S]+"  # the whole text is one chunk
    parts = parts["pretokenizers"] if parts["type"] == "Sequence" else [parts]
    kinds = [part["type"] for part in parts]
    if kinds == ["Split", "ByteLevel"] and parts[0]["pattern"] == {"Regex": LLAMA3_PATTERN}:
        return LLAMA3_PATTERN
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] is True:
        return SMOLLM_SPLIT
    if kinds == ["ByteLevel"]:
        return GPT2_SPLIT
    raise ValueError(f"it cuts text in an unknown way, {kinds}")


def hugging_face_control_ids(folder: Path) -> tuple[int | None, list]:
    """(id of the first token, ids that end an answer), by generation_config.json and config.json together."""
    bos, stop = None, []
    for name in ("generation_config.json", "config.json"):
        config = read_json(inside(folder, name)) if (folder / name).exists() else {}
        bos, eos = config.get("bos_token_id") if bos is None else bos, config.get("eos_token_id")
        stop += eos if isinstance(eos, list) else [eos]
    return bos, stop


def gguf_tokenizer(meta: dict, cfg: LlamaConfig) -> Tokenizer | None:
    """The byte-level BPE inside a GGUF file, or None where there is none."""
    if "tokenizer.ggml.tokens" not in meta:
        return None
    patterns = {"smollm": SMOLLM_SPLIT, "llama-bpe": LLAMA3_PATTERN, "gpt-2": GPT2_SPLIT}
    with reading("the tokenizer"):
        model, pre = meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]
        if model != "gpt2" or pre not in patterns:
            raise ValueError(f"it is of kind {model!r}, {pre!r}; byte-level BPE is expected")
        tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
        specials = {token: id for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != 1}
        vocab = {token: id for id, token in enumerate(tokens) if token not in specials}
        merges = [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]]
        starts = meta.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")  # SmolLM2 names one and never adds it
        bos = meta.get("tokenizer.ggml.bos_token_id") if starts else None
        stop = [meta.get("tokenizer.ggml.eos_token_id")]
        stop += [specials.get(name) for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
        if len(tokens) != len(vocab) + len(specials):
            raise ValueError("a token is listed twice")
        return build_tokenizer(cfg, vocab, specials, merges, patterns[pre], bos, stop, pre == "llama-bpe")


def build_tokenizer(cfg, vocab, specials, merges, pattern, bos, stop, whole_chunks) -> Tokenizer:
    """Tokenizer.from_gpt2 for parts that came out of a file; ValueError for ids that are not the embedding's rows."""
    stop = [id for id in dict.fromkeys(stop) if id is not None]
    ids = [*vocab.values(), *specials.values()]
    if len(ids) != len(set(ids)) or not all(type(id) is int and 0 <= id < cfg.vocab_size for id in ids):
        raise ValueError(f"its ids are not different numbers from 0 to {cfg.vocab_size - 1}")
    control = {bos, *stop} - {None}
    if not control <= set(ids) or any(type(id) is not int for id in control) or type(whole_chunks) is not bool:
        raise ValueError(f"its control ids {bos!r} and {stop!r} are not in the vocabulary")
    eos = stop[0] if stop else None
    return Tokenizer.from_gpt2(vocab, specials, merges, pattern, bos, eos, stop, whole_chunks)

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


LIMIT = 32_000_000  # bytes of a header or a JSON file; the largest that Llama 3.1 comes with has about 17 million


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
            raise CheckpointError(f"{self.path.name} should have {at + size} bytes, but has {self.size}: truncated?")
        data = torch.empty(size, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(at)
            complete, stat = file.readinto(data.numpy()) == size, os.fstat(file.fileno())
        if not complete or (stat.st_size, stat.st_mtime_ns) != (self.size, self.modified):
            raise CheckpointError(f"{self.path.name} changed while it was read")
        return data

    def text(self, at: int, size: int) -> bytes:
        """Bytes that describe something, so that there cannot be very many of them."""
        if size > LIMIT:
            raise CheckpointError(f"{self.path.name} describes itself in {size} bytes; at most {LIMIT} are read")
        return self.read(at, size).numpy().tobytes()


def parse_json(data: bytes, name: str) -> dict:
    """A JSON object, refusing what most parsers let pass: a repeated key, of which the last would win."""

    def unique(pairs):
        if len(pairs) != len(dict(pairs)):
            raise ValueError("a key is repeated")
        return dict(pairs)

    with reading(f"the JSON of {name}"):
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        return value


KINDS = {  # of numbers: how many in a unit, bytes of a unit, (N, bytes) uint8 -> (N, how many)
    "F32": (1, 4, lambda unit: unit.view(torch.float32)),
    "F16": (1, 2, lambda unit: unit.view(torch.float16)),
    "BF16": (1, 2, lambda unit: unit.view(torch.bfloat16)),
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file: its shape, and `read`, which fetches it."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def n_bytes(shape: tuple[int, ...], kind: str) -> int:
    """What a tensor takes in the file; ValueError where its rows do not divide into units."""
    numbers, size, _ = KINDS[kind]
    if not math.prod(shape) or not shape or shape[-1] % numbers:
        raise ValueError(f"its shape {shape} does not divide into {kind} blocks")
    return math.prod(shape) // numbers * size


def padded(position: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-position // alignment) * alignment


def fetch(file: RawFile, at: int, shape: tuple[int, ...], kind: str) -> torch.Tensor:
    """A tensor's bytes, turned into numbers."""
    _, size, to_numbers = KINDS[kind]
    return to_numbers(file.read(at, n_bytes(shape, kind)).view(-1, size)).view(shape)


def lay_out(file: RawFile, start: int, infos: list[tuple], alignment: int = 1) -> dict[str, StoredTensor]:
    """Tensors (name, shape, kind, offset from `start`), each of which must begin where the one before ends, padded."""
    tensors, expected = {}, 0
    for name, shape, kind, offset in infos:
        with reading(f"{file.path.name}, tensor {name!r},"):
            end = offset + n_bytes(shape, kind)
            if name in tensors:
                raise ValueError("it is stored twice")
            if start + end > file.size:
                raise ValueError(f"it ends at byte {start + end}, the file at {file.size}: truncated?")
            if offset != expected:
                raise ValueError("it overlaps another, is misaligned or leaves a hole")
            tensors[name] = StoredTensor(shape, partial(fetch, file, start + offset, shape, kind))
            expected = padded(end, alignment)
    return tensors


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file: 8 bytes of header length, the header as JSON, then the numbers."""
    file, infos = RawFile(Path(path)), []
    start = end = 8 + int.from_bytes(file.text(0, 8), "little")
    header = parse_json(file.text(8, start - 8), file.path.name)
    header.pop("__metadata__", None)
    for name, info in header.items():
        with reading(f"{file.path.name}, tensor {name!r},"):
            if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
                raise ValueError("it needs dtype, shape and data_offsets")
            kind, shape, (first, last) = info["dtype"], tuple(info["shape"]), info["data_offsets"]
            if kind not in ("F32", "F16", "BF16"):
                raise ValueError(f"its type {kind!r} is not F32, F16 or BF16")
            if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, first, last)):
                raise ValueError("a size or offset is not a whole number from 0 on")
            if last - first != n_bytes(shape, kind):
                raise ValueError("it does not have the size of its shape")
            infos.append((name, shape, kind, first))
            end = max(end, start + last)
    if file.size != end:
        raise CheckpointError(f"{file.path.name} has {file.size} bytes, its header describes {end}: truncated?")
    return lay_out(file, start, sorted(infos, key=lambda info: info[3]))


def f16(block_bytes: torch.Tensor) -> torch.Tensor:
    """(N, 2) bytes -> (N, 1) float32"""
    return block_bytes.contiguous().view(torch.float16).float()


def nibbles(block_bytes: torch.Tensor) -> torch.Tensor:
    """(N, 16) bytes -> (N, 32) numbers 0..15: all low halves, then all high halves."""
    return torch.cat((block_bytes & 15, block_bytes >> 4), dim=1)


KINDS |= {  # blocks of 32 numbers with a step of their own
    "Q4_0": (32, 18, lambda block: f16(block[:, :2]) * (nibbles(block[:, 2:]).float() - 8)),
    "Q4_1": (32, 20, lambda block: f16(block[:, :2]) * nibbles(block[:, 4:]) + f16(block[:, 2:4])),
    "Q8_0": (32, 34, lambda block: f16(block[:, :2]) * block[:, 2:].contiguous().view(torch.int8)),
}


class GGUFHeader:
    """Reads a GGUF header front to back; never past its end, and never more than MAX_ITEMS items."""

    SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    STRING, ARRAY = 8, 9
    KINDS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0", 30: "BF16"}
    MAX_ITEMS = 1_000_000  # Llama 3's has about 540,000, nearly all of them the tokenizer's

    def __init__(self, data: bytes):
        self.data, self.at, self.items = data, 0, 0

    def bytes(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise CheckpointError(f"the header wants {size} bytes at {self.at}, ends at {len(self.data)}: truncated?")
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, code: str, count: int = 1) -> list:
        return list(struct.unpack(f"<{count}{code}", self.bytes(count * struct.calcsize("<" + code))))

    def count(self) -> int:
        """The number of items that follow, refused before anything is built if it is absurd."""
        [count] = self.numbers("Q")
        self.items += count
        if self.items > self.MAX_ITEMS:
            raise CheckpointError(f"a count or array of {count} items at byte {self.at} of the header: too many")
        return count

    def string(self) -> str:
        [size] = self.numbers("Q")
        try:
            return self.bytes(size).decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"the string before byte {self.at} of the header is not UTF-8") from None

    def values(self, kind: int, count: int) -> list:
        if kind == self.STRING:
            return [self.string() for _ in range(count)]
        if kind not in self.SCALARS:  # arrays of arrays among them
            raise CheckpointError(f"the header has a value or array of unknown type {kind} at byte {self.at}")
        return self.numbers(self.SCALARS[kind], count)

    def pair(self) -> tuple:
        """A key and its value."""
        key, [kind] = self.string(), self.numbers("I")
        if kind == self.ARRAY:
            [kind] = self.numbers("I")
            return key, self.values(kind, self.count())
        return key, self.values(kind, 1)[0]

    def tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        """Name, shape (slowest dimension first, as in PyTorch), kind and offset of the next tensor."""
        name, [n_dims] = self.string(), self.numbers("I")
        if not 1 <= n_dims <= 4:
            raise CheckpointError(f"tensor {name!r} has {n_dims} dimensions")
        shape, [kind, offset] = tuple(self.numbers("Q", n_dims)[::-1]), self.numbers("IQ")
        if kind not in self.KINDS:
            raise CheckpointError(f"tensor {name!r} has type {kind}, which is not supported")
        return name, shape, self.KINDS[kind], offset


def gguf_header(header: GGUFHeader) -> tuple[dict, list[tuple]]:
    """Everything before the numbers: the keys with their values, and what `header.tensor` says of each tensor."""
    if header.bytes(4) != b"GGUF":
        raise CheckpointError("this is not a GGUF file (it does not start with GGUF)")
    [version] = header.numbers("I")
    if version not in (2, 3):
        raise CheckpointError(f"GGUF version {version} is not supported, only 2 and 3")
    n_tensors, n_keys, meta = header.count(), header.count(), {}
    for _ in range(n_keys):
        key, value = header.pair()
        if not key or key in meta:
            raise CheckpointError(f"the header has an empty or repeated key {key!r}")
        meta[key] = value
    return meta, [header.tensor() for _ in range(n_tensors)]


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


@dataclass
class Checkpoint:
    """An opened file or folder: sizes, tensors under minillama's names, the tokenizer if it has one."""

    cfg: LlamaConfig
    tensors: dict[str, StoredTensor]
    tokenizer: Tokenizer | None

    def __post_init__(self):
        if self.tokenizer and self.tokenizer.vocab_size > (rows := self.cfg.vocab_size):
            raise CheckpointError(
                f"the tokenizer has ids up to {self.tokenizer.vocab_size - 1}, the embedding {rows} rows"
            )


def open_hugging_face(folder: Path) -> Checkpoint:
    """Read a Hugging Face folder: config.json, *.safetensors, and the tokenizer if it is there."""
    folder = Path(folder)
    cfg = hugging_face_config(read_json(folder, "config.json"))
    stored = safetensors_folder(folder)
    if cfg.tied_embeddings and (head := stored.pop("lm_head.weight", None)):
        if not torch.equal(head.read(), stored.get("model.embed_tokens.weight", head).read()):
            raise CheckpointError("config.json ties the head to the embedding, but there is a head of its own")
    tensors = {}
    for name, tensor in stored.items():
        if heads := {"q_proj": cfg.n_heads, "k_proj": cfg.n_kv_heads}.get(name.removesuffix(".weight").split(".")[-1]):
            tensor = StoredTensor(tensor.shape, lambda halves=tensor, heads=heads: interleave(halves.read(), heads))
        tensors[rename(name, HUGGING_FACE_NAMES)] = tensor
    return Checkpoint(cfg, tensors, hugging_face_tokenizer(folder))


def inside(folder: Path, name: str) -> Path:
    """The file of that plain name, which must lie in the folder (or in the blobs of a Hugging Face cache)."""
    plain = isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,200}", name)
    home, path = (Path(os.path.realpath(p)) for p in (folder, folder / (name if plain else "")))
    allowed = {home} | ({home.parent.parent / "blobs"} if home.parent.name == "snapshots" else set())
    if not plain or path.parent not in allowed:
        raise CheckpointError(f"only files inside the folder are read, not {name!r}")
    return path


def read_json(folder: Path, name: str) -> dict:
    """The JSON object in a file of the folder."""
    file = RawFile(inside(folder, name))
    return parse_json(file.text(0, file.size), name)


def safetensors_folder(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of model.safetensors, or of all the files that the index lists, which must agree with it."""
    index, tensors = "model.safetensors.index.json", {}
    if not (folder / index).exists():
        return open_safetensors(inside(folder, "model.safetensors"))
    listed = read_json(folder, index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index} has no weight_map from tensors to files")
    paths = {name: inside(folder, shard) for name, shard in listed.items()}
    for path, found in [(path, open_safetensors(path)) for path in dict.fromkeys(paths.values())]:
        if wrong := sorted(found.keys() ^ {name for name in paths if paths[name] == path}):
            raise CheckpointError(f"{path.name} holds or lacks {wrong[0]!r}, otherwise than {index} lists it")
        tensors |= found
    return tensors


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of wq or wk from Hugging Face's order (first halves, second halves) to neighbouring pairs, per head."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


class Bare(TorchFunctionMode):
    """While it is active, modules are built without drawing their first weights, which nobody will see."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def skeleton(cfg: LlamaConfig, n_tensors: int) -> Llama:
    """A model whose parameters have shapes and no memory, unless that many tensors cannot fill it."""
    if 9 * cfg.n_layers > n_tensors or n_tensors > 2_000:
        raise CheckpointError(f"{n_tensors} tensors cannot be those of a Llama of {cfg.n_layers} layers")
    try:
        with torch.device("meta"), Bare():
            return Llama(cfg)
    except (RuntimeError, TypeError, OverflowError):
        raise CheckpointError(f"an embedding of vocab_size {cfg.vocab_size}, dim {cfg.dim} fits no computer") from None


def assemble(checkpoint: Checkpoint, dtype=torch.float32, device="cpu") -> Llama:
    """The model, filled one tensor at a time; CheckpointError for a missing, extra or misshapen tensor."""
    model, tensors = skeleton(checkpoint.cfg, len(checkpoint.tensors)), checkpoint.tensors
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise CheckpointError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if extra := sorted(tensors.keys() - shapes.keys()):
        raise CheckpointError(f"{len(extra)} tensors too many, the first is {extra[0]}")
    if wrong := [name for name in shapes if tensors[name].shape != shapes[name]]:
        raise CheckpointError(f"{wrong[0]} has shape {tensors[wrong[0]].shape}, not {shapes[wrong[0]]}")
    for name, tensor in tqdm(tensors.items(), "loading", unit="tensor", disable=None, leave=False):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.read().to(device=device, dtype=dtype)))
    if checkpoint.cfg.tied_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval()


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


SIZES = (  # LlamaConfig, GGUF, Hugging Face
    ("dim", "llama.embedding_length", "hidden_size"),
    ("n_layers", "llama.block_count", "num_hidden_layers"),
    ("n_heads", "llama.attention.head_count", "num_attention_heads"),
    ("n_kv_heads", "llama.attention.head_count_kv", "num_key_value_heads"),
    ("head_dim", "llama.attention.key_length", "head_dim"),
    ("ffn_dim", "llama.feed_forward_length", "intermediate_size"),
    ("vocab_size", "llama.vocab_size", "vocab_size"),
    ("norm_eps", "llama.attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope_theta", "llama.rope.freq_base", "rope_theta"),
    ("max_seq_len", "llama.context_length", "max_position_embeddings"),
)


def sizes(column: int, values: dict, defaults: dict) -> dict:
    """LlamaConfig's sizes from a format's names (1 GGUF, 2 Hugging Face); KeyError for one that is missing."""
    names = {row[0]: row[column] for row in SIZES}
    values = defaults | {key: value for key, value in values.items() if value is not None}
    values.setdefault(names["n_kv_heads"], values[names["n_heads"]])
    if names["head_dim"] not in values:
        values[names["head_dim"]] = values[names["dim"]] // values[names["n_heads"]]
    return {ours: values[theirs] for ours, theirs in names.items()}


def open_gguf(path: Path) -> Checkpoint:
    """Read a GGUF file's header; a tensor is read and dequantized when it is asked for."""
    file = RawFile(Path(path))
    header = GGUFHeader(file.text(0, min(file.size, LIMIT)))
    meta, infos = gguf_header(header)
    alignment = meta.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment % 8:
        raise CheckpointError(f"general.alignment must be a multiple of 8, not {alignment!r}")
    tensors = lay_out(file, padded(header.at, alignment), infos, alignment)
    if (architecture := meta.get("general.architecture")) != "llama":
        raise CheckpointError(f"the architecture is {architecture!r}, not 'llama'")
    divisors = tensors.pop("rope_freqs.weight", None)
    tensors = {rename(name, GGUF_NAMES): tensor for name, tensor in tensors.items()}
    with reading("the header"):
        cfg = gguf_config(meta, divisors, tied="head.weight" not in tensors)
        return Checkpoint(cfg, tensors, gguf_tokenizer(meta))


def gguf_config(meta: dict, divisors: StoredTensor | None, tied: bool) -> LlamaConfig:
    """LlamaConfig from a GGUF file's keys; KeyError, TypeError or ValueError where they make none."""
    defaults = {"llama.rope.freq_base": 10_000.0, "llama.vocab_size": len(meta.get("tokenizer.ggml.tokens", []))}
    cfg = LlamaConfig(**sizes(1, meta, defaults), tied_embeddings=tied)
    widths = "llama.rope.dimension_count", "llama.attention.value_length"
    for key in meta:
        if re.match(r"llama\.(rope|attention)\.", key) and key not in (*widths, *(row[1] for row in SIZES)):
            raise ValueError(f"{key!r} is nothing that Llama 3.1 knows")
        if key in widths and meta[key] != cfg.head_dim:
            raise ValueError(f"{key} is {meta[key]!r}, but a head is {cfg.head_dim!r} wide")
    return replace(cfg, rope_scaling=gguf_rope_scaling(divisors, cfg.head_dim, cfg.rope_theta))


def gguf_rope_scaling(divisors: StoredTensor | None, head_dim: int, theta: float) -> RopeScaling | None:
    """The scaling whose effect the file's rope_freqs tensor stores, as one divisor per pair of a head."""
    if divisors is None:
        return None
    for scaling in (None, RopeScaling(8.0), RopeScaling(32.0)) if divisors.shape == (head_dim // 2,) else ():
        expected = rope_frequencies(head_dim, theta) / rope_frequencies(head_dim, theta, scaling)
        if torch.allclose(expected, divisors.read().float(), rtol=1e-4):
            return scaling
    raise ValueError("rope_freqs.weight holds a scaling that is neither Llama 3.1's nor 3.2's")


def hugging_face_config(config: dict) -> LlamaConfig:
    """LlamaConfig from config.json, as transformers 4 wrote it (rope_scaling) and 5 does (rope_parameters)."""
    fixed = dict(model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False, partial_rotary_factor=1)
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"config.json has {key} = {config[key]!r}; a Llama has {value!r}")
    with reading("config.json"):
        theta, scaling = hugging_face_rope(config)
        defaults = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
        tied = config.get("tie_word_embeddings", False)
        return LlamaConfig(
            **sizes(2, config | {"rope_theta": theta}, defaults), rope_scaling=scaling, tied_embeddings=tied
        )


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


GGUF_SPLITS = {"smollm": SMOLLM_SPLIT, "llama-bpe": LLAMA3_PATTERN, "gpt-2": GPT2_SPLIT}


def gguf_tokenizer(meta: dict) -> Tokenizer | None:
    """The byte-level BPE inside a GGUF file, or None where there is none."""
    if "tokenizer.ggml.tokens" not in meta:
        return None
    model, pre = meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]
    if model != "gpt2" or pre not in GGUF_SPLITS:
        raise ValueError(f"its tokenizer is of kind {model!r}, {pre!r}; byte-level BPE is expected")
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    specials = {token: id for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != 1}
    ids = {token: id for id, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise ValueError("its tokenizer lists a token twice")
    starts = meta.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")  # SmolLM2 names one and never adds it
    bos = meta.get("tokenizer.ggml.bos_token_id") if starts else None
    stop = [meta.get("tokenizer.ggml.eos_token_id")]
    stop += [specials.get(name) for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    merges = meta["tokenizer.ggml.merges"]
    return build_tokenizer(ids, specials, merges, GGUF_SPLITS[pre], bos, stop, pre == "llama-bpe")


def hugging_face_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder: Meta's tokenizer.model if present, else tokenizer.json, else None."""
    if (folder / "tokenizer.model").exists():
        with reading("tokenizer.model"):
            return Tokenizer.from_file(inside(folder, "tokenizer.model"))
    if not (folder / "tokenizer.json").exists():
        return None
    file = read_json(folder, "tokenizer.json")
    with reading("tokenizer.json"):
        model, pattern = file["model"], split_pattern(file)
        specials = {token["content"]: token["id"] for token in file["added_tokens"]}
        names = [name for name in ("generation_config.json", "config.json") if (folder / name).exists()]
        configs = [read_json(folder, name) for name in names]
        stop = [config.get("eos_token_id") for config in configs]
        stop = [id for ids in stop for id in (ids if isinstance(ids, list) else [ids])]
        bos = [id for config in configs if (id := config.get("bos_token_id")) is not None]
        if "TemplateProcessing" not in str(file.get("post_processor")):  # the files name a first token and never add it
            bos = []
        whole_chunks = model.get("ignore_merges", False)
        return build_tokenizer(
            model["vocab"], specials, model["merges"], pattern, bos[0] if bos else None, stop, whole_chunks
        )


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


def build_tokenizer(ids, specials, merges, pattern, bos, stop, whole_chunks) -> Tokenizer:
    """Tokenizer.from_gpt2 for parts that came out of a file; ValueError for ids that cannot be."""
    vocab = {token: id for token, id in ids.items() if token not in specials}
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    stop = [id for id in dict.fromkeys(stop) if id is not None]
    used, control = {*vocab.values(), *specials.values()}, {bos, *stop} - {None}
    if not all(type(id) is int and id >= 0 for id in used):
        raise ValueError("a token's id is not a whole number from 0 on")
    if not control <= used or any(type(id) is not int for id in control) or type(whole_chunks) is not bool:
        raise ValueError(f"its control ids {bos!r} and {stop!r} are not in the vocabulary")
    eos = stop[0] if stop else None
    return Tokenizer.from_gpt2(vocab, specials, merges, pattern, bos, eos, stop, whole_chunks)

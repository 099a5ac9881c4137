"""Checkpoints: one model, several file formats, equal logits.

Written by notebooks/07_checkpoints.ipynb: edit it there.
"""

import json
import math
import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from minillama.config import LlamaConfig, RopeScaling
from minillama.model import Llama
from minillama.rope import rope_frequencies
from minillama.tokenizer import GPT2_SPLIT, LLAMA3_PATTERN, SMOLLM_SPLIT, Tokenizer


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; one line that says what is wrong with which file."""


@dataclass
class Checkpoint:
    """An opened file or folder: the sizes, a loader per tensor under minillama's names, the tokenizer if it has one."""

    cfg: LlamaConfig
    tensors: dict[str, Callable[[], torch.Tensor]]
    tokenizer: Tokenizer | None = None


GGUF_NAMES = {
    "token_embd.weight": "embedding.weight",
    "blk.N.attn_norm.weight": "blocks.N.attention_norm.weight",
    "blk.N.attn_q.weight": "blocks.N.attention.wq.weight",
    "blk.N.attn_k.weight": "blocks.N.attention.wk.weight",
    "blk.N.attn_v.weight": "blocks.N.attention.wv.weight",
    "blk.N.attn_output.weight": "blocks.N.attention.wo.weight",
    "blk.N.ffn_norm.weight": "blocks.N.ffn_norm.weight",
    "blk.N.ffn_gate.weight": "blocks.N.feed_forward.gate.weight",
    "blk.N.ffn_up.weight": "blocks.N.feed_forward.up.weight",
    "blk.N.ffn_down.weight": "blocks.N.feed_forward.down.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
}
HUGGING_FACE_NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.layers.N.input_layernorm.weight": "blocks.N.attention_norm.weight",
    "model.layers.N.self_attn.q_proj.weight": "blocks.N.attention.wq.weight",
    "model.layers.N.self_attn.k_proj.weight": "blocks.N.attention.wk.weight",
    "model.layers.N.self_attn.v_proj.weight": "blocks.N.attention.wv.weight",
    "model.layers.N.self_attn.o_proj.weight": "blocks.N.attention.wo.weight",
    "model.layers.N.post_attention_layernorm.weight": "blocks.N.ffn_norm.weight",
    "model.layers.N.mlp.gate_proj.weight": "blocks.N.feed_forward.gate.weight",
    "model.layers.N.mlp.up_proj.weight": "blocks.N.feed_forward.up.weight",
    "model.layers.N.mlp.down_proj.weight": "blocks.N.feed_forward.down.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}


def rename(name: str, table: dict[str, str]) -> str:
    """minillama's name of a tensor; CheckpointError if the format's table does not list it."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    pattern = name if number is None else name[: number.start()] + "N" + name[number.end() :]
    if pattern not in table:
        raise CheckpointError(f"tensor {name!r} is not part of a Llama")
    return table[pattern] if number is None else table[pattern].replace("N", number[0])


def assemble(checkpoint: Checkpoint, dtype=torch.float32, device="cpu") -> Llama:
    """The model, filled one tensor at a time; CheckpointError for a missing, extra or misshapen tensor."""
    with torch.device("meta"):
        model = Llama(checkpoint.cfg)
    wanted = dict(model.named_parameters())  # a tied head is listed once, as the embedding
    if missing := sorted(wanted.keys() - checkpoint.tensors.keys()):
        raise CheckpointError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if extra := sorted(checkpoint.tensors.keys() - wanted.keys()):
        raise CheckpointError(f"{len(extra)} tensors too many, the first is {extra[0]}")
    for name in tqdm(wanted, desc="loading", unit="tensor", disable=None, leave=False):
        tensor = checkpoint.tensors[name]()
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}")
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.to(device=device, dtype=dtype, copy=True)))
    if checkpoint.cfg.tied_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval()


def load_checkpoint(path, dtype=torch.float32, device="cpu") -> tuple[Llama, Tokenizer | None]:
    """Model and tokenizer of a .gguf file or a Hugging Face folder; CheckpointError if it is neither or broken."""
    path = Path(path)
    try:
        if path.is_dir() and (path / "config.json").exists():
            checkpoint = open_hugging_face(path)
        elif path.is_file() and path.suffix == ".gguf":
            checkpoint = open_gguf(path)
        elif path.exists():
            raise CheckpointError("neither a .gguf file nor a folder with a config.json")
        else:
            raise CheckpointError("no such file or folder")
        return assemble(checkpoint, dtype, device), checkpoint.tokenizer
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, read from disk as they are touched; writes to them stay private."""
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise CheckpointError(f"{path.name} is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


class GGUFHeader:
    """Reads a GGUF header front to back and never past its end."""

    SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    STRING, ARRAY = 8, 9

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, code: str):
        size = struct.calcsize("<" + code)
        return struct.unpack("<" + code, self.bytes(size))[0]

    def bytes(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise CheckpointError(f"the header wants {size} bytes at {self.at}, but the file ends at {len(self.data)}")
        self.at += size
        return self.data[self.at - size : self.at]

    def string(self) -> str:
        try:
            return self.bytes(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"the string before byte {self.at} of the header is not UTF-8") from None

    def value(self, kind: int):
        if kind == self.STRING:
            return self.string()
        if kind == self.ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        if kind not in self.SCALARS:
            raise CheckpointError(f"the header has a value of unknown type {kind}")
        return self.number(self.SCALARS[kind])

    def array(self, kind: int, count: int) -> list:
        if kind in self.SCALARS:
            code = self.SCALARS[kind]
            return list(struct.unpack(f"<{count}{code}", self.bytes(count * struct.calcsize("<" + code))))
        if kind != self.STRING or count > len(self.data) // 8:
            raise CheckpointError(f"the header has an array of {count} items of type {kind}")
        return [self.string() for _ in range(count)]


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


def open_gguf(path: Path) -> Checkpoint:
    """Read a GGUF file's header; tensors are dequantized to float32 when they are asked for."""
    data = map_file(path)
    header = GGUFHeader(data)
    if header.bytes(4) != b"GGUF":
        raise CheckpointError("this is not a GGUF file (it does not start with GGUF)")
    if (version := header.number("I")) not in (2, 3):
        raise CheckpointError(f"GGUF version {version} is not supported, only 2 and 3")
    n_tensors, n_keys = header.number("Q"), header.number("Q")
    meta = {}
    for _ in range(n_keys):
        key = header.string()
        if not key or key in meta:
            raise CheckpointError(f"the header has an empty or repeated key {key!r}")
        meta[key] = header.value(header.number("I"))
    infos = [gguf_tensor_info(header) for _ in range(n_tensors)]
    alignment = meta.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment % 8:
        raise CheckpointError(f"general.alignment must be a multiple of 8, not {alignment!r}")
    start = -(-header.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise CheckpointError(f"tensor {name!r} is stored twice")
        tensors[name] = gguf_tensor(data, name, shape, kind, start + offset)
    return gguf_checkpoint(meta, tensors)


def gguf_tensor_info(header: GGUFHeader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape (slowest dimension first), type and offset of the next tensor."""
    name, n_dims = header.string(), header.number("I")
    if not 1 <= n_dims <= 4:
        raise CheckpointError(f"tensor {name!r} has {n_dims} dimensions")
    shape = tuple(header.number("Q") for _ in range(n_dims))[::-1]
    return name, shape, header.number("I"), header.number("Q")


def gguf_tensor(data, name, shape, kind, offset) -> Callable[[], torch.Tensor]:
    """A loader for one tensor, after checking that it lies inside the file."""
    if kind not in DEQUANTIZE:
        raise CheckpointError(f"tensor {name!r} has type {kind}, which is not supported")
    _, block_numbers, block_bytes, dequantize = DEQUANTIZE[kind]
    if shape[-1] % block_numbers or not math.prod(shape):
        raise CheckpointError(f"tensor {name!r} of shape {shape} does not divide into blocks of {block_numbers}")
    size = math.prod(shape) // block_numbers * block_bytes
    if offset + size > len(data):
        raise CheckpointError(f"tensor {name!r} ends at byte {offset + size}, the file at {len(data)}: truncated?")

    def load():
        blocks = torch.frombuffer(data, dtype=torch.uint8, count=size, offset=offset)
        return dequantize(blocks.view(-1, block_bytes)).view(shape)

    return load


def gguf_checkpoint(meta: dict, tensors: dict) -> Checkpoint:
    """Sizes, names and tokenizer of a GGUF file under minillama's names."""
    if (architecture := meta.get("general.architecture")) != "llama":
        raise CheckpointError(f"the architecture is {architecture!r}, not 'llama'")
    if scaled := [key for key in meta if key.startswith("llama.rope.scaling.")]:
        raise CheckpointError(f"{scaled[0]} asks for a RoPE scaling that is not Llama 3.1's")

    def get(key, default=None):
        if (value := meta.get("llama." + key, default)) is None:
            raise CheckpointError(f"the header has no llama.{key}")
        return value

    tied = "output.weight" not in tensors
    try:
        head_dim = get("rope.dimension_count", get("embedding_length") // get("attention.head_count"))
        theta = get("rope.freq_base", 10_000.0)
        cfg = LlamaConfig(
            dim=get("embedding_length"),
            n_layers=get("block_count"),
            n_heads=get("attention.head_count"),
            n_kv_heads=get("attention.head_count_kv", get("attention.head_count")),
            head_dim=get("attention.key_length", head_dim),
            ffn_dim=get("feed_forward_length"),
            vocab_size=get("vocab_size", len(meta.get("tokenizer.ggml.tokens", ()))),
            norm_eps=get("attention.layer_norm_rms_epsilon"),
            rope_theta=theta,
            rope_scaling=gguf_rope_scaling(tensors.pop("rope_freqs.weight", None), head_dim, theta),
            max_seq_len=get("context_length"),
            tied_embeddings=tied,
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(str(error)) from None
    return Checkpoint(cfg, {rename(name, GGUF_NAMES): load for name, load in tensors.items()}, gguf_tokenizer(meta))


def gguf_rope_scaling(load, head_dim: int, theta: float) -> RopeScaling | None:
    """The scaling whose effect the file's rope_freqs tensor stores, as one divisor per pair."""
    if load is None:
        return None
    divisors, freqs = load(), rope_frequencies(head_dim, theta)
    for factor in (8.0, 32.0):
        scaling = RopeScaling(factor)
        if torch.allclose(freqs / rope_frequencies(head_dim, theta, scaling), divisors, rtol=1e-4):
            return scaling
    raise CheckpointError("rope_freqs.weight holds a scaling that is neither Llama 3.1's nor 3.2's")


def gguf_tokenizer(meta: dict) -> Tokenizer | None:
    """The byte-level BPE inside a GGUF file, or None where there is none."""
    if "tokenizer.ggml.tokens" not in meta:
        return None
    patterns = {"smollm": SMOLLM_SPLIT, "llama-bpe": LLAMA3_PATTERN, "gpt-2": GPT2_SPLIT}
    model, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if model != "gpt2" or pre not in patterns:
        raise CheckpointError(f"the tokenizer is of kind {model!r}, {pre!r}; byte-level BPE is expected")
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta.get("tokenizer.ggml.token_type", [])
    special = {token: id for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != 1}
    plain = {token: id for id, token in enumerate(tokens) if token not in special}
    eos = meta.get("tokenizer.ggml.eos_token_id")
    merges = [tuple(merge.split(" ")) for merge in meta.get("tokenizer.ggml.merges", [])]
    return Tokenizer.from_gpt2(
        plain, special, merges, patterns[pre], bos_id=meta.get("tokenizer.ggml.bos_token_id"), eos_id=eos
    )


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def open_hugging_face(folder: Path) -> Checkpoint:
    """Read a Hugging Face folder: config.json, *.safetensors, and the tokenizer if it is there."""
    cfg = hugging_face_config(read_json(folder / "config.json"))
    tensors = {}
    for file in safetensors_files(folder):
        for name, load in open_safetensors(file).items():
            if name in tensors:
                raise CheckpointError(f"tensor {name!r} is stored twice, the second time in {file.name}")
            tensors[name] = load
    if cfg.tied_embeddings:
        tensors.pop("lm_head.weight", None)
    named = {}
    for name, load in tensors.items():
        heads = {"q_proj": cfg.n_heads, "k_proj": cfg.n_kv_heads}.get(name.split(".")[-2])
        named[rename(name, HUGGING_FACE_NAMES)] = load if heads is None else interleaved(load, heads)
    return Checkpoint(cfg, named, hugging_face_tokenizer(folder))


def interleaved(load, heads: int) -> Callable[[], torch.Tensor]:
    """A loader whose rows pair up as neighbours; Hugging Face stores each head's first halves, then its second."""

    def load_interleaved():
        weight = load()
        return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)

    return load_interleaved


def read_json(path: Path) -> dict:
    """A JSON object from a file of at most 100 MB; CheckpointError if it is anything else."""
    if path.stat().st_size > 100_000_000:
        raise CheckpointError(f"{path.name} is larger than 100 MB")
    return parse_json(path.read_bytes(), path.name)


def parse_json(data: bytes, name: str) -> dict:
    """A JSON object from bytes, refusing repeated keys, which most parsers silently drop."""

    def unique(pairs):
        if len(pairs) != len(dict(pairs)):
            raise CheckpointError(f"{name} repeats a key")
        return dict(pairs)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} does not hold a JSON object")
    return value


def hugging_face_config(config: dict) -> LlamaConfig:
    """LlamaConfig from config.json, as transformers 4 wrote it (rope_scaling) and 5 does (rope_parameters)."""
    fixed = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"config.json has {key} = {config[key]!r}; a Llama has {value!r}")
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", config.get("rope_theta", 10_000.0))
    try:
        dim, n_heads = config["hidden_size"], config["num_attention_heads"]
        return LlamaConfig(
            dim=dim,
            n_layers=config["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=config.get("num_key_value_heads") or n_heads,
            head_dim=config.get("head_dim") or dim // n_heads,
            ffn_dim=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=hugging_face_scaling(rope),
            max_seq_len=config.get("max_position_embeddings", 2048),
            tied_embeddings=config.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise CheckpointError(f"config.json has no {error}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json: {error}") from None


def hugging_face_scaling(rope: dict) -> RopeScaling | None:
    """RopeScaling from the rope settings; unknown kinds and keys are refused, never ignored."""
    rope = dict(rope)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    if kind == "default" and not rope:
        return None
    names = {"original_max_position_embeddings": "original_max_seq_len"}
    known = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    if kind != "llama3" or rope.keys() != known:
        raise CheckpointError(f"rope scaling {kind!r} with {', '.join(sorted(rope)) or 'nothing'} is not known")
    return RopeScaling(**{names.get(key, key): value for key, value in rope.items()})


def safetensors_files(folder: Path) -> list[Path]:
    """The folder's weight files, from the index where there is one; only plain names inside the folder."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index.name} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise CheckpointError(f"{index.name} names the file {name!r}; only names inside the folder are read")
    return [folder / name for name in sorted(set(weight_map.values()))]


def open_safetensors(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """A loader per tensor of one safetensors file: 8 bytes header length, JSON header, raw numbers."""
    data = map_file(path)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, 100_000_000):
        raise CheckpointError(f"{path.name}: the header is longer than the file")
    header = parse_json(data[8 : 8 + length], path.name)
    header.pop("__metadata__", None)
    loaders, used = {}, 0
    try:
        for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (start, end) = DTYPES[info["dtype"]], info["shape"], info["data_offsets"]
            if start != used or end - start != math.prod(shape) * dtype.itemsize:
                raise CheckpointError(f"{path.name}: tensor {name!r} leaves a hole, overlaps or has a wrong size")
            used, at = end, 8 + length + start
            loaders[name] = lambda at=at, dtype=dtype, shape=shape: torch.frombuffer(
                data, dtype=dtype, count=math.prod(shape), offset=at
            ).view(shape)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path.name}: a tensor's entry is malformed ({error!r})") from None
    if 8 + length + used != len(data):
        raise CheckpointError(f"{path.name}: {len(data)} bytes, but the header describes {8 + length + used}")
    return loaders


def hugging_face_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder: Meta's tokenizer.model if present, else tokenizer.json, else None."""
    if (folder / "tokenizer.model").exists():
        return Tokenizer.from_file(folder / "tokenizer.model")
    if not (folder / "tokenizer.json").exists():
        return None
    file, config = read_json(folder / "tokenizer.json"), read_json(folder / "config.json")
    try:
        model, split = file["model"], json.dumps(file["pre_tokenizer"], ensure_ascii=False)
        special = {token["content"]: token["id"] for token in file["added_tokens"] if token["special"]}
        merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        plain = {token: id for token, id in model["vocab"].items() if token not in special}
        whole_chunks = model.get("ignore_merges", False)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"tokenizer.json has no byte-level BPE ({error!r})") from None
    if json.dumps(LLAMA3_PATTERN, ensure_ascii=False) in split:
        pattern = LLAMA3_PATTERN
    else:
        pattern = SMOLLM_SPLIT if '"Digits"' in split else GPT2_SPLIT
    stop = config.get("eos_token_id")
    stop = stop if isinstance(stop, list) else [] if stop is None else [stop]
    return Tokenizer.from_gpt2(
        plain, special, merges, pattern, bos_id=config.get("bos_token_id"), eos_id=stop[0] if stop else None,
        stop_ids=stop, whole_chunks=whole_chunks,
    )  # fmt: skip

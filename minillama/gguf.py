"""7c. GGUF.

Written by notebooks/07c_gguf.ipynb: edit it there.
"""

import re
import struct
from dataclasses import replace
from pathlib import Path

import torch

from minillama.checkpoints import (
    GGUF,
    KINDS,
    LIMIT,
    SIZES,
    Checkpoint,
    CheckpointError,
    RawFile,
    StoredTensor,
    build_tokenizer,
    lay_out,
    padded,
    reading,
    rename,
    sizes,
)
from minillama.config import LlamaConfig, RopeScaling
from minillama.rope import rope_frequencies
from minillama.tokenizer import GPT2_SPLIT, LLAMA3_PATTERN, SMOLLM_SPLIT, Tokenizer


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
    tensors = {rename(name, GGUF): tensor for name, tensor in tensors.items()}
    with reading("the header"):
        cfg = gguf_config(meta, divisors, tied="head.weight" not in tensors)
        return Checkpoint(cfg, tensors, gguf_tokenizer(meta))


def gguf_config(meta: dict, divisors: StoredTensor | None, tied: bool) -> LlamaConfig:
    """LlamaConfig from a GGUF file's keys; KeyError, TypeError or ValueError where they make none."""
    defaults = {"llama.rope.freq_base": 10_000.0, "llama.vocab_size": len(meta.get("tokenizer.ggml.tokens", []))}
    cfg = LlamaConfig(**sizes(2, meta, defaults), tied_embeddings=tied)
    widths = "llama.rope.dimension_count", "llama.attention.value_length"
    for key in meta:
        if re.match(r"llama\.(rope|attention)\.", key) and key not in (*widths, *(row[2] for row in SIZES)):
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

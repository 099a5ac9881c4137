"""7c. GGUF: four bits per weight, and everything in one file.

Written by notebooks/07c_gguf.ipynb: edit it there.
"""

import re
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from minillama.chat_formats import set_chat_format
from minillama.checkpoints.assemble import Checkpoint, build_tokenizer
from minillama.checkpoints.files import CheckpointError, RawFile, reading
from minillama.checkpoints.gguf_blocks import GGML_TYPES
from minillama.checkpoints.names import GGUF, SIZES, rename, sizes
from minillama.checkpoints.tensors import StoredTensor, lay_out, padded
from minillama.config import LlamaConfig, RopeScaling
from minillama.rope import rope_frequencies
from minillama.tokenizer import GPT2_SPLIT, LLAMA3_PATTERN, SMOLLM_SPLIT, Tokenizer


class GGUFHeader:
    """Reads a GGUF header front to back; never past its end, and no more tensors, keys and items
    than it says here.
    """

    SCALARS = {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }
    STRING, ARRAY = 8, 9
    TYPES = (  # by their numbers, all that GGUF has or had
        "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS "
        "IQ2_XS IQ3_XXS IQ1_S "
        "IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 TQ1_0 "
        "TQ2_0 "
        "IQ4_NL_4_4 IQ4_NL_4_8 IQ4_NL_8_8 MXFP4 NVFP4 Q1_0"
    ).split()
    # Llama 3's header has about 8 million bytes, its lists 536,659 items
    BYTES, ITEMS = 16_000_000, 600_000
    TENSORS, KEYS = 2_000, 1_000  # 405B has 1,138 tensors

    def __init__(self, data: bytes):
        self.data, self.at, self.items_left = data, 0, self.ITEMS

    def move(self, end: int) -> int:
        """Go to that position; returns the one before."""
        if end > len(self.data):
            raise CheckpointError(
                f"the header goes on to byte {end}, of {len(self.data)} that can be read: "
                f"truncated?"
            )
        self.at, before = end, self.at
        return before

    def bytes(self, size: int) -> bytes:
        before = self.move(self.at + size)
        return self.data[before : self.at]

    def scalars(self, code: str, count: int = 1) -> list:
        return list(
            struct.unpack(f"<{count}{code}", self.bytes(count * struct.calcsize("<" + code)))
        )

    def count(self, most: int) -> int:
        """How many things follow, refused before anything is built if that is absurd."""
        count = int.from_bytes(self.bytes(8), "little")
        if count > most:
            raise CheckpointError(
                f"the header announces {count} items at byte {self.at}, at most {most} are read"
            )
        return count

    def strings(self, count: int) -> list[str]:
        data, end, found = self.data, self.at, []
        # subtle: 400,000 times for Llama 3, so this loop calls nothing of ours
        for _ in range(count):
            start = end + 8
            end = start + int.from_bytes(data[end:start], "little")
            found.append(data[start:end])
        self.move(end)
        try:
            return [text.decode("utf-8") for text in found]
        except UnicodeDecodeError:
            raise CheckpointError(
                f"a string before byte {self.at} of the header is not UTF-8"
            ) from None

    def values(self, kind: int, count: int) -> list:
        if kind == self.STRING:
            return self.strings(count)
        if kind not in self.SCALARS:  # arrays of arrays among them
            raise CheckpointError(
                f"the header has a value or array of unknown type {kind} at byte {self.at}"
            )
        return self.scalars(self.SCALARS[kind], count)

    def pair(self) -> tuple:
        """A key and its value."""
        [key], [kind] = self.strings(1), self.scalars("I")
        if kind == self.ARRAY:
            [kind], count = self.scalars("I"), self.count(self.items_left)
            self.items_left -= count
            return key, self.values(kind, count)
        return key, self.values(kind, 1)[0]

    def tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        """Name, shape (slowest dimension first, as in PyTorch), kind and offset of the next
        tensor.
        """
        [name], [n_dims] = self.strings(1), self.scalars("I")
        if not 1 <= n_dims <= 4:
            raise CheckpointError(f"tensor {name!r} has {n_dims} dimensions")
        shape, [kind, offset] = tuple(self.scalars("Q", n_dims)[::-1]), self.scalars("IQ")
        kind = self.TYPES[kind] if kind < len(self.TYPES) else kind
        if kind not in GGML_TYPES:
            raise CheckpointError(
                f"tensor {name!r} has type {kind}, which is not supported; {', '.join(GGML_TYPES)} "
                f"are"
            )
        return name, shape, kind, offset


def gguf_header(header: GGUFHeader) -> tuple[dict, list[tuple]]:
    """All before the tensor data: keys, values, and what `header.tensor` says of each tensor."""
    if header.bytes(4) != b"GGUF":
        raise CheckpointError("this is not a GGUF file (it does not start with GGUF)")
    [version] = header.scalars("I")
    if version in (2 << 24, 3 << 24):
        raise CheckpointError("this GGUF file is big-endian, which is not supported")
    if version not in (2, 3):
        raise CheckpointError(f"GGUF version {version} is not supported, only 2 and 3")
    n_tensors, n_keys, meta = header.count(header.TENSORS), header.count(header.KEYS), {}
    for _ in range(n_keys):
        key, value = header.pair()
        if not key or key in meta:
            raise CheckpointError(f"the header has an empty or repeated key {key!r}")
        meta[key] = value
    return meta, [header.tensor() for _ in range(n_tensors)]


def gguf_file(path: Path) -> tuple[dict, dict[str, StoredTensor]]:
    """The keys and the tensors of one file."""
    file = RawFile(path)
    header = GGUFHeader(file.read_small(0, min(file.size, GGUFHeader.BYTES)))
    meta, infos = gguf_header(header)
    alignment = meta.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment % 8:
        raise CheckpointError(f"general.alignment must be a multiple of 8, not {alignment!r}")
    return meta, lay_out(file, padded(header.at, alignment), infos, alignment, GGML_TYPES)


PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def gguf_parts(path: Path) -> tuple[dict, dict[str, StoredTensor]]:
    """As `gguf_file`; of a model that is cut into several files, any of which may be named, the
    keys of the first and the tensors of all.
    """
    meta, tensors = gguf_file(path)
    if (count := meta.get("split.count", 1)) == 1:
        return meta, tensors
    name = PART.fullmatch(path.name)
    if not name or type(count) is not int or not 1 < count == int(name[3]):
        raise CheckpointError(
            f"this is one of several files ({count!r}), whose names end in -00001-of-0000N.gguf"
        )
    paths = [path.with_name(f"{name[1]}-{i:05}-of-{name[3]}.gguf") for i in range(1, count + 1)]
    files, tensors = [gguf_file(part) for part in paths], {}
    for i, (keys, more) in enumerate(files):
        if (keys.get("split.no"), keys.get("split.count")) != (i, count):
            raise CheckpointError(f"{paths[i].name} is not file {i + 1} of {count}")
        if twice := sorted(tensors.keys() & more.keys()):
            raise CheckpointError(f"{paths[i].name} holds {twice[0]!r}, as a file before it does")
        tensors |= more
    if files[0][0].get("split.tensors.count") != len(tensors):
        raise CheckpointError(f"its files hold {len(tensors)} tensors, otherwise than they say")
    return files[0][0], tensors


def open_gguf(path: Path) -> Checkpoint:
    """Read a GGUF file's header; a tensor is read and dequantized when it is asked for."""
    meta, tensors = gguf_parts(Path(path))
    if (architecture := meta.get("general.architecture")) != "llama":
        raise CheckpointError(f"the architecture is {architecture!r}, not 'llama'")
    divisors = tensors.pop("rope_freqs.weight", None)
    tensors = {rename(name, GGUF): tensor for name, tensor in tensors.items()}
    with reading("the header"):
        cfg = gguf_config(meta, divisors, tied="head.weight" not in tensors)
        if len(meta.get("tokenizer.ggml.tokens", [])) > tensors["embedding.weight"].shape[0]:
            raise ValueError("it lists more tokens than the embedding has rows")
        return Checkpoint(cfg, tensors, gguf_tokenizer(meta))


def gguf_config(meta: dict, divisors: StoredTensor | None, tied: bool) -> LlamaConfig:
    """LlamaConfig from a GGUF file's keys; KeyError, TypeError or ValueError where they make
    none.
    """
    defaults = {
        "llama.rope.freq_base": 10_000.0,
        "llama.vocab_size": len(meta.get("tokenizer.ggml.tokens", [])),
    }
    cfg = LlamaConfig(**sizes(2, meta, defaults), tied_embeddings=tied)
    widths = "llama.rope.dimension_count", "llama.attention.value_length"
    for key in meta:
        if re.match(r"llama\.(rope|attention)\.", key) and key not in (
            *widths,
            *(row[2] for row in SIZES),
        ):
            raise ValueError(f"{key!r} is nothing that Llama 3.1 knows")
        if key in widths and meta[key] != cfg.head_dim:
            raise ValueError(f"{key} is {meta[key]!r}, but a head is {cfg.head_dim!r} wide")
    return replace(cfg, rope_scaling=gguf_rope_scaling(divisors, cfg.head_dim, cfg.rope_theta))


def gguf_rope_scaling(
    divisors: StoredTensor | None, head_dim: int, theta: float
) -> RopeScaling | None:
    """The scaling whose effect the file's rope_freqs tensor stores, as one divisor per pair of a
    head.
    """
    if divisors is None:
        return None
    found, scalings = None, []
    if divisors.shape == (head_dim // 2,):
        found = divisors.read().float()
        factor = found.max().item()  # of the slowest pairs
        contexts = (8192, *(2**n for n in range(6, 18)))  # Llama 3's, then any power of two
        if 1 <= factor < 1e6:
            scalings = [RopeScaling(factor, original_max_seq_len=length) for length in contexts]
    for scaling in (None, *scalings):
        expected = rope_frequencies(head_dim, theta) / rope_frequencies(head_dim, theta, scaling)
        if found is not None and torch.allclose(expected, found, rtol=1e-4):
            return scaling
    raise ValueError("rope_freqs.weight holds a scaling that is not of Llama 3.1's kind")


LLAMA_3_SPLITS = ("llama-bpe", "llama-v3", "llama3")  # three names of one pattern
GGUF_SPLITS = {  # name -> (pattern, whether a chunk that is a token is taken whole)
    **dict.fromkeys(LLAMA_3_SPLITS, (LLAMA3_PATTERN, True)),
    "smaug-bpe": (LLAMA3_PATTERN, False),
    "smollm": (SMOLLM_SPLIT, False),
    "gpt-2": (GPT2_SPLIT, False),
}
GGUF_PRE_NAMES = {how: name for name, how in reversed(GGUF_SPLITS.items())}  # for writing


def gguf_tokenizer(meta: dict) -> Tokenizer | None:
    """The byte-level BPE inside a GGUF file, or None where there is none or, with a warning, one of
    another kind.
    """
    if "tokenizer.ggml.tokens" not in meta:
        return None
    model, pre = (str(meta.get(f"tokenizer.ggml.{key}"))[:40] for key in ("model", "pre"))
    if model != "gpt2" or pre not in GGUF_SPLITS:
        warnings.warn(
            f"its tokenizer ({model!r}, {pre!r}) is of a kind not known here: it takes ids only",
            stacklevel=2,
        )
        return None
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    specials = {
        token: id for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != 1
    }
    plain = {token: False for token, kind in zip(tokens, kinds, strict=True) if kind == 4}
    ids = {token: id for id, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise ValueError("its tokenizer lists a token twice")
    pattern, whole_chunks = GGUF_SPLITS[pre]
    first = meta.get("tokenizer.ggml.bos_token_id")
    bos = first if meta.get("tokenizer.ggml.add_bos_token", pre in LLAMA_3_SPLITS) else None
    stop = [meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    stop += [specials.get(name) for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    merges = meta["tokenizer.ggml.merges"]
    tokenizer = build_tokenizer(ids, specials, merges, pattern, bos, stop, whole_chunks, plain)
    return set_chat_format(tokenizer, meta.get("tokenizer.chat_template"), first)

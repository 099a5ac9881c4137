"""7c. GGUF: four bits per weight, and everything in one file.

Written by notebooks/07c_gguf.ipynb: edit it there.
"""

import shutil
import struct
import warnings
from functools import partial
from pathlib import Path

import torch

from minillama.chat_formats import CHAT_TEMPLATES, chat_format
from minillama.checkpoints.assemble import Checkpoint, progress_bar, skeleton
from minillama.checkpoints.atomic import check_free, new_file
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.gguf import GGUF_PRE_NAMES, GGUFHeader, gguf_rope_scaling
from minillama.checkpoints.gguf_blocks import GGML_TYPES
from minillama.checkpoints.gguf_quantizers import QUANTIZERS
from minillama.checkpoints.hugging_face_tokenizer import merges_of
from minillama.checkpoints.hugging_face_writer import weights
from minillama.checkpoints.names import GGUF, SIZES, rename
from minillama.checkpoints.tensors import SLICE, StoredTensor, n_bytes, padded
from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.rope import rope_frequencies
from minillama.tokenizer import Tokenizer, gpt2_bytes


FALLBACKS = {"Q6_K": "Q8_0", "Q8_0": "F16", "Q4_0": "F16", "Q4_1": "F16"}


def kind_of(name: str, shape: tuple[int, ...], kind: str, tied: bool) -> str:
    """The kind in which a tensor is stored: norms in F32, the head never in 4 bits, and a kind with
    shorter blocks where rows do not divide.
    """
    if len(shape) == 1:
        return "F32"
    if kind.startswith("Q4") and name == ("embedding.weight" if tied else "head.weight"):
        kind = "Q6_K"
    while shape[-1] % GGML_TYPES[kind][0]:
        kind = FALLBACKS[kind]
    return kind


STAND_INS = {byte: char for char, byte in gpt2_bytes().items()}


def spelled(token: bytes) -> str:
    """A token in GPT-2's characters."""
    return "".join(STAND_INS[byte] for byte in token)


def token_lists(tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    """(tokens, their types), one for each row of the embedding: 1 text, 3 control, 4 added and part
    of text, 5 unused. CheckpointError.
    """
    tokens, types = [f"[PAD{id}]" for id in range(rows)], [5] * rows
    for token, id in tokenizer.vocab.items():
        tokens[id], types[id] = spelled(token), 1
    for name, id in tokenizer.specials.items():
        unused = name == tokens[id]  # a file of this kind was read
        tokens[id], types[id] = name, 5 if unused else 4 if name in tokenizer.plain else 3
    if len(set(tokens)) < rows:
        raise CheckpointError("two tokens are spelled alike, which GGUF cannot hold")
    return tokens, types


def tokenizer_keys(tokenizer: Tokenizer, rows: int) -> dict:
    """All that a GGUF file says of a tokenizer; CheckpointError for one that it cannot describe."""
    how = tokenizer.pattern.pattern, tokenizer.whole_chunks
    if how not in GGUF_PRE_NAMES:
        raise CheckpointError("GGUF has no name for how this tokenizer cuts text")
    tokens, types = token_lists(tokenizer, rows)
    keys = {"model": "gpt2", "pre": GGUF_PRE_NAMES[how], "tokens": tokens, "token_type": types}
    keys["merges"] = [f"{spelled(left)} {spelled(right)}" for left, right in merges_of(tokenizer)]
    layout = tokenizer.chat_format or chat_format(tokenizer)
    first = layout.first[0] if layout.first else tokenizer.bos_id
    ids = {"bos": first} | end_ids(tokenizer)
    keys |= {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    keys["add_bos_token"] = tokenizer.bos_id is not None
    keys = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    template = layout.template or CHAT_TEMPLATES.get(layout.name)
    return keys | ({"tokenizer.chat_template": template} if template else {})


def end_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """The ids that end a text, a turn and a message: the three that GGUF has keys for."""
    names = {"eot": "<|eot_id|>", "eom": "<|eom_id|>"}
    ends = {key: tokenizer.specials.get(name) for key, name in names.items()}
    ends = {key: id for key, id in ends.items() if id in tokenizer.stop_ids}
    others = sorted(tokenizer.stop_ids - {tokenizer.eos_id, *ends.values()})
    for key in [key for key in names if key not in ends][: len(others)]:
        ends[key] = others.pop(0)
    if others:
        lost = tokenizer.decode(others)
        warnings.warn(f"GGUF names three tokens at which to stop: {lost} is left out", stacklevel=2)
    return {"eos": tokenizer.eos_id} | ends


FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q6_K": 18, "BF16": 32}


def gguf_keys(cfg: LlamaConfig, tokenizer: Tokenizer, kind: str) -> dict:
    """The header's keys and values."""
    keys = {"general.architecture": "llama", "general.file_type": FILE_TYPES[kind]}
    keys |= {"general.quantization_version": 2, "general.alignment": 32}
    keys |= {theirs: getattr(cfg, ours) for ours, _, theirs in SIZES}
    keys |= {"llama.rope.dimension_count": cfg.head_dim}
    keys |= {"llama.attention.value_length": cfg.head_dim}
    for key in ("llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"):
        keys[key] = float(keys[key])
    return keys | tokenizer_keys(tokenizer, cfg.vocab_size)


def string(text: str) -> bytes:
    """8 bytes of length, then the characters."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value_bytes(value) -> bytes:
    """A value after the number of its type; a whole number as uint32, in a list as int32."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + string(value)
    if isinstance(value, list):
        text = bool(value) and isinstance(value[0], str)
        items = map(string, value) if text else (struct.pack("<i", item) for item in value)
        return struct.pack("<IIQ", 9, 8 if text else 5, len(value)) + b"".join(items)
    number, code = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}[type(value)]
    return struct.pack("<I" + code, number, value)


def header_bytes(keys: dict, tensors: dict[str, tuple[StoredTensor, str]]) -> bytes:
    """All before the tensor data, padded. tensors: GGUF's name -> (tensor, kind to write)."""
    parts, at = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))], 0
    parts += [string(key) + value_bytes(value) for key, value in keys.items()]
    for name, (tensor, kind) in tensors.items():
        dims = tensor.shape[::-1]  # fastest first
        numbers = len(dims), *dims, GGUFHeader.TYPES.index(kind), at
        parts.append(string(name) + struct.pack(f"<I{len(dims)}QIQ", *numbers))
        at += padded(n_bytes(tensor.shape, kind, GGML_TYPES), 32)
    header = b"".join(parts)
    return header + bytes(-len(header) % 32)


def write_tensor(file, name: str, tensor: StoredTensor, kind: str) -> None:
    """A tensor's elements, quantized slice by slice, and zeros up to the next multiple of 32; bytes
    that are of this kind already are copied.
    """
    size = n_bytes(tensor.shape, kind, GGML_TYPES)
    if tensor.kind == kind and tensor.raw:
        for first in range(0, size, SLICE):
            file.write(tensor.raw(first, first + SLICE).numpy())
    else:
        for part in tensor.read().detach().to("cpu").reshape(-1).split(SLICE // 8):
            part = part.float()
            most = 3e38 if kind in ("F32", "BF16") else 65504  # float16's largest, of scales too
            if not (part.abs() <= most).all():
                raise CheckpointError(f"{name} has numbers that {kind} cannot hold: try bf16")
            file.write(QUANTIZERS[kind](part.view(-1, GGML_TYPES[kind][0])).numpy())
    file.write(bytes(-size % 32))


def rope_divisors(cfg: LlamaConfig) -> dict[str, StoredTensor]:
    """rope_freqs.weight, if the model's rotation is scaled; CheckpointError for a scaling that a
    reader could not recognise in it.
    """
    if cfg.rope_scaling is None:
        return {}
    plain = rope_frequencies(cfg.head_dim, cfg.rope_theta)
    scaled = rope_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
    stored = StoredTensor((cfg.head_dim // 2,), lambda: plain / scaled)
    try:
        gguf_rope_scaling(stored, cfg.head_dim, cfg.rope_theta)
    except ValueError:
        raise CheckpointError(f"GGUF cannot say {cfg.rope_scaling}; other formats can") from None
    return {"rope_freqs.weight": stored}


def write_gguf_file(checkpoint: Checkpoint, path, kind: str, force=False) -> dict[str, int]:
    """Write a checkpoint as one GGUF file, a tensor at a time; returns how many tensors are of
    which kind. Errors as `save_gguf`.
    """
    cfg, kind = checkpoint.cfg, kind.upper()
    if kind not in FILE_TYPES:
        raise CheckpointError(f"GGUF is written as {', '.join(FILE_TYPES)}, not {kind}")
    if checkpoint.tokenizer is None:
        raise CheckpointError("there is no tokenizer, which a GGUF file needs; a folder does not")
    check_free(Path(path), force)  # before anything is read
    check_shapes(checkpoint)
    theirs, tensors = {ours: name for name, ours in GGUF.items()}, {}
    for name, tensor in checkpoint.tensors.items():
        stored = kind_of(name, tensor.shape, kind, cfg.tied_embeddings)
        tensors[rename(name, theirs)] = tensor, stored
    tensors |= {name: (tensor, "F32") for name, tensor in rope_divisors(cfg).items()}
    header = header_bytes(gguf_keys(cfg, checkpoint.tokenizer, kind), tensors)
    size = sum(n_bytes(tensor.shape, stored, GGML_TYPES) for tensor, stored in tensors.values())
    with new_file(path, force) as file:
        if size > (free := shutil.disk_usage(Path(file.name).parent).free):
            raise CheckpointError(f"{path} needs {size:,} bytes, and {free:,} are free")
        file.write(header)
        for name, (tensor, stored) in progress_bar(tensors.items(), "writing", unit="tensor"):
            write_tensor(file, name, tensor, stored)
    kinds = [stored for _, stored in tensors.values()]
    return {each: kinds.count(each) for each in dict.fromkeys(kinds)}


def check_shapes(checkpoint: Checkpoint) -> None:
    """CheckpointError unless the tensors are those of the config's Llama."""
    model = skeleton(checkpoint.cfg, len(checkpoint.tensors))
    wanted = {(name, tuple(weight.shape)) for name, weight in model.named_parameters()}
    found = {(name, tensor.shape) for name, tensor in checkpoint.tensors.items()}
    if odd := wanted ^ found:
        name = min(odd)[0]
        raise CheckpointError(f"{name} is missing, too many or of another shape than in a Llama")


def save_gguf(model: Llama, tokenizer: Tokenizer, path, kind="F32", force=False) -> dict[str, int]:
    """Write what `load` returns as one GGUF file, which llama.cpp and programs built on it read.

    kind: of the matrices, F32, F16, BF16, Q8_0, Q4_0, Q4_1 or Q6_K; norms are in F32, and rows that
    do not divide into blocks in a kind with shorter ones: returned is how many tensors are of which
    kind. The file appears when all is written. CheckpointError if the model is not a plain Llama,
    if there is no tokenizer or one that GGUF cannot describe, if the file cannot be written, and,
    unless forced, if there is one already.
    """
    tensors = {
        name: StoredTensor(tuple(weight.shape), partial(torch.detach, weight))
        for name, weight in weights(model).items()
    }
    return write_gguf_file(Checkpoint(model.cfg, tensors, tokenizer), path, kind, force)

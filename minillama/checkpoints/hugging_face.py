"""7a. Hugging Face: folders read and written, and the order of the rows.

Written by notebooks/07a_hugging_face.ipynb: edit it there.
"""

import json
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from minillama.checkpoints.assemble import Checkpoint, progress_bar, skeleton
from minillama.checkpoints.atomic import new_folder
from minillama.checkpoints.files import CheckpointError, inside, read_json, reading
from minillama.checkpoints.hugging_face_tokenizer import (
    control_ids,
    hugging_face_tokenizer,
    tokenizer_config_json,
    tokenizer_json,
)
from minillama.checkpoints.names import HUGGING_FACE, SIZES, rename, sizes
from minillama.checkpoints.tensors import StoredTensor, n_bytes, open_safetensors
from minillama.config import LlamaConfig, RopeScaling
from minillama.model import Llama
from minillama.tokenizer import Tokenizer


def to_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of wq or wk from neighbouring pairs to Hugging Face's order, first halves, second
    halves, per head.
    """
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of wq or wk from Hugging Face's order (first halves, second halves) to neighbouring
    pairs, per head.
    """
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def heads_of(name: str, cfg: LlamaConfig) -> int | None:
    """How many heads share out the rows of this tensor, if it is one that gets rotated."""
    return {"wq": cfg.n_heads, "wk": cfg.n_kv_heads}.get(name.split(".")[-2])


def open_hugging_face(folder: Path) -> Checkpoint:
    """Read a Hugging Face folder: config.json, *.safetensors, and the tokenizer if it is there."""
    folder = Path(folder)
    cfg = hugging_face_config(read_json(folder, "config.json"))
    stored = {
        rename(name, HUGGING_FACE): tensor for name, tensor in safetensors_folder(folder).items()
    }
    if cfg.tied_embeddings and (head := stored.pop("head.weight", None)):
        if not same_bytes(head, stored.get("embedding.weight")):
            raise CheckpointError(
                "config.json ties the head to the embedding, but there is a head of its own"
            )
    tensors = {}
    for name, tensor in stored.items():
        if heads := heads_of(name, cfg):
            tensor = StoredTensor(
                tensor.shape, lambda halves=tensor, heads=heads: interleave(halves.read(), heads)
            )
        tensors[name] = tensor
    return Checkpoint(cfg, tensors, hugging_face_tokenizer(folder))


def same_bytes(a: StoredTensor, b: StoredTensor | None, slice_bytes=2**24) -> bool:
    """Compared slice by slice, so that neither is ever whole in memory."""
    if b is None or (a.shape, a.kind) != (b.shape, b.kind):
        return False
    starts = range(0, n_bytes(a.shape, a.kind), slice_bytes)
    return all(
        torch.equal(a.raw(start, start + slice_bytes), b.raw(start, start + slice_bytes))
        for start in starts
    )


BUFFERS = re.compile(
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"
)


def safetensors_folder(folder: Path) -> dict[str, StoredTensor]:
    """The folder's tensors, without buffers of the rotation, which follow from config.json."""
    whole, index = "model.safetensors", "model.safetensors.index.json"
    # subtle: beside a whole model, an index is old
    if (folder / whole).is_file() or not (folder / index).exists():
        tensors = open_safetensors(inside(folder, whole))
    else:
        tensors = sharded(folder, index)
    return {name: tensor for name, tensor in tensors.items() if not BUFFERS.fullmatch(name)}


def sharded(folder: Path, index: str) -> dict[str, StoredTensor]:
    """The tensors of all the files that the index lists, which must agree with it."""
    listed, tensors = read_json(folder, index).get("weight_map"), {}
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index} has no weight_map from tensors to files")
    paths = {name: inside(folder, shard) for name, shard in listed.items()}
    for path, found in [(path, open_safetensors(path)) for path in dict.fromkeys(paths.values())]:
        if wrong := sorted(found.keys() ^ {name for name in paths if paths[name] == path}):
            raise CheckpointError(
                f"{path.name} holds or lacks {wrong[0]!r}, otherwise than {index} lists it"
            )
        tensors |= found
    return tensors


def hugging_face_config(config: dict) -> LlamaConfig:
    """LlamaConfig from config.json, as transformers 4 wrote it (rope_scaling) and 5 does
    (rope_parameters).
    """
    fixed = dict(model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False)
    for key, value in fixed.items():
        if config.get(key) not in (None, value):
            raise CheckpointError(f"config.json has {key} = {config[key]!r}; a Llama has {value!r}")
    with reading("config.json"):
        theta, scaling = hugging_face_rope(rope_settings(config))
        defaults = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
        tied = config.get("tie_word_embeddings")
        return LlamaConfig(
            **sizes(1, config | {"rope_theta": theta}, defaults),
            rope_scaling=scaling,
            tied_embeddings=False if tied is None else tied,
        )


def rope_settings(config: dict) -> dict:
    """All that config.json says of the rotation, in up to three places; ValueError where it
    contradicts itself.
    """
    rope = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if key in config}
    for given in (config.get("rope_parameters") or {}, config.get("rope_scaling") or {}):
        if not isinstance(given, dict):
            raise ValueError(f"the rope settings are not an object but {given!r}")
        for key, value in given.items():
            key = "rope_type" if key == "type" else key
            said = rope.get(key)
            if value is not None and said not in (None, value):
                raise ValueError(f"{key} is both {said!r} and {value!r}")
            rope[key] = value if said is None else said
    return rope


def hugging_face_rope(rope: dict) -> tuple[float, RopeScaling | None]:
    """Theta and scaling; unknown kinds and keys are refused, never ignored."""
    theta = rope.pop("rope_theta", 10_000.0)
    rope = {key: value for key, value in rope.items() if value is not None}
    if (part := rope.pop("partial_rotary_factor", 1)) != 1:
        raise ValueError(f"partial_rotary_factor = {part!r}; a Llama rotates whole heads")
    kind = rope.pop("rope_type", "default")
    if kind == "default" and not rope:
        return theta, None
    known = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    if kind != "llama3" or rope.keys() != known:
        raise ValueError(
            f"rope scaling {kind!r} with {', '.join(sorted(rope)) or 'nothing'} is not known"
        )
    return theta, RopeScaling(
        original_max_seq_len=rope.pop("original_max_position_embeddings"), **rope
    )


STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_safetensors(path: Path, tensors: dict[str, StoredTensor]) -> None:
    """Write one file, reading the tensors one after another, so that no two of them are in memory
    at once.
    """
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        end = at + n_bytes(tensor.shape, tensor.kind)
        header[name] = {"dtype": tensor.kind, "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in progress_bar(tensors.values(), f"writing {path.name}", unit="tensor"):
            file.write(tensor.read().view(torch.uint8).numpy())


def shards(sizes: dict[str, int], most: int) -> list[list[str]]:
    """Names in order, a new list wherever one would grow above `most` bytes; a larger tensor is
    alone in its list.
    """
    lists, filled = [[]], 0
    for name, size in sizes.items():
        if lists[-1] and filled + size > most:
            lists, filled = [*lists, []], 0
        lists[-1].append(name)
        filled += size
    return lists


def weights(model: Llama) -> dict[str, torch.Tensor]:
    """The tensors to store, a tied head left out; CheckpointError if they are not those of a plain
    Llama.
    """
    found = dict(model.named_parameters(remove_duplicate=False))
    if model.cfg.tied_embeddings and (head := found.pop("head.weight", None)) is not found.get(
        "embedding.weight"
    ):
        if head is None or not torch.equal(head, found["embedding.weight"]):
            raise CheckpointError(
                "the model's config ties the head to the embedding, but it has a head of its own"
            )
    wanted = {
        name: parameter.shape
        for name, parameter in skeleton(model.cfg, len(found)).named_parameters()
    }
    if odd := dict({(name, weight.shape) for name, weight in found.items()} ^ wanted.items()):
        raise CheckpointError(
            f"{min(odd)} is not as in a plain Llama: undo quantization, merge adapters, then save"
        )
    return found


def hugging_face_tensors(model: Llama, dtype: torch.dtype | None) -> dict[str, StoredTensor]:
    """Tensors under Hugging Face's names that are converted when they are read."""
    theirs, tensors = {ours: name for name, ours in HUGGING_FACE.items()}, {}
    for name, weight in weights(model).items():
        target = dtype or weight.dtype
        if target not in STORED:
            raise CheckpointError(
                f"{target} is not stored: choose torch.float32, bfloat16 or float16"
            )
        read = partial(as_stored, weight, target, heads_of(name, model.cfg))
        tensors[rename(name, theirs)] = StoredTensor(tuple(weight.shape), read, STORED[target])
    return tensors


def as_stored(weight: torch.Tensor, dtype: torch.dtype, heads: int | None) -> torch.Tensor:
    """One weight as the file has it."""
    weight = weight.detach().to("cpu", dtype)
    return (weight if heads is None else to_halves(weight, heads)).contiguous()


def config_json(cfg: LlamaConfig, tokenizer: Tokenizer | None, dtype: torch.dtype) -> dict:
    """config.json as published Llamas have it, which both transformers 4 and 5 read."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    config |= {
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": cfg.tied_embeddings,
    }
    config |= {theirs: getattr(cfg, ours) for ours, theirs, _ in SIZES} | {"rope_scaling": None}
    if cfg.rope_scaling:
        scaling = {"rope_type": "llama3"} | asdict(cfg.rope_scaling)
        scaling["original_max_position_embeddings"] = scaling.pop("original_max_seq_len")
        config["rope_scaling"] = scaling
    return config | {"torch_dtype": str(dtype).removeprefix("torch.")} | control_ids(tokenizer)


def save_hugging_face(
    model: Llama,
    tokenizer: Tokenizer | None,
    folder,
    dtype: torch.dtype | None = None,
    max_shard_bytes=5_000_000_000,
) -> None:
    """Write what `load` returns as a Hugging Face folder, which transformers and most engines read.

    dtype: of the numbers in the files, by default the model's. A model above max_shard_bytes is cut
    into several files. The folder appears when all is written, and an older checkpoint in it stays
    until then. CheckpointError if the model is not a plain Llama, if the folder cannot be written,
    or if it holds anything that is no part of a checkpoint.
    """
    tensors = hugging_face_tensors(model, dtype)
    size_of = {name: n_bytes(tensor.shape, tensor.kind) for name, tensor in tensors.items()}
    files = {
        "config.json": config_json(model.cfg, tokenizer, dtype or model.embedding.weight.dtype)
    }
    files["generation_config.json"] = control_ids(tokenizer)
    if tokenizer is not None:
        files["tokenizer.json"] = tokenizer_json(tokenizer)
        files["tokenizer_config.json"] = tokenizer_config_json(tokenizer, model.cfg.max_seq_len)
    lists, index = shards(size_of, max_shard_bytes), {}
    with new_folder(folder) as new:
        for i, names in enumerate(lists, 1):
            file = (
                f"model-{i:05}-of-{len(lists):05}.safetensors"
                if len(lists) > 1
                else "model.safetensors"
            )
            write_safetensors(new / file, {name: tensors[name] for name in names})
            index |= dict.fromkeys(names, file)
        if len(lists) > 1:
            total = {"total_size": sum(size_of.values())}
            files["model.safetensors.index.json"] = {"metadata": total, "weight_map": index}
        for name, value in files.items():
            (new / name).write_text(
                json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8"
            )

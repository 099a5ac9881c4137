"""7a. Hugging Face: folders read and written, and the order of the rows.

Written by notebooks/07a_hugging_face.ipynb: edit it there.
"""

import re
from pathlib import Path

import torch

from minillama.checkpoints.assemble import Checkpoint
from minillama.checkpoints.files import CheckpointError, inside, read_json, reading
from minillama.checkpoints.hugging_face_tokenizer import hugging_face_tokenizer
from minillama.checkpoints.names import HUGGING_FACE, rename, sizes
from minillama.checkpoints.tensors import StoredTensor, open_safetensors, same_bytes
from minillama.config import LlamaConfig, RopeScaling


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

"""7a. Hugging Face.

Written by notebooks/07a_hugging_face.ipynb: edit it there.
"""

from pathlib import Path

import torch

from minillama.checkpoints import (
    HUGGING_FACE,
    Checkpoint,
    CheckpointError,
    StoredTensor,
    build_tokenizer,
    inside,
    open_safetensors,
    read_json,
    reading,
    rename,
    sizes,
)
from minillama.config import LlamaConfig, RopeScaling
from minillama.tokenizer import GPT2_SPLIT, LLAMA3_PATTERN, SMOLLM_SPLIT, Tokenizer


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
        tensors[rename(name, HUGGING_FACE)] = tensor
    return Checkpoint(cfg, tensors, hugging_face_tokenizer(folder))


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
            **sizes(1, config | {"rope_theta": theta}, defaults), rope_scaling=scaling, tied_embeddings=tied
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

"""An adapter's files, as the library peft has them: adapter_config.json and adapter_model.safetensors, both ways.

Names and the order of q's and k's rows are Hugging Face's (chapter 7a). The rows of W + alpha/rank * b a are rows of b
times a, so it is the rows of b that change places.
"""

import json
import re
from functools import partial
from pathlib import Path

import torch
from torch import nn

from minillama.atomic import new_folder
from minillama.checkpoints import (
    HUGGING_FACE,
    CheckpointError,
    StoredTensor,
    inside,
    open_safetensors,
    read_json,
    reading,
    rename,
)
from minillama.finetuning import TARGETS, adapted, add_lora, plain
from minillama.hugging_face import heads_of, interleave, to_halves, write_safetensors
from minillama.model import Llama


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = re.compile(r"adapter_(config\.json|model\.safetensors)")
KNOWN = {  # what adapter_config.json may say, None for anything; all else must say no
    "peft_type": ("LORA",), "task_type": ("CAUSAL_LM", None), "bias": ("none",), "r": None, "lora_alpha": None,
    "target_modules": None, "init_lora_weights": (True, False, "gaussian"), "lora_dropout": None, "revision": None,
    "base_model_name_or_path": None, "inference_mode": None, "peft_version": None, "auto_mapping": None,
    "megatron_core": None, "qalora_group_size": None,
}  # fmt: skip
MOST = 2**31  # above any rank and alpha that can be meant
THEIRS = {ours: theirs for theirs, ours in HUGGING_FACE.items()}


def peft_name(layer: str, part: str) -> str:
    """peft's name of the part a or b of a layer's adapter."""
    weight = rename(f"{layer}.weight", THEIRS)
    return f"base_model.model.{weight.removesuffix('weight')}lora_{part.upper()}.weight"


def save_adapter(model: nn.Module, folder) -> None:
    """Write the adapter alone, as peft's folder, in float32; a kill leaves the old one or the new.

    CheckpointError if the folder cannot be written or holds anything but an adapter; ValueError if the model has none.
    """
    layers, tensors = adapted(model), {}
    for name, layer in layers.items():
        heads = heads_of(f"{name}.weight", model.cfg)
        b = to_halves(layer.b.detach(), heads) if heads else layer.b.detach()
        for part, value in (("a", layer.a.detach()), ("b", b)):
            value = value.float().cpu().contiguous()
            tensors[peft_name(name, part)] = StoredTensor(tuple(value.shape), partial(torch.clone, value), "F32")
    first = next(iter(layers.values()))
    modules = sorted({rename(f"{name}.weight", THEIRS).split(".")[-2] for name in layers})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True}
    config |= {"r": first.rank, "lora_alpha": first.alpha, "lora_dropout": 0.0, "bias": "none"}
    with new_folder(folder, replaces=FILES) as new:
        write_safetensors(new / WEIGHTS, tensors)
        (new / CONFIG).write_text(json.dumps(config | {"target_modules": modules}, indent=1), encoding="utf-8")


def adapter_config(folder: Path) -> tuple[int, float, set[str] | None]:
    """(rank, alpha, targets) from adapter_config.json; targets are None where they are a pattern. CheckpointError."""
    config = read_json(folder, CONFIG)
    for key, value in ({"peft_type": None} | config).items():
        allowed = KNOWN.get(key, (None, False, [], {}))
        if allowed is not None and value not in allowed:
            raise CheckpointError(f"{CONFIG} has {key} = {value!r}, which is not known here")
    rank, alpha, modules = (config.get(key) for key in ("r", "lora_alpha", "target_modules"))
    if type(rank) is not int or not 1 <= rank < MOST or type(alpha) not in (int, float) or not 0 < alpha < MOST:
        raise CheckpointError(f"{CONFIG} has r = {rank!r} and lora_alpha = {alpha!r}")
    if isinstance(modules, str):
        return rank, alpha, None
    ours = {theirs.split(".")[-2]: name.split(".")[-2] for theirs, name in HUGGING_FACE.items() if ".N." in name}
    with reading(f"target_modules of {CONFIG}"):
        return rank, alpha, {ours[module] for module in modules}


def read_adapter(llama: Llama, folder: Path) -> tuple[int, float, dict[str, torch.Tensor]]:
    """(rank, alpha, parts): every part under the name that it will have in the model. CheckpointError."""
    rank, alpha, targets = adapter_config(folder)
    stored = open_safetensors(inside(folder, WEIGHTS))
    layers = {name: layer for name, layer in llama.named_modules() if name.split(".")[-1] in TARGETS}
    names = {peft_name(name, part): f"{name}.{part}" for name in layers for part in "ab"}
    if unknown := sorted(stored.keys() - names.keys()):
        raise CheckpointError(f"{len(unknown)} tensors are not those of an adapter for this model: {unknown[0]}")
    if targets is None:
        targets = {names[theirs].split(".")[-2] for theirs in stored}
    wanted = {theirs for theirs, ours in names.items() if ours.split(".")[-2] in targets}
    if odd := sorted(wanted ^ stored.keys()):
        raise CheckpointError(f"{odd[0]} is {'missing' if odd[0] in wanted else f'no target of {CONFIG}'}")
    if not wanted:
        raise CheckpointError(f"{WEIGHTS} is empty")
    parts = {}
    for theirs, tensor in stored.items():
        name, _, part = names[theirs].rpartition(".")
        layer, heads = layers[name], heads_of(f"{name}.weight", llama.cfg) if part == "b" else None
        shape = (rank, layer.in_features) if part == "a" else (layer.out_features, rank)
        if tensor.shape != shape:
            raise CheckpointError(f"{theirs} has shape {tensor.shape}; for this model and r = {rank} it is {shape}")
        value = tensor.read().float()
        parts[names[theirs]] = interleave(value, heads) if heads else value
    return rank, alpha, parts


def load_adapter(model: nn.Module, folder) -> nn.Module:
    """Give the model the adapter of a peft folder, in place, ready to be trained further.

    CheckpointError, with the model as it was, for a folder that does not fit; ValueError as `add_lora`.
    """
    try:
        rank, alpha, parts = read_adapter(plain(model), Path(folder))
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{folder}: {getattr(error, 'strerror', None) or error}") from None
    add_lora(model, rank, alpha, {name.split(".")[-2] for name in parts})
    with torch.no_grad():
        for name, value in parts.items():
            plain(model).get_parameter(name).copy_(value)
    return model

"""An adapter's files, as the library peft has them: adapter_config.json and
adapter_model.safetensors, both ways.

Names and the order of q's and k's rows are Hugging Face's (chapter 7a). The rows of W + alpha/rank
* b a are rows of b times a, so it is the rows of b that change places.
"""

import json
import re
from functools import partial
from pathlib import Path

import torch
from torch import nn

from minillama.checkpoints.atomic import new_folder
from minillama.checkpoints.files import CheckpointError, inside, read_json, reading
from minillama.checkpoints.hugging_face import heads_of, interleave, to_halves
from minillama.checkpoints.hugging_face_writer import write_safetensors
from minillama.checkpoints.names import HUGGING_FACE, rename
from minillama.checkpoints.tensors import StoredTensor, open_safetensors
from minillama.model import Llama
from minillama.training.finetuning import TARGETS, adapted, add_lora, lora_layers


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = re.compile(r"adapter_(config\.json|model\.safetensors)")
# ways to begin that leave the model's weights alone
UNCHANGED = (True, False, "gaussian", "orthogonal", "eva", "mica")
SUPPORTED_SETTINGS = {  # what adapter_config.json may say, None for anything; all else must say no
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "r": None,
    "lora_alpha": None,
    "use_rslora": (True, False, None),
    "target_modules": None,
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": ("layers", ["layers"], [], None),
    "init_lora_weights": UNCHANGED,
    "eva_config": None,
    "lora_dropout": None,
    "revision": None,
    "base_model_name_or_path": None,
    "inference_mode": None,
    "peft_version": None,
    "auto_mapping": None,
    "megatron_core": None,
    "qalora_group_size": None,
    "ensure_weight_tying": None,
}
LIMIT = 2**31  # above any valid rank or alpha
THEIRS = {ours: theirs for theirs, ours in HUGGING_FACE.items()}


def module_path(layer: str) -> str:
    """Hugging Face's name of a layer."""
    return rename(f"{layer}.weight", THEIRS).removesuffix(".weight")


def peft_name(layer: str, part: str) -> str:
    """peft's name of the part a or b of a layer's adapter."""
    return f"base_model.model.{module_path(layer)}.lora_{part.upper()}.weight"


def save_adapter(model: nn.Module, folder) -> None:
    """Write the adapter alone, as peft's folder, in float32; a kill leaves the old one or the new.

    CheckpointError if the folder cannot be written or holds anything but an adapter; ValueError if
    the model has none.
    """
    layers, tensors = adapted(model), {}
    for name, layer in layers.items():
        heads = heads_of(f"{name}.weight", model.cfg)
        b = to_halves(layer.b.detach(), heads) if heads else layer.b.detach()
        for part, value in (("a", layer.a.detach()), ("b", b)):
            value = value.float().cpu().contiguous()
            tensors[peft_name(name, part)] = StoredTensor(
                tuple(value.shape), partial(torch.clone, value), "F32"
            )
    first = next(iter(layers.values()))
    modules = {module_path(name).split(".")[-1] for name in layers}
    if len(layers) < len(modules) * model.cfg.n_layers:  # only in some blocks
        modules = map(module_path, layers)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    config |= {"r": first.rank, "lora_alpha": first.alpha, "lora_dropout": 0.0, "bias": "none"}
    with new_folder(folder, replaces=FILES) as new:
        write_safetensors(new / WEIGHTS, tensors)
        (new / CONFIG).write_text(
            json.dumps(config | {"target_modules": sorted(modules)}, indent=1), encoding="utf-8"
        )


def adapter_config(folder: Path) -> tuple[int, float, dict]:
    """(rank, alpha, all of it) from adapter_config.json; alpha as if it were divided by the rank.
    CheckpointError.
    """
    config = read_json(folder, CONFIG)
    for key, value in ({"peft_type": None} | config).items():
        allowed = SUPPORTED_SETTINGS.get(key, (None, False, [], {}))
        if allowed is not None and value not in allowed:
            raise CheckpointError(f"{CONFIG} has {key} = {value!r}, which is not known here")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if (
        type(rank) is not int
        or not 1 <= rank < LIMIT
        or type(alpha) not in (int, float)
        or not 0 < alpha < LIMIT
    ):
        raise CheckpointError(f"{CONFIG} has r = {rank!r} and lora_alpha = {alpha!r}")
    return rank, alpha * rank**0.5 if config.get("use_rslora") else alpha, config


def targets(config: dict, layers) -> set[str] | None:
    """Those of the layers that the config names, by the end of their path; None where it has a
    pattern instead.
    """
    modules, without, blocks = (
        config.get(key) for key in ("target_modules", "exclude_modules", "layers_to_transform")
    )
    if isinstance(modules, str) or isinstance(without, str):
        return None
    with reading(f"target_modules of {CONFIG}"):
        modules, without = set(modules), set(without or ())
        blocks = {blocks} if type(blocks) is int else set(blocks or ())
        paths = {name: module_path(name).split(".") for name in layers}
        ends = {
            name: {".".join(path[i:]) for i in range(len(path))} for name, path in paths.items()
        }
        if unknown := modules.difference(*ends.values()):
            raise CheckpointError(
                f"{CONFIG} has {min(unknown)!r} in target_modules, which is no layer of this model"
            )
        chosen = {name for name in layers if modules & ends[name] and not without & ends[name]}
        return {name for name in chosen if not blocks or int(name.split(".")[1]) in blocks}


def read_adapter(llama: Llama, folder: Path) -> tuple[int, float, dict[str, torch.Tensor]]:
    """(rank, alpha, parts): every part under the name that it will have in the model.
    CheckpointError.
    """
    rank, alpha, config = adapter_config(folder)
    stored = open_safetensors(inside(folder, WEIGHTS))
    layers = {
        name: layer for name, layer in llama.named_modules() if name.split(".")[-1] in TARGETS
    }
    names = {peft_name(name, part): f"{name}.{part}" for name in layers for part in "ab"}
    if unknown := sorted(stored.keys() - names.keys()):
        raise CheckpointError(
            f"{len(unknown)} tensors are not those of an adapter for this model: {unknown[0]}"
        )
    chosen = targets(config, layers)
    if chosen is None:
        chosen = {names[theirs].rpartition(".")[0] for theirs in stored}
    wanted = {peft_name(name, part) for name in chosen for part in "ab"}
    if odd := sorted(wanted ^ stored.keys()):
        raise CheckpointError(
            f"{odd[0]} is {'missing' if odd[0] in wanted else f'no target of {CONFIG}'}"
        )
    if not wanted:
        raise CheckpointError(f"{WEIGHTS} is empty")
    parts = {}
    for theirs, tensor in stored.items():
        name, _, part = names[theirs].rpartition(".")
        layer, heads = layers[name], heads_of(f"{name}.weight", llama.cfg) if part == "b" else None
        shape = (rank, layer.in_features) if part == "a" else (layer.out_features, rank)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{theirs} has shape {tensor.shape}; for this model and r = {rank} it is {shape}"
            )
        value = tensor.read().float()
        parts[names[theirs]] = interleave(value, heads) if heads else value
    return rank, alpha, parts


def load_adapter(model: nn.Module, folder) -> nn.Module:
    """Give the model the adapter of a peft folder, in place, ready to be trained further.

    CheckpointError, with the model as it was, for a folder that does not fit; ValueError as
    `add_lora`.
    """
    try:
        rank, alpha, parts = read_adapter(model, Path(folder))
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{folder}: {getattr(error, 'strerror', None) or error}") from None
    add_lora(model, rank, alpha, {name.split(".")[-2] for name in parts})
    for name, layer in lora_layers(model).items():
        if f"{name}.a" not in parts:  # an adapter for some of the blocks
            model.set_submodule(name, layer.base)
    with torch.no_grad():
        for name, value in parts.items():
            model.get_parameter(name).copy_(value)
    return model

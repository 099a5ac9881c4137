"""7a. Hugging Face: folders read and written, and the order of the rows.

Written by notebooks/07a_hugging_face.ipynb: edit it there.
"""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from minillama.checkpoints.assemble import progress_bar, skeleton
from minillama.checkpoints.atomic import new_folder
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.hugging_face import heads_of, to_halves
from minillama.checkpoints.hugging_face_tokenizer import tokenizer_config_json, tokenizer_json
from minillama.checkpoints.names import HUGGING_FACE, SIZES, rename
from minillama.checkpoints.tensors import StoredTensor, n_bytes
from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.tokenizer import Tokenizer


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


def control_ids(tokenizer: Tokenizer | None) -> dict:
    """First token and those at which to stop, the usual one first."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None}
    stop = sorted(tokenizer.stop_ids, key=lambda id: (id != tokenizer.eos_id, id))
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": stop or None}


def save_hugging_face(
    model: Llama,
    tokenizer: Tokenizer | None,
    folder,
    dtype: torch.dtype | None = None,
    max_shard_bytes=5_000_000_000,
) -> None:
    """Write what `load` returns as a Hugging Face folder, which transformers and most engines read.

    dtype: of the stored weights, by default the model's. A model above max_shard_bytes is cut
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

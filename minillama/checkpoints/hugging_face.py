"""7a. Hugging Face: folders read and written, and the order of the rows.

Written by notebooks/07a_hugging_face.ipynb: edit it there.
"""

import json
import re
import warnings
from dataclasses import asdict
from functools import partial
from itertools import takewhile
from pathlib import Path

import torch

from minillama.chat_formats import CHAT_TEMPLATES, chat_format, set_chat_format
from minillama.checkpoints.atomic import new_folder
from minillama.checkpoints.tensors import (
    HUGGING_FACE,
    SIZES,
    Checkpoint,
    CheckpointError,
    RawFile,
    StoredTensor,
    build_tokenizer,
    inside,
    n_bytes,
    open_safetensors,
    progress_bar,
    read_json,
    reading,
    rename,
    sizes,
    skeleton,
)
from minillama.config import LlamaConfig, RopeScaling
from minillama.model import Llama
from minillama.tokenizer import GPT2_SPLIT, LLAMA3_PATTERN, SMOLLM_SPLIT, Tokenizer, gpt2_bytes


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


def byte_level(use_regex: bool) -> dict:
    """The building block that spells bytes as characters and, if asked, cuts text as GPT-2 did."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


LLAMA3_CUT = {
    "type": "Split",
    "pattern": {"Regex": LLAMA3_PATTERN},
    "behavior": "Isolated",
    "invert": False,
}
CUTS = {  # pattern -> the same as tokenizer.json says it
    LLAMA3_PATTERN: [LLAMA3_CUT, byte_level(False)],
    SMOLLM_SPLIT: [{"type": "Digits", "individual_digits": True}, byte_level(True)],
    GPT2_SPLIT: [byte_level(True)],
    r"[\s\S]+": [byte_level(False)],  # the whole text is one chunk
}


def split_pattern(file: dict) -> str:
    """The regular expression that cuts text into chunks; ValueError for a way of cutting that we do
    not know.
    """
    if file.get("normalizer") is not None:
        raise ValueError("it rewrites the text before it cuts it")
    parts = file["pre_tokenizer"]
    parts = parts["pretokenizers"] if parts["type"] == "Sequence" else [parts]
    fixed = {"trim_offsets": True}  # of no effect on ids
    given = [
        {"use_regex": True} | part | fixed if part["type"] == "ByteLevel" else part
        for part in parts
    ]
    for pattern, chain in CUTS.items():
        if given == chain:
            return pattern
    raise ValueError(f"it cuts text in an unknown way, {[part['type'] for part in parts]}")


def hugging_face_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder: tokenizer.json's, else Meta's tokenizer.model; None without one
    that is known.
    """
    names = [name for name in ("generation_config.json", "config.json") if (folder / name).exists()]
    stop = [read_json(folder, name).get("eos_token_id") for name in names]
    stop = [
        id for ids in stop for id in (ids if isinstance(ids, list) else [ids]) if id is not None
    ]
    name = next(
        (name for name in ("tokenizer.json", "tokenizer.model") if (folder / name).exists()), None
    )
    with reading(str(name)):
        tokenizer = None
        if name == "tokenizer.json":
            tokenizer = tokenizer_of(read_json(folder, name), stop)
        elif name:
            file = RawFile(inside(folder, name))
            # SentencePiece begins so, and base64 never does
            if not file.read_small(0, file.size).startswith(b"\n"):
                tokenizer = Tokenizer.from_file(file.path)
                tokenizer.stop_ids |= {id for id in stop if id in tokenizer.token_bytes}
    if tokenizer is None:
        if name:
            warnings.warn(
                f"its {name} is of Llama 2's kind, which is not known here: it takes ids only",
                stacklevel=2,
            )
        return None
    settings = (
        read_json(folder, "tokenizer_config.json")
        if (folder / "tokenizer_config.json").exists()
        else {}
    )
    with reading("the chat template"):
        bos = settings.get("bos_token")
        bos = bos.get("content") if isinstance(bos, dict) else bos
        bos_id = tokenizer.bos_id if bos is None else tokenizer.specials.get(bos)
        return set_chat_format(tokenizer, chat_template(folder, settings), bos_id)


def tokenizer_of(file: dict, stop: list) -> Tokenizer | None:
    """The tokenizer that tokenizer.json describes; None for one of SentencePiece's kind."""
    model, added = file["model"], file["added_tokens"]
    if model.get("byte_fallback") is True or model.get("type", "BPE") != "BPE":
        return None
    plain = {
        token["content"]: token.get("normalized") is True
        for token in added
        if token.get("special") is False
    }
    for token in added:
        wishes = [
            key
            for key in ("lstrip", "rstrip", "single_word")
            if token["content"] in plain and token.get(key)
        ]
        if wishes:
            raise ValueError(
                f"its added token {token['content']!r} asks for {wishes[0]}, which is not done here"
            )
    first = first_ids(file.get("post_processor"))
    if len(first) > 1:
        raise ValueError(
            f"it puts {len(first)} tokens before a text; more than one is not done here"
        )
    return build_tokenizer(
        model["vocab"],
        {token["content"]: token["id"] for token in added},
        model["merges"],
        split_pattern(file),
        first[0] if first else None,
        stop,
        model.get("ignore_merges", False),
        plain,
    )


def first_ids(post_processor: dict | None) -> list[int]:
    """The ids that a post-processor puts before a text; ValueError for one of an unknown kind."""
    kind = post_processor["type"] if post_processor else "ByteLevel"
    if kind == "Sequence":
        return [id for each in reversed(post_processor["processors"]) for id in first_ids(each)]
    if kind == "TemplateProcessing":
        first = list(takewhile(lambda part: "SpecialToken" in part, post_processor["single"]))
        return [
            id
            for part in first
            for id in post_processor["special_tokens"][part["SpecialToken"]["id"]]["ids"]
        ]
    if kind != "ByteLevel":
        raise ValueError(f"its post-processor is of an unknown kind, {kind!r}")
    return []


def chat_template(folder: Path, settings: dict) -> str | None:
    """The text of the default chat template, as transformers finds it; it is never run."""
    if (folder / "chat_template.jinja").exists():
        file = RawFile(inside(folder, "chat_template.jinja"))
        return file.read_small(0, file.size).decode("utf-8")
    given = settings.get("chat_template")
    named = (
        {each["name"]: each["template"] for each in given}
        if isinstance(given, list)
        else {"default": given}
    )
    return named.get("default", next(iter(named.values()), None))


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


def merges_of(tokenizer: Tokenizer) -> list[tuple[bytes, bytes]]:
    """The pairs that may be joined, first learned first; worked out where, as at Meta, only tokens
    have ranks.
    """
    if tokenizer.merges is not None:
        return sorted(tokenizer.merges, key=tokenizer.merges.get)
    vocab = tokenizer.vocab
    cuts = (
        (token[:i], token[i:])
        for token in sorted(vocab, key=vocab.get)
        for i in range(1, len(token))
    )
    return [(left, right) for left, right in cuts if left in vocab and right in vocab]


def tokenizer_json(tokenizer: Tokenizer) -> dict:
    """Vocabulary, merges, cuts and special tokens as the tokenizers library reads them.
    CheckpointError.
    """
    if tokenizer.pattern.pattern not in CUTS:
        raise CheckpointError(
            "tokenizer.json cannot say how this tokenizer cuts text: its pattern is not a known one"
        )
    char = {byte: char for char, byte in gpt2_bytes().items()}
    spelled = {token: "".join(char[byte] for byte in token) for token in tokenizer.vocab}
    vocab, specials = (
        {spelled[token]: id for token, id in tokenizer.vocab.items()},
        tokenizer.specials,
    )
    if sorted(specials.values()) != list(range(len(vocab), len(vocab) + len(specials))):
        vocab |= specials  # or the library would number them anew, behind the vocabulary
    plain = tokenizer.plain
    added = [
        {"id": id, "content": name, "normalized": plain.get(name, False)}
        for name, id in specials.items()
    ]
    added = [token | {"special": token["content"] not in plain} for token in added]
    added = [token | dict.fromkeys(("single_word", "lstrip", "rstrip"), False) for token in added]
    model = {"type": "BPE", "ignore_merges": tokenizer.whole_chunks, "vocab": vocab}
    model["merges"] = [[spelled[left], spelled[right]] for left, right in merges_of(tokenizer)]
    return {
        "version": "1.0",
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[tokenizer.pattern.pattern]},
        "post_processor": first_token(tokenizer),
        "decoder": byte_level(True),
        "model": model,
    }


def first_token(tokenizer: Tokenizer) -> dict | None:
    """The template that puts the first token in front of a text, if the tokenizer has one."""
    if tokenizer.bos_id is None:
        return None
    name = tokenizer.token_bytes[tokenizer.bos_id].decode()
    single = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {name: {"id": name, "ids": [tokenizer.bos_id], "tokens": [name]}}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def tokenizer_config_json(tokenizer: Tokenizer, max_seq_len: int) -> dict:
    """What transformers wants to know beside tokenizer.json, and the chat template, its own or one
    of ours.
    """
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_seq_len}
    config |= {
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    names = {id: name for name, id in tokenizer.specials.items()}
    layout = tokenizer.chat_format or chat_format(tokenizer)
    first = layout.first[0] if layout.first else tokenizer.bos_id  # what a template calls bos_token
    config |= {"bos_token": names.get(first), "eos_token": names.get(tokenizer.eos_id)}
    template = layout.template or CHAT_TEMPLATES.get(layout.name)
    return config | ({"chat_template": template} if template else {})


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

"""7a. Hugging Face: folders read and written, and the order of the rows.

Written by notebooks/07a_hugging_face.ipynb: edit it there.
"""

import warnings
from itertools import takewhile
from pathlib import Path

from minillama.chat_formats import CHAT_TEMPLATES, chat_format, set_chat_format
from minillama.checkpoints.assemble import build_tokenizer
from minillama.checkpoints.files import CheckpointError, RawFile, inside, read_json, reading
from minillama.tokenizer import GPT2_SPLIT, LLAMA3_PATTERN, SMOLLM_SPLIT, Tokenizer, gpt2_bytes


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
        vocab |= specials  # or the library would renumber them, after the vocabulary
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

"""Hugging Face folders: transformers' are read exactly, ours are read by transformers, broken ones
refused.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from helpers import (
    PLAIN,
    SCALED,
    all_refused,
    edit_json,
    random_ids,
    refused,
    tiny_hugging_face,
    tiny_pair,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_tokenizer import TEXTS

from minillama import CheckpointError, Llama, LlamaConfig, RopeScaling, Tokenizer, chat
from minillama.chat_formats import CHAT_TEMPLATES
from minillama.checkpoints.hugging_face_tokenizer import merges_of
from minillama.checkpoints.hugging_face_writer import save_hugging_face, shards
from minillama.checkpoints.tensors import StoredTensor, same_bytes
from minillama.inference.loading import load
from minillama.tokenizer import GPT2_SPLIT, LLAMA3_PATTERN, SMOLLM_SPLIT, train_bpe


@pytest.fixture
def folder(tmp_path):
    tiny_hugging_face().save_pretrained(tmp_path)
    return tmp_path


def as_transformers_4(config):
    """Move the RoPE settings to where transformers 4 had them."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope == {"rope_type": "default"} else rope


@torch.inference_mode()
@pytest.mark.parametrize("rope", [PLAIN, SCALED], ids=["plain", "scaled"])
def test_config_of_transformers_4(tmp_path, rope):
    reference, model = tiny_pair(tmp_path, rope=rope)
    edit_json(tmp_path / "config.json", as_transformers_4)
    older, _ = load(tmp_path)
    assert older.cfg == model.cfg
    assert older.cfg.rope_theta == rope["rope_theta"]
    assert older.cfg.rope_scaling == (RopeScaling() if rope is SCALED else None)
    tokens = random_ids(20)
    torch.testing.assert_close(older(tokens), reference(tokens).logits, atol=1e-5, rtol=0)


def test_config_without_head_dim_and_kv_heads(tmp_path):
    tiny_hugging_face(num_key_value_heads=4).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda c: (c.pop("head_dim"), c.pop("num_key_value_heads")))
    cfg = load(tmp_path)[0].cfg
    assert (cfg.head_dim, cfg.n_kv_heads) == (16, 4)


@torch.inference_mode()
@pytest.mark.parametrize("tie", [True, False])
def test_sharded(tmp_path, tie):
    reference = tiny_hugging_face(tie_word_embeddings=tie)
    reference.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tokens = random_ids(20)
    logits = load(tmp_path)[0](tokens)
    torch.testing.assert_close(logits, reference(tokens).logits, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("shards", ["gone", "still there"])
def test_an_old_index_beside_a_newer_model(tmp_path, shards):
    """transformers saves a model over a sharded one, leaves the index, and reads the whole file; so
    do we.
    """
    tiny_hugging_face(seed=1).save_pretrained(tmp_path, max_shard_size="60KB")
    old = {path: path.read_bytes() for path in tmp_path.glob("model-*.safetensors")}
    tiny_hugging_face(seed=2).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() and not [
        *tmp_path.glob("model-*.safetensors")
    ]
    for path, data in old.items() if shards == "still there" else ():
        path.write_bytes(data)
    tokens, reference = (
        random_ids(20),
        transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval(),
    )
    torch.testing.assert_close(
        load(tmp_path)[0](tokens), reference(tokens).logits, atol=1e-5, rtol=0
    )


@torch.inference_mode()
@pytest.mark.parametrize("shard_size", ["1GB", "60KB"])
def test_buffers_of_the_rotation_are_skipped(tmp_path, shard_size):
    """As old versions of transformers wrote them, in each layer or once; config.json says how to
    rotate.
    """
    reference = tiny_hugging_face(rope=SCALED)
    state = reference.state_dict()
    for layer in range(2):
        for name in ("inv_freq", "cos_cached", "sin_cached"):
            state[f"model.layers.{layer}.self_attn.rotary_emb.{name}"] = torch.ones(8)
    state["model.rotary_emb.inv_freq"] = torch.ones(8, dtype=torch.float16)
    reference.save_pretrained(tmp_path, state_dict=state, max_shard_size=shard_size)
    stored = {name for path in tmp_path.glob("*.safetensors") for name in load_file(path)}
    assert (
        "model.layers.1.self_attn.rotary_emb.inv_freq" in stored
        and "model.rotary_emb.inv_freq" in stored
    )
    tokens = random_ids(20)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(load(tmp_path)[0](tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


THETA = {"rope_theta": SCALED["rope_theta"]}
INSIDE = {key: value for key, value in SCALED.items() if key != "rope_theta"}
SPELLINGS = {
    "both names": {"rope_parameters": SCALED, "rope_scaling": INSIDE, **THETA},
    "both names, theta in both": {"rope_parameters": SCALED, "rope_scaling": SCALED},
    "both names, theta in the old one": {"rope_parameters": INSIDE, "rope_scaling": SCALED},
    "theta alone in the new one": {"rope_parameters": THETA, "rope_scaling": INSIDE, **THETA},
    "theta only inside": {"rope_scaling": SCALED},
    "type and rope_type": {"rope_scaling": INSIDE | {"type": "llama3"}, **THETA},
    "whole heads, said inside": {"rope_parameters": SCALED | {"partial_rotary_factor": 1.0}},
    "whole heads, said outside": {"rope_parameters": SCALED, "partial_rotary_factor": 1.0},
    "nothing, said outside": {
        "rope_parameters": SCALED,
        "rope_theta": None,
        "partial_rotary_factor": None,
    },
    "nothing, said inside": {
        "rope_parameters": SCALED | {"attention_factor": None, "beta_fast": None}
    },
}


@torch.inference_mode()
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_the_rotation_wherever_it_is_said(tmp_path, spelling):
    tiny_hugging_face(rope=SCALED).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda c: (c.pop("rope_parameters"), c.update(spelling)))
    theirs, tokens = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval(), random_ids(20)
    torch.testing.assert_close(load(tmp_path)[0](tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
    assert load(tmp_path)[0].cfg.rope_scaling == RopeScaling()


@pytest.mark.parametrize(
    "key", ["attention_bias", "mlp_bias", "hidden_act", "model_type", "tie_word_embeddings"]
)
def test_null_says_nothing(folder, key):
    edit_json(folder / "config.json", lambda c: c.update({key: None}))
    assert load(folder)[0].cfg == LlamaConfig(
        64, 2, 4, 2, 16, 96, 128, rope_theta=1e4, max_seq_len=16_384
    )


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(tmp_path, dtype):
    """The weights are rounded when they are saved; both then compute in float32."""
    reference = tiny_hugging_face()
    copy.deepcopy(reference).to(dtype).save_pretrained(tmp_path)
    for weight in reference.parameters():
        weight.copy_(weight.to(dtype))
    tokens, model = random_ids(20), load(tmp_path)[0]
    torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-5, rtol=0)
    assert load(tmp_path, dtype=dtype)[0].norm.weight.dtype == dtype


def set_rope(**changes):
    return lambda config: config["rope_parameters"].update(changes)


CONFIGS = {
    "another model": (lambda c: c.update(model_type="mistral"), "model_type"),
    "a bias": (lambda c: c.update(attention_bias=True), "attention_bias"),
    "another activation": (lambda c: c.update(hidden_act="gelu"), "hidden_act"),
    "no size": (lambda c: c.pop("hidden_size"), "hidden_size"),
    "a size of 0": (lambda c: c.update(num_attention_heads=0), "num_attention_heads|zero|head"),
    "a boolean size": (lambda c: c.update(hidden_size=True), "dim"),
    "a text for a size": (lambda c: c.update(hidden_size="64"), "dim"),
    "an infinite eps": (lambda c: c.update(rms_norm_eps=float("inf")), "norm_eps|Infinity"),
    "wrong size": (lambda c: c.update(intermediate_size=95), "shape"),
    "huge size": (lambda c: c.update(vocab_size=10**9), "shape"),
    "overflowing size": (lambda c: c.update(vocab_size=2**62), "embedding|vocab_size|sizes"),
    "very many layers": (lambda c: c.update(num_hidden_layers=3_000), "missing|layers"),
    "one layer more": (lambda c: c.update(num_hidden_layers=3), "missing|layers"),
    "one layer less": (lambda c: c.update(num_hidden_layers=1), "too many|layers"),
    "tied, but a head of its own": (lambda c: c.update(tie_word_embeddings=True), "head|tied"),
    "unknown scaling": (set_rope(rope_type="yarn", factor=2.0), "yarn"),
    "unknown key": (set_rope(rope_type="llama3", factor=8.0, beta=1), "beta"),
    "scaling incomplete": (set_rope(rope_type="llama3", factor=8.0), "llama3"),
    "scaling by a text": (lambda c: c.update(rope_parameters=SCALED | {"factor": "8"}), "factor"),
    "scaling that is no object": (lambda c: c.update(rope_parameters=[8.0]), "rope"),
    "theta given twice": (lambda c: c.update(rope_theta=5.0), "rope_theta"),
    "scaling given twice": (lambda c: c.update(rope_scaling=SCALED), "is both"),
    "two kinds in one place": (
        lambda c: c.update(rope_parameters=SCALED | {"type": "linear"}),
        "rope_type is both",
    ),
    "two factors": (
        lambda c: c.update(rope_parameters=SCALED, rope_scaling=SCALED | {"factor": 9}),
        "factor is both",
    ),
    "scaled and not": (
        lambda c: c.update(rope_parameters=SCALED, rope_scaling={"rope_type": "default"}),
        "rope_type is both",
    ),
    "half of each head, said inside": (
        set_rope(partial_rotary_factor=0.5),
        "partial_rotary_factor",
    ),
    "theta of nothing": (set_rope(rope_theta=None), "rope_theta"),
    "theta below 0": (set_rope(rope_theta=-1.0), "rope_theta"),
    "an eps that is no number": (lambda c: c.update(rms_norm_eps=float("nan")), "norm_eps"),
    "a negative size": (lambda c: c.update(num_hidden_layers=-1), "n_layers"),
    "a fractional size": (lambda c: c.update(hidden_size=64.0), "dim"),
    "an odd head": (lambda c: c.update(head_dim=15), "even"),
    "heads that do not divide": (lambda c: c.update(num_key_value_heads=3), "heads"),
    "tied by a word": (lambda c: c.update(tie_word_embeddings="yes"), "tied"),
    "half of each head rotated": (
        lambda c: c.update(partial_rotary_factor=0.5),
        "partial_rotary_factor",
    ),
    "a list for an object": (
        lambda c: c.update(rope_parameters=None, rope_scaling=["llama3"]),
        "rope",
    ),
}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000]
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_files_that_are_no_json(folder, name, content):
    as_shard(folder)
    (folder / name).write_bytes(content)
    refused(folder, name)


SHARD = "model-00001-of-00001.safetensors"


def as_shard(folder) -> Path:
    """Rename the model's file: beside one of its usual name, no index is read."""
    return (folder / "model.safetensors").rename(folder / SHARD)


NORM, OTHER = "model.norm.weight", "model.layers.7.mlp.up_proj.weight"
INDEXES = {
    "parent folder": ({NORM: f"../{SHARD}"}, "inside"),
    "absolute path": ({NORM: "/etc/passwd"}, "inside"),
    "hidden parent": ({NORM: f"x/../../{SHARD}"}, "inside"),
    "backslash": ({NORM: f"..\\{SHARD}"}, "inside"),
    "no text": ({NORM: 3}, "inside"),
    "missing shard": ({NORM: "model-2.safetensors"}, "No such file"),
    "a tensor that is absent": ({OTHER: SHARD}, OTHER),
    "an unlisted tensor": ({NORM: None}, NORM),
    "the folder itself": ({NORM: "."}, "inside"),
    "nothing": ({NORM: ""}, "inside"),
    "a zero byte": ({NORM: "model\0.safetensors"}, "inside"),
    "a very long name": ({NORM: "m" * 5000}, "inside"),
    "another kind of file": ({NORM: "config.json"}, "config.json"),
}


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": "model"}']
)
def test_an_index_of_nothing(folder, content):
    as_shard(folder)
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    refused(folder, "weight_map")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model"]
)
def test_a_file_that_is_a_link_to_elsewhere(folder, tmp_path_factory, name):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / name
    elsewhere.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(elsewhere)
    refused(folder, "inside")


def test_the_links_of_a_download_cache(folder, tmp_path):
    """As huggingface_hub stores a repository: names in snapshots/REVISION, linked to contents in
    blobs.
    """
    cache = tmp_path / "models--org--name"
    snapshot, blobs = cache / "snapshots" / "0123abcd", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(folder.glob("*.*")):
        path.rename(blobs / f"{i:040x}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{i:040x}"))
    load(snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "config.json")
    refused(snapshot)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pipe_that_nobody_writes_into(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, "No such file")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_tied_head_that_is_stored_too(folder, dtype):
    """The embedding once more is fine; the same numbers in another type, or one other number, are
    not.
    """
    edit_json(folder / "config.json", lambda c: c.update(tie_word_embeddings=True))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone().to(dtype)
    save_file(tensors, folder / "model.safetensors")
    if dtype == torch.float32:
        assert load(folder)[0].cfg.tied_embeddings
        tensors["lm_head.weight"][-1, -1] += 1e-3
        save_file(tensors, folder / "model.safetensors")
    refused(folder, "ties the head")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300), st.integers(1, 700), st.integers(0, 2**31))
def test_tensors_are_compared_in_slices(size, slice_bytes, flip):
    numbers = torch.randint(
        256, (size, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(size)
    )
    one, other = numbers.flatten(), numbers.flatten().clone()

    def stored(data):
        return StoredTensor((size,), None, "F32", lambda first, last: data[first:last])

    assert not size or same_bytes(stored(one), stored(other), slice_bytes)
    assert not same_bytes(stored(one), None)
    if size:
        other[flip % len(other)] ^= 1
        assert not same_bytes(stored(one), stored(other), slice_bytes)


def test_a_tensor_in_two_shards(tmp_path):
    tiny_hugging_face().save_pretrained(tmp_path, max_shard_size="60KB")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second)
    refused(tmp_path, "twice|list")


TENSORS = {
    "missing": (lambda t: t.pop("model.norm.weight"), "missing"),
    "extra": (lambda t: t.update({"model.extra.weight": torch.ones(2)}), "extra"),
    "a bias": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
        "bias",
    ),
    "wrong shape": (lambda t: t.update({"model.norm.weight": torch.ones(63)}), "shape"),
    "transposed": (
        lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.contiguous()}),
        "shape",
    ),
    "misshapen q": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": torch.ones(3, 64)}),
        "shape|q_proj",
    ),
    "flat k": (
        lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": torch.ones(64)}),
        "shape|k_proj",
    ),
    "whole numbers": (
        lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)}),
        "I32",
    ),
    "a name without a dot": (lambda t: t.update(norm=torch.ones(64)), "norm"),
    "no head": (lambda t: t.pop("lm_head.weight"), "head"),
}


# tokenizer.json

TOKENIZERS = {
    "a normalizer": (lambda t: t.update(normalizer={"type": "NFC"}), "rewrites"),
    "no cuts": (lambda t: t.update(pre_tokenizer=None), "malformed"),
    "unknown cuts": (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "cuts text"),
    "a space in front": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][-1].update(add_prefix_space=True),
        "cuts text",
    ),
    "an expression of its own": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(a|a)*b"}),
        "cuts text",
    ),
    "cuts removed": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        "cuts text",
    ),
    "no vocabulary": (lambda t: t["model"].pop("vocab"), "vocab"),
    "another kind of model": (lambda t: t["model"].update(merges=None), "malformed"),
    "a negative id": (lambda t: t["model"]["vocab"].update(a=-1), "id"),
    "an id of true": (lambda t: t["model"]["vocab"].update(a=True), "id"),
    "an id twice": (lambda t: t["model"]["vocab"].update(a=1), "same id"),
    "an id beyond the embedding": (lambda t: t["model"]["vocab"].update(a=10**6), "rows"),
    "merges of three": (lambda t: t["model"]["merges"].append(["a", "b", "c"]), "malformed"),
    "merges of numbers": (lambda t: t["model"]["merges"].append([1, 2]), "malformed"),
    "merges into nothing": (
        lambda t: t["model"]["merges"].append(["z", "\u0100"]),
        "does not have",
    ),
    "whole chunks perhaps": (lambda t: t["model"].update(ignore_merges="no"), "malformed"),
    "a special token without an id": (lambda t: t["added_tokens"][0].pop("id"), "id"),
    "takes in spaces": (
        lambda t: t["added_tokens"][0].update(special=False, lstrip=True),
        "im_start.*lstrip",
    ),
    "takes in spaces behind": (
        lambda t: t["added_tokens"][1].update(special=False, rstrip=True),
        "im_end.*rstrip",
    ),
    "whole words": (
        lambda t: t["added_tokens"][0].update(special=False, single_word=True),
        "im_start.*single_word",
    ),
    "an added token that is a number": (
        lambda t: t["added_tokens"][0].update(special=False, content=7),
        "",
    ),
    "a first token of another kind": (
        lambda t: t.update(post_processor={"type": "Bert"}),
        "unknown kind",
    ),
    "a first token that is nowhere": (
        lambda t: t["post_processor"].update(special_tokens={}),
        "begin",
    ),
    "two first tokens": (
        lambda t: t["post_processor"]["single"].insert(0, *t["post_processor"]["single"][:1]),
        "2 t",
    ),
    "a first token outside": (
        lambda t: t["post_processor"]["special_tokens"]["<|begin|>"].update(ids=[10**6]),
        "control ids",
    ),
    "post-processors without end": (
        lambda t: t.update(post_processor=nested(80)),
        "control ids|recursion|malformed",
    ),
}


def nested(depth):
    """A sequence of sequences of post-processors."""
    return {"type": "Sequence", "processors": [nested(depth - 1)] if depth else [{"type": "Other"}]}


SETTINGS = {  # what is wrong with tokenizer_config.json, and one with chat_template.jinja
    "a template that is a number": (
        lambda c: c.update(chat_template=7),
        "chat template is no text",
    ),
    "templates without names": (lambda c: c.update(chat_template=["x"]), "chat template"),
    "a first token that is a list": (lambda c: c.update(bos_token=["x"]), "chat template"),
    "a named template that is none": (
        lambda c: c.update(chat_template=[{"name": "default", "template": {}}]),
        "no text",
    ),
}


def train() -> Tokenizer:
    vocab = train_bpe("the cat sat on the mat, that is that " * 3, 290)
    specials = {
        "<|im_start|>": len(vocab),
        "<|im_end|>": len(vocab) + 1,
        "<|begin|>": len(vocab) + 2,
    }
    return Tokenizer(
        vocab, specials, bos_id=len(vocab) + 2, eos_id=len(vocab) + 1, stop_ids=[len(vocab) + 1]
    )


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train()


def tiny_llama(vocab_size=310, **changes) -> Llama:
    return Llama(replace(LlamaConfig(16, 2, 4, 2, 6, 24, vocab_size), **changes)).eval()


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe<|im_start|>"])
def test_a_chat_template_that_is_no_text(tmp_path, trained, name, content):
    save_hugging_face(tiny_llama(), trained, tmp_path)
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, "chat.template|tokenizer_config")


# What people publish: added tokens, chat templates, ends, first tokens, Llama 2's tokenizer

HEADERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]
BEGIN, CHATML = ["<|begin_of_text|>", "<|end_of_text|>"], ["<|im_start|>", "<|im_end|>"]


def bpe(specials=(*BEGIN, *HEADERS, *CHATML), plain=()):
    """A small tokenizer of Hugging Face's package that cuts as Llama 3's and puts the first of its
    specials first.
    """
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["the fox, the system, the user, the assistant, the tea"] * 3, trainer)
    bpe.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False) for name in specials]
    )
    bpe.add_tokens([tokenizers.AddedToken(name, special=False, normalized=True) for name in plain])
    bpe.post_processor = first_is(bpe, specials[0])
    return bpe


def first_is(bpe, name, **changes):
    """The post-processor that puts a token in front of a text."""
    named = [(name, bpe.token_to_id(name))]
    return tokenizers.processors.TemplateProcessing(
        **{"single": f"{name} $A", "special_tokens": named} | changes
    )


def published(folder, bpe, config=None, **settings):
    """(AutoTokenizer's, ours) from a folder as transformers writes it. settings: of
    tokenizer_config.json.
    """
    sizes = dict(
        num_hidden_layers=1, vocab_size=bpe.get_vocab_size(), bos_token_id=None, eos_token_id=None
    )
    tiny_hugging_face(**sizes | (config or {})).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **settings).save_pretrained(folder)
    bpe.save(str(folder / "tokenizer.json"))  # to the letter
    return transformers.AutoTokenizer.from_pretrained(folder), load(folder)[1]


def test_added_tokens_that_belong_to_text_come_back(tmp_path):
    """Read, written and read again; "the" is an ordinary token, of which others are made, as
    well.
    """
    text, names = "the [ECHR-5A] the<think>tea", ["[ECHR-5A]", "<think>", "the"]
    theirs, ours = published(tmp_path / "theirs", bpe(plain=names))
    ids = theirs.encode(text, add_special_tokens=False)
    assert (
        ours.encode(text) == ids
        and ours.decode(ids) == text
        and {ours.specials[name] for name in names} < {*ids}
    )
    load_and_save(tmp_path / "theirs", tmp_path / "ours")
    after, again = (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "ours"),
        load(tmp_path / "ours")[1],
    )
    assert after.encode(text, add_special_tokens=False) == ids == again.encode(text)
    assert (
        after.decode(ids, skip_special_tokens=True)
        == theirs.decode(ids, skip_special_tokens=True)
        == text
    )
    added = [
        json.loads((tmp_path / name / "tokenizer.json").read_text())["added_tokens"]
        for name in ("theirs", "ours")
    ]
    assert added[0] == added[1]


def load_and_save(source, folder):
    model, tokenizer = load(source)
    save_hugging_face(model, tokenizer, folder)


@pytest.mark.parametrize(
    "name", ["<|im_start|>", "<|im_end|>", "<|end_of_text|>", "<|begin_of_text|>"]
)
def test_a_control_token_never_comes_out_of_text_whatever_the_file_says(tmp_path, name):
    """As in llama.cpp, which overrides the type of such a token: or whoever types it would speak as
    the system.
    """
    kept = [each for each in (*BEGIN, *CHATML) if each != name]
    words = bpe(specials=kept, plain=[name])
    config = {"eos_token_id": words.token_to_id("<|end_of_text|>")}
    words.post_processor = first_is(words, "<|begin_of_text|>")
    _, ours = published(tmp_path, words, config, chat_template=LOOP)
    assert (
        ours.specials[name] not in ours.encode(f"a{name}b")
        and ours.decode(ours.encode(name)) == name
    )


LOOP = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'\
 + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3_LOOP = """{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim %}\
{% set content = content + '<|eot_id|>' %}\
{% if loop.index0 == 0 %}{% set content = BEFORE + content %}{% endif %}{{ content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
KIND = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
TEMPLATES = {
    "ChatML": LOOP,
    "ChatML behind BOS": "{{ bos_token }}" + LOOP,
    "ChatML behind BOS by name": "{{ '<|begin_of_text|>' }}" + LOOP,
    "ChatML, escaped": LOOP.replace("\n", "\\n"),
    "a default system message": KIND + LOOP,
    "with quotes": KIND.replace("Be kind.", r"You\'re \"Tea\". Hot\n\nand kind.") + LOOP,
    "in double quotes": KIND.replace("{{ '", '{{ "')
    .replace("\\n' }}", '\\n" }}')
    .replace("Be", "You're")
    + LOOP,
    "as text": KIND.replace("{{ '", "")
    .replace("\\n' }}", "\n")
    .replace("\\n", "\n")
    .replace("Be", "It's")
    + LOOP,
    "in the loop": LOOP.replace(
        "%}{{'<|im",
        "%}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are Tea.<|im_end|>\n' }}{% endif %}{{'<|im",
        1,
    ),
    "as a variable": "{% set system_message = 'You are a helpful assistant.' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system_message = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}"
    "{{ '<|im_start|>system\n' + system_message + '<|im_end|>\n' }}" + LOOP,
    "as Qwen2.5": "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + "
    "'<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{%- "
    "endif %}"
    "{% set messages = messages[1:] if messages[0]['role'] == 'system' else messages %}" + LOOP,
    "Llama 3": LLAMA3_LOOP.replace("BEFORE", "bos_token"),
    "Llama 3 without BOS": LLAMA3_LOOP.replace("BEFORE", "''"),
    "Llama 3 with a system message": "{% if messages[0]['role'] != 'system' %}{{ '<|start_header_id|>system"
    "<|end_header_id|>\n\nBe kind.<|eot_id|>' }}{% endif %}" + LLAMA3_LOOP.replace("BEFORE", "''"),
}
SAID = [
    [{"role": "user", "content": "the fox"}],
    [{"role": "system", "content": "brew tea"}, {"role": "user", "content": "the fox"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "the tea"},
        {"role": "user", "content": "b"},
    ],
]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_conversation_as_the_models_own_template_writes_it(tmp_path, template):
    """The vocabulary has the tokens of both formats. Our reader runs nothing; transformers runs the
    template.
    """
    theirs, ours = published(
        tmp_path / "theirs", bpe(), chat_template=template, bos_token="<|begin_of_text|>"
    )
    load_and_save(tmp_path / "theirs", tmp_path / "ours")
    after = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for messages in SAID:
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert chat.encode_dialog(ours, messages) == ids, (
            ours.decode(chat.encode_dialog(ours, messages)),
            theirs.decode(ids),
        )
        assert (
            after.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            == ids
        )
    assert after.chat_template == template
    end = "<|eot_id|>" if "Llama 3" in str(template) or "<|eot_id|>" in template else "<|im_end|>"
    # and no config names it
    assert ours.stop_ids >= {ours.specials[end]} and ours.eos_id == ours.specials[end]


def test_where_the_template_is_looked_for(tmp_path):
    """As transformers: the file of its own first, then the settings; of several with names the
    default.
    """
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": KIND + LOOP}]
    theirs, ours = published(tmp_path, bpe(), chat_template=LOOP)
    assert (
        tmp_path / "chat_template.jinja"
    ).exists() and ours.chat_format.template == theirs.chat_template == LOOP
    edit_json(tmp_path / "tokenizer_config.json", lambda c: c.update(chat_template=several))
    assert load(tmp_path)[1].chat_format.template == LOOP
    (tmp_path / "chat_template.jinja").unlink()
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        SAID[0], add_generation_prompt=True, return_dict=False
    )
    assert chat.encode_dialog(load(tmp_path)[1], SAID[0]) == ids
    edit_json(tmp_path / "tokenizer_config.json", lambda c: c.update(chat_template=KIND + LOOP))
    assert chat.encode_dialog(load(tmp_path)[1], SAID[0]) == ids


R1 = "{{ bos_token }}{% for m in messages %}{{ '<｜User｜>' + m.content + '<｜Assistant｜>' }}{% endfor %}"
UNKNOWN = {
    "R1": (R1, "<｜User｜>, <｜Assistant｜>.*neither"),
    "another's": ("{{ '[INST] ' + messages[0].content }}", "no marks"),
    "both": (LOOP + LLAMA3_LOOP, "marks of Llama 3's chat format and of ChatML"),
    "two system messages": (
        KIND + KIND.replace("kind", "brief") + LOOP,
        "several default system messages",
    ),
    "very long": (LOOP + "{# " + "x" * 100_000 + " #}", "at most 100,000"),
    "none": (None, "marks of Llama 3's chat format and of ChatML"),
}


@pytest.mark.parametrize("template, why", UNKNOWN.values(), ids=UNKNOWN)
def test_a_chat_that_is_not_known_is_said_to_be_so(tmp_path, template, why):
    _, ours = published(
        tmp_path / "theirs", bpe(), chat_template=template, bos_token="<|begin_of_text|>"
    )
    with pytest.raises(ValueError, match=why) as caught:
        chat.encode_dialog(ours, SAID[0])
    assert (
        "\n" not in str(caught.value)
        and ours.encode("the fox", bos=True)[0] == ours.specials["<|begin_of_text|>"]
    )
    load_and_save(tmp_path / "theirs", tmp_path / "ours")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").chat_template == template


def test_marks_that_the_vocabulary_lacks(tmp_path):
    _, ours = published(tmp_path / "a", bpe(BEGIN), chat_template=LOOP)
    with pytest.raises(ValueError, match="has <.im_start.>, but there is no token <.im_start.>"):
        chat.encode_dialog(ours, SAID[0])
    _, ours = published(tmp_path / "b", bpe(["<s>", *HEADERS]))
    with pytest.raises(ValueError, match="there is no token <.begin_of_text.>"):
        chat.encode_dialog(ours, SAID[0])
    theirs, ours = published(
        tmp_path / "c", bpe(["<s>", *HEADERS]), chat_template=TEMPLATES["Llama 3"], bos_token="<s>"
    )
    ids = theirs.apply_chat_template(SAID[1], add_generation_prompt=True, return_dict=False)
    assert chat.encode_dialog(ours, SAID[1]) == ids and ids[0] == ours.specials["<s>"]


@pytest.mark.parametrize("end", ["<|im_end|>", "<|eot_id|>"])
def test_without_a_template_the_end_may_tell_the_format(tmp_path, end):
    words = bpe()
    _, ours = published(tmp_path, words, {"eos_token_id": words.token_to_id(end)})
    assert chat.encode_dialog(ours, SAID[0]).count(ours.specials[end]) == 1


def test_all_ends_are_stops(tmp_path):
    """config.json's, generation_config.json's and the end of a turn, as Llama 3 8B Instruct was
    published without.
    """
    words = bpe([*BEGIN, *HEADERS, "<|pad|>"])
    _, ours = published(tmp_path, words, {"eos_token_id": words.token_to_id("<|end_of_text|>")})
    edit_json(
        tmp_path / "generation_config.json",
        lambda c: c.update(eos_token_id=[words.token_to_id("<|pad|>")]),
    )
    ends = {
        words.token_to_id(name)
        for name in ("<|end_of_text|>", "<|pad|>", "<|eot_id|>", "<|eom_id|>")
    }
    assert load(tmp_path)[1].stop_ids == ends == ours.stop_ids | {words.token_to_id("<|pad|>")}


FIRST = {  # bpe -> its post-processor
    "the template": lambda bpe: bpe.post_processor,
    "another token": lambda bpe: first_is(bpe, "<|end_of_text|>"),
    "nothing": lambda bpe: first_is(bpe, "<|end_of_text|>", single="$A", special_tokens=[]),
    "only an end": lambda bpe: first_is(bpe, "<|end_of_text|>", single="$A <|end_of_text|>"),
    "bytes alone": lambda bpe: tokenizers.processors.ByteLevel(),
    "a sequence": lambda bpe: tokenizers.processors.Sequence(
        [tokenizers.processors.ByteLevel(), bpe.post_processor]
    ),
}


@pytest.mark.parametrize("processor", FIRST.values(), ids=FIRST)
def test_the_first_token_is_the_one_that_the_tokenizers_library_puts_there(tmp_path, processor):
    """Whatever config.json and the settings say of it, they put nothing there."""
    words = bpe()
    words.post_processor = processor(words)
    want = words.encode("the fox").ids[0]
    for number, (config, more) in enumerate(
        [({"bos_token_id": 1}, {}), ({}, {"add_bos_token": True})]
    ):
        theirs, ours = published(
            tmp_path / str(number), words, config, bos_token="<|begin_of_text|>", **more
        )
        assert (
            ours.encode("the fox", bos=ours.bos_id is not None)[0]
            == want
            == theirs("the fox").input_ids[0]
        )


@pytest.mark.parametrize("json_too", [True, False])
def test_llama_2s_tokenizer_leaves_the_weights_usable(tmp_path, json_too):
    """TinyLlama's folder: a SentencePiece file, and the same as a tokenizer.json that falls back on
    bytes.
    """
    reference = tiny_hugging_face()
    reference.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    if json_too:
        words = tokenizers.Tokenizer(
            tokenizers.models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>", byte_fallback=True)
        )
        words.normalizer = tokenizers.normalizers.Prepend("▁")
        words.save(str(tmp_path / "tokenizer.json"))
    with pytest.warns(UserWarning, match="^its tokenizer.* is of Llama 2's kind.*ids only$"):
        model, tokenizer = load(tmp_path)
    torch.testing.assert_close(
        model(random_ids(5)), reference(random_ids(5)).logits, atol=1e-5, rtol=0
    )
    assert tokenizer is None


@pytest.mark.weights
def test_metas_file_in_a_hugging_face_folder(tmp_path, llama3_vocabulary):
    """tokenizer.json, which transformers reads, goes before it; without one it is read, and the
    template as well.
    """
    tiny_hugging_face(
        num_hidden_layers=1, vocab_size=128_256, hidden_size=8, eos_token_id=7
    ).save_pretrained(tmp_path)
    shutil.copy(llama3_vocabulary, tmp_path / "tokenizer.model")
    (tmp_path / "chat_template.jinja").write_text(
        TEMPLATES["Llama 3 with a system message"], encoding="utf-8"
    )
    ours = load(tmp_path)[1]
    assert ours.stop_ids == {7, 128_001, 128_008, 128_009}
    assert ours.decode(chat.encode_dialog(ours, SAID[0])).startswith(
        "<|start_header_id|>system<|end_header_id|>\n\nBe kind."
    )
    bpe().save(str(tmp_path / "tokenizer.json"))
    assert load(tmp_path)[1].vocab_size == bpe().get_vocab_size()


# Writing

KINDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@settings(max_examples=40, deadline=None)
@given(
    n_kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.integers(1, 4),
    n_layers=st.integers(1, 3),
    tied=st.booleans(),
    dtype=st.sampled_from([*KINDS]),
    most=st.sampled_from([1, 3000, 10**9]),
    seed=st.integers(0, 99),
)
def test_every_bit_comes_back(
    tmp_path_factory, n_kv_heads, group, half, n_layers, tied, dtype, most, seed
):
    """Random bits: NaNs of all kinds, infinities, zeros with a sign. Names, shapes and order of
    rows as they were.
    """
    sizes = dict(
        n_heads=group * n_kv_heads, n_kv_heads=n_kv_heads, head_dim=2 * half, n_layers=n_layers
    )
    model = tiny_llama(12, **sizes, tied_embeddings=tied).to(dtype)
    generator, ints = torch.Generator().manual_seed(seed), KINDS[dtype]
    limits = torch.iinfo(ints)
    for weight in model.parameters():
        bits = torch.randint(limits.min, limits.max, weight.shape, generator=generator, dtype=ints)
        weight.data = bits.view(dtype)
    folder = tmp_path_factory.mktemp("bits")
    save_hugging_face(model, None, folder, max_shard_bytes=most)
    again, tokenizer = load(folder, dtype=dtype)
    assert tokenizer is None and again.cfg == model.cfg
    before, after = dict(model.named_parameters()), dict(again.named_parameters())
    assert before.keys() == after.keys() and ("head.weight" in before) != tied
    for name, weight in before.items():
        assert torch.equal(weight.data.view(ints), after[name].data.view(ints)), name
    # the format's own library
    stored = {name for path in folder.glob("*.safetensors") for name in load_file(path)}
    assert len(stored) == len(before)
    shutil.rmtree(folder)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaling", [None, RopeScaling(factor=32.0)], ids=["plain", "scaled"])
def test_transformers_reads_what_we_write(tmp_path, scaling, tied, dtype):
    model = tiny_llama(
        rope_scaling=scaling, tied_embeddings=tied, max_seq_len=20_000, norm_eps=2e-5
    )
    for weight in model.parameters():
        weight.copy_(torch.randn_like(weight) / 5)
    save_hugging_face(model, None, tmp_path / "saved", dtype=dtype, max_shard_bytes=10_000)
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for weight in model.parameters():
        weight.copy_(weight.to(dtype))
    tokens = random_ids(300, vocab_size=310)
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=2e-5, rtol=0)
    assert (
        theirs.config.max_position_embeddings == 20_000
        and theirs.config.tie_word_embeddings == tied
    )
    assert theirs.generation_config.eos_token_id is None  # not transformers' default, 2


def test_what_the_file_says_of_itself(tmp_path, trained):
    save_hugging_face(tiny_llama(), trained, tmp_path / "saved", dtype=torch.bfloat16)
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
    data = (tmp_path / "saved" / "model.safetensors").read_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0  # so that the data after it is aligned
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert config["torch_dtype"] == "bfloat16" and config["eos_token_id"] == [trained.eos_id]
    # transformers 4 reads only this form
    assert config["rope_theta"] == 500_000.0 and config["rope_scaling"] is None


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 60))
def test_shards(sizes, most):
    sizes = dict(enumerate(sizes))
    lists = shards(sizes, most)
    assert [name for names in lists for name in names] == [*sizes]
    totals = [sum(sizes[name] for name in names) for names in lists]
    assert all(total <= most or len(names) == 1 for total, names in zip(totals, lists, strict=True))
    for (first, names), total in zip(zip(lists, lists[1:], strict=False), totals, strict=False):
        assert total + sizes[names[0]] > most and first  # not cut too early, none is empty


def quantized(model):
    model.blocks[0].attention.wk = torch.nn.Identity()


def adapted(model):
    model.blocks[1].feed_forward.up.adapter = torch.nn.Linear(2, 2)


def untied(model):
    model.head.weight = torch.nn.Parameter(model.head.weight + 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (quantized, "wk.weight"),
        (adapted, "up.adapter"),
        (untied, "head of its own"),
        (Llama.double, "float64"),
    ],
)
def test_what_is_no_plain_llama_is_not_saved(tmp_path, change, message):
    model = tiny_llama(tied_embeddings=True)
    change(model)
    with pytest.raises(CheckpointError, match=message):
        save_hugging_face(model, None, tmp_path / "saved")
    assert not [*tmp_path.iterdir()]


def test_a_tied_head_that_is_a_copy_is_stored_once(tmp_path):
    model = tiny_llama(tied_embeddings=True)
    model.head.weight = torch.nn.Parameter(model.embedding.weight.detach().clone())
    save_hugging_face(model, None, tmp_path / "saved")
    assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")


def test_a_pattern_that_tokenizer_json_cannot_say(tmp_path, trained):
    other = Tokenizer(trained.vocab, trained.specials, pattern=r"\w+|\W+")
    with pytest.raises(CheckpointError, match="cuts text"):
        save_hugging_face(tiny_llama(), other, tmp_path / "saved")
    assert not [*tmp_path.iterdir()]


# Tokenizers that others read


def saved(tokenizer, folder):
    """(AutoTokenizer's, ours) from the folder in which ours was saved."""
    rows = -(-tokenizer.vocab_size // 8) * 8
    save_hugging_face(tiny_llama(rows, n_layers=1), tokenizer, folder)
    return transformers.AutoTokenizer.from_pretrained(folder), load(folder)[1]


@pytest.fixture(scope="module", params=["trained", "smollm2", "llama3"])
def three(request, tmp_path_factory):
    """(ours, AutoTokenizer's of the saved folder, ours of the saved folder)"""
    if request.param == "trained":
        ours = request.getfixturevalue("trained")
    elif request.param == "smollm2":
        ours = request.getfixturevalue("ours")[1]
    else:
        ours = Tokenizer.from_file(request.getfixturevalue("llama3_vocabulary"))
    return ours, *saved(ours, tmp_path_factory.mktemp("tokenizer") / "saved")


def same_ids(three, text):
    ours, theirs, again = three
    ids = ours.encode(text)
    assert theirs.encode(text, add_special_tokens=False) == ids == again.encode(text)
    assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)


@pytest.mark.parametrize("text", [text for text in TEXTS if "<|" not in text])
def test_auto_tokenizer_has_our_ids(three, text):
    same_ids(three, text)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(
        st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="<"), max_size=40
    )
)
def test_auto_tokenizer_has_our_ids_of_any_text(three, text):
    same_ids(three, text)


def test_control_tokens_of_saved_tokenizers(three):
    ours, theirs, again = three
    assert again.specials == ours.specials and again.vocab == ours.vocab
    assert (again.bos_id, again.eos_id, again.stop_ids) == (ours.bos_id, ours.eos_id, ours.stop_ids)
    assert again.whole_chunks == ours.whole_chunks and again.pattern.pattern == ours.pattern.pattern
    first = [] if ours.bos_id is None else [ours.bos_id]
    assert theirs("Hello").input_ids == first + ours.encode("Hello")
    for name, id in ours.specials.items():
        assert theirs.convert_tokens_to_ids(name) == id
    assert theirs.eos_token_id == ours.eos_id and set(theirs("a")) == {
        "input_ids",
        "attention_mask",
    }


DIALOGS = [
    [{"role": "user", "content": "Hello World!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " two  spaces \n"}],
    [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Ok\n\n"},
    ],
    [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "?"},
        {"role": "tool", "content": "{'a': 1}"},
    ],
]


@pytest.mark.parametrize("messages", DIALOGS)
def test_the_chat_template_writes_what_chapter_10_does(three, messages):
    ours, theirs, _ = three
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == chat.encode_dialog(ours, messages)
    closed = theirs.apply_chat_template(messages, return_dict=False)
    assert closed == ids[: len(closed)] and len(closed) < len(ids)


def test_the_chat_template_refuses_what_it_cannot_write(three):
    """Ours does; a tokenizer that has come with a template of its own keeps that."""
    if three[0].chat_format:
        assert three[1].chat_template == three[0].chat_format.template
        return
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f"}}],
    }
    with pytest.raises(Exception, match="writes no tool calls"):
        three[1].apply_chat_template([call])


def test_only_known_formats_get_a_template(tmp_path):
    plain = Tokenizer({bytes([byte]): byte for byte in range(256)}, {"<end>": 256}, GPT2_SPLIT)
    theirs, _ = saved(plain, tmp_path / "saved")
    assert theirs.chat_template is None and len(CHAT_TEMPLATES) == 2
    assert theirs.encode("a<end>") == [97, 256]


@pytest.mark.parametrize("pattern", [LLAMA3_PATTERN, SMOLLM_SPLIT, GPT2_SPLIT, r"[\s\S]+"])
@pytest.mark.parametrize(
    "specials", [{}, {"<a>": 256}, {"<a>": 300, "<b>": 298}], ids=["none", "next", "with a gap"]
)
def test_patterns_and_special_ids(tmp_path, pattern, specials):
    plain = Tokenizer(
        {bytes([byte]): byte for byte in range(256)}, specials, pattern, whole_chunks=False
    )
    three = plain, *saved(plain, tmp_path / "saved")
    for text in ("naïve 12 x", " \n\t", "it's 1,234 ½"):
        same_ids(three, text)
    for name, id in specials.items():
        assert three[1].encode(name) == [id]


def test_merges_worked_out_of_ranks():
    """By hand: every way to cut a token into two tokens, in the order of the tokens; found merges
    as they are.
    """
    ranked = Tokenizer({b"a": 0, b"b": 1, b"ab": 2, b"abb": 3, b"bb": 4}, {})
    assert merges_of(ranked) == [(b"a", b"b"), (b"a", b"bb"), (b"ab", b"b"), (b"b", b"b")]
    listed = Tokenizer(ranked.vocab, {}, merges={(b"b", b"b"): 1, (b"a", b"b"): 0})
    assert merges_of(listed) == [(b"a", b"b"), (b"b", b"b")]


@pytest.mark.weights
def test_real_weights_through_the_folder(tmp_path, ours):
    model, tokenizer = ours
    save_hugging_face(
        model, tokenizer, tmp_path / "saved", dtype=torch.bfloat16, max_shard_bytes=200_000_000
    )
    again, again_tokenizer = load(tmp_path / "saved", dtype=torch.bfloat16)
    for (name, weight), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight.bfloat16(), other), name
    text = "The lighthouse keeper counted 1,024 steps. Im März schneite es."
    assert again_tokenizer.encode(text) == tokenizer.encode(text)


# Memory

PEAK = """
import sys, torch, minillama
from pathlib import Path

def memory(field):
    return 1024 * int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])

def measured(action):
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    result = action()
    return memory("VmHWM") - before, result

minillama.load(sys.argv[1])  # whatever is imported on first use is imported now
loaded, (model, _) = measured(lambda: minillama.load(sys.argv[2], dtype=torch.bfloat16))
sizes = [weight.nbytes for weight in model.parameters()]
saved, _ = measured(lambda: minillama.save(model, None, sys.argv[3], max_shard_bytes=100_000_000))
print(loaded, saved, sum(sizes), max(sizes))
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux does"
)
@pytest.mark.parametrize("tied", [True, False])
def test_memory_of_reading_and_writing(tmp_path, tied):
    """Loading peaks at the model and its largest tensor, saving at the largest tensor; 40 MB for
    all the rest.
    """
    sizes = dict(
        dim=1024, n_heads=16, n_kv_heads=16, head_dim=64, ffn_dim=4096, tied_embeddings=tied
    )
    big = tiny_llama(32_000, **sizes).to(torch.bfloat16)
    save_hugging_face(tiny_llama(), None, tmp_path / "tiny")
    save_hugging_face(big, None, tmp_path / "big", max_shard_bytes=100_000_000)
    if tied:  # stored twice: the comparison must not hold both
        index = json.loads(
            (tmp_path / "big" / "model.safetensors.index.json").read_text(encoding="utf-8")
        )
        save_file(
            {"lm_head.weight": big.head.weight.detach()}, tmp_path / "big" / "head.safetensors"
        )
        index["weight_map"]["lm_head.weight"] = "head.safetensors"
        (tmp_path / "big" / "model.safetensors.index.json").write_text(
            json.dumps(index), encoding="utf-8"
        )
    del big
    command = [
        sys.executable,
        "-c",
        PEAK,
        *map(str, (tmp_path / "tiny", tmp_path / "big", tmp_path / "again")),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    loaded, saved, model, largest = map(int, done.stdout.split())
    assert loaded < 1.1 * (model + largest) + 40e6, (loaded, model, largest)
    assert saved < 1.1 * largest + 40e6, (saved, largest)


# Folders that do not fit, and what is as large as it may be


def large() -> dict[str, bytes]:
    """As much as a few megabytes can ask for."""
    return {
        "lists": b'{"a": [' + b"[]," * 5_000_000 + b"[]]}",
        "objects": b'{"a": [' + b"{}," * 5_000_000 + b"{}]}",
        "full objects": b'{"a": [' + b'{"a":0},' * 95_000 + b"{}]}",
        "numbers": b'{"a": [' + b"1234567," * 1_100_000 + b"0]}",
        "words": b'{"a": ['
        + b",".join(b'"%d"' % n for n in range(10**6, 10**6 + 1_100_000))
        + b"]}",
        "wide characters": b'{"a": "' + "\U0001f999".encode() * 7_000_000 + b'"}',
        "nesting": b'{"a": ' + b"[" * 9_000_000,
        "one number": b'{"a": ' + b"9" * 9_000_000 + b"}",
        "too large": b'{"a": "' + b"x" * 40_000_000 + b'"}',
    }


def test_folders_that_do_not_fit(tmp_path, trained):
    """All of the above; an index lists what the file holds, but for one tensor."""
    good, broken = tmp_path / "good", {}
    tiny_hugging_face().save_pretrained(good)
    save_hugging_face(tiny_llama(), trained, tmp_path / "ours")
    whole = dict.fromkeys(load_file(good / "model.safetensors"), SHARD)

    def copy(name, words, source=good) -> Path:
        broken[name] = tmp_path / str(len(broken)), words
        return shutil.copytree(source, broken[name][0])

    for name, (change, words) in CONFIGS.items():
        edit_json(copy(f"config: {name}", words) / "config.json", change)
    for name, (changes, words) in INDEXES.items():
        listed = {tensor: file for tensor, file in (whole | changes).items() if file is not None}
        index = as_shard(copy(f"index: {name}", words)).with_name("model.safetensors.index.json")
        index.write_text(json.dumps({"weight_map": listed}), encoding="utf-8")
    for name, (change, words) in TENSORS.items():
        tensors = load_file(good / "model.safetensors")
        change(tensors)
        save_file(tensors, copy(f"tensors: {name}", words) / "model.safetensors")
    for name, (change, words) in TOKENIZERS.items():
        edit_json(copy(f"tokenizer: {name}", words, tmp_path / "ours") / "tokenizer.json", change)
    for name, (change, words) in SETTINGS.items():
        edit_json(
            copy(f"settings: {name}", words, tmp_path / "ours") / "tokenizer_config.json", change
        )
    for name, content in large().items():
        for file in ("config.json", "model.safetensors.index.json", "tokenizer.json"):
            as_shard(copy(f"{name} in {file}", "")).with_name(file).write_bytes(content)
        if name != "wide characters":  # a template of any length is a text
            content = content.replace(b'"a"', b'"chat_template"', 1)
            (
                copy(f"{name} in the settings", "", tmp_path / "ours") / "tokenizer_config.json"
            ).write_bytes(content)
    all_refused(good, broken)

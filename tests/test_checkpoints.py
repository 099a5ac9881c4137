"""Files written by others (transformers, safetensors, gguf) are read exactly; broken ones give one clear line."""

import copy
import json
import struct

import pytest
import torch
from helpers import PLAIN, SCALED, edit_json, random_ids, refused, tiny_hugging_face, tiny_pair
from safetensors.torch import load_file, save_file

from minillama import RopeScaling
from minillama.hub import load


# Hugging Face folders


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
    "rope given twice": (lambda c: c.update(rope_theta=5.0), "rope_theta"),
}


@pytest.mark.parametrize("change, message", CONFIGS.values(), ids=CONFIGS.keys())
def test_configs_that_do_not_fit(folder, change, message):
    edit_json(folder / "config.json", change)
    refused(folder, message)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_files_that_are_no_json(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, name)


NORM, OTHER = "model.norm.weight", "model.layers.7.mlp.up_proj.weight"
INDEXES = {
    "parent folder": ({NORM: "../model.safetensors"}, "inside"),
    "absolute path": ({NORM: "/etc/passwd"}, "inside"),
    "hidden parent": ({NORM: "x/../../model.safetensors"}, "inside"),
    "backslash": ({NORM: "..\\model.safetensors"}, "inside"),
    "no text": ({NORM: 3}, "inside"),
    "missing shard": ({NORM: "model-2.safetensors"}, "No such file"),
    "a tensor that is absent": ({OTHER: "model.safetensors"}, OTHER),
    "an unlisted tensor": ({NORM: None}, NORM),
}


@pytest.mark.parametrize("changes, message", INDEXES.values(), ids=INDEXES.keys())
def test_indexes_that_do_not_fit(folder, changes, message):
    """The index lists what the file holds, but for one tensor."""
    files = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors") | changes
    weight_map = {name: file for name, file in files.items() if file is not None}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    refused(folder, message)


def test_an_index_of_nothing(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}', encoding="utf-8")
    refused(folder, "weight_map")


def test_a_shard_that_is_a_link_to_elsewhere(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret"
    elsewhere.write_bytes(bytes(100))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(elsewhere)
    refused(folder)


def test_a_tensor_in_two_shards(tmp_path):
    tiny_hugging_face().save_pretrained(tmp_path, max_shard_size="60KB")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second)
    refused(tmp_path, "twice|list")


TENSORS = {
    "missing": (lambda t: t.pop("model.norm.weight"), "missing"),
    "extra": (lambda t: t.update({"model.extra.weight": torch.ones(2)}), "extra"),
    "a bias": (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}), "bias"),
    "wrong shape": (lambda t: t.update({"model.norm.weight": torch.ones(63)}), "shape"),
    "transposed": (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.contiguous()}), "shape"),
    "misshapen q": (lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": torch.ones(3, 64)}), "shape|q_proj"),
    "flat k": (lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": torch.ones(64)}), "shape|k_proj"),
    "whole numbers": (lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)}), "I32"),
    "a name without a dot": (lambda t: t.update(norm=torch.ones(64)), "norm"),
    "no head": (lambda t: t.pop("lm_head.weight"), "head"),
}


@pytest.mark.parametrize("change, message", TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_do_not_fit(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, message)


def entry(**changes):
    return {"model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


def safetensors_bytes(header, data=bytes(16), length=None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


SAFETENSORS = {
    "empty": b"",
    "seven bytes": bytes(7),
    "header longer than the file": safetensors_bytes(entry(), length=10_000),
    "header of 2^63 bytes": safetensors_bytes(entry(), length=2**63),
    "not JSON": safetensors_bytes(b"{norm}"),
    "not UTF-8": safetensors_bytes(b'{"\xff": 1}'),
    "NaN": safetensors_bytes(b'{"norm": NaN}'),
    "no object": safetensors_bytes(b"[1]"),
    "an entry that is no object": safetensors_bytes({"norm": 3}),
    "repeated key": safetensors_bytes(b'{"norm": 1, "norm": 2}'),
    "unknown dtype": safetensors_bytes(entry(dtype="F4")),
    "size and shape disagree": safetensors_bytes(entry(shape=[5])),
    "negative shape": safetensors_bytes(entry(shape=[-2, -2])),
    "fractional shape": safetensors_bytes(entry(shape=[4.0])),
    "shape of booleans": safetensors_bytes(entry(shape=[True, 4])),
    "negative offset": safetensors_bytes(entry(data_offsets=[-16, 0])),
    "offsets of 2^63": safetensors_bytes(entry(data_offsets=[2**63, 2**63 + 16])),
    "three offsets": safetensors_bytes(entry(data_offsets=[0, 16, 32])),
    "hole": safetensors_bytes(entry(data_offsets=[4, 20]), bytes(20)),
    "trailing bytes": safetensors_bytes(entry(), bytes(17)),
    "short data": safetensors_bytes(entry(), bytes(15)),
    "overlap": safetensors_bytes(entry() | {"b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, bytes(24)),
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_broken_safetensors(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors")


@pytest.mark.parametrize("name", ["nothing", "nothing.gguf", "file.txt", "folder"])
def test_neither_file_nor_folder(tmp_path, name):
    (tmp_path / "file.txt").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / name)

"""Files written by others (transformers, safetensors, gguf) are read exactly; broken ones give one clear line."""

import copy
import dataclasses
import json
import re
import struct
import time

import gguf
import numpy as np
import pytest
import torch
from helpers import PLAIN, SCALED, edit_json, random_ids, tiny_hugging_face, tiny_pair
from safetensors.torch import load_file, save_file

from minillama import CheckpointError, Llama, LlamaConfig, RopeScaling
from minillama.checkpoints import GGUF, HUGGING_FACE
from minillama.hub import load


def refused(path, match=""):
    """load raises one line that begins with this file's name, within a second."""
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert time.process_time() - start < 1
    file, _, message = str(caught.value).partition(": ")
    assert file == str(path) and re.search(match, message) and "\n" not in message


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


# GGUF files


def write_gguf(path, tensors, drop=(), theta=10_000.0, **metadata):
    """A tiny model's file by the gguf package: tensors {GGUF name: (array, type or None)}."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = dict(
        embedding_length=64, block_count=1, context_length=99, feed_forward_length=96, vocab_size=128,
        **{"attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 16},
    )  # fmt: skip
    for key, value in (sizes | {k: v for k, v in metadata.items() if isinstance(v, int)}).items():
        if key not in drop:
            writer.add_uint32("llama." + key, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", theta)
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string("llama." + key, value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array if kind is None else gguf.quantize(array, kind), raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def tiny_gguf_tensors(kind=None):
    """One block's random tensors under GGUF's names; matrices of the type asked for."""
    rng, cfg = np.random.default_rng(0), LlamaConfig(64, 1, 4, 2, 16, 96, 128)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Llama(cfg).named_parameters()}
    arrays = {}
    for theirs, mine in GGUF.items():
        shape = shapes[mine.replace("N", "0")]
        array = rng.standard_normal(shape).astype(np.float32)
        arrays[theirs.replace("N", "0")] = (array, kind if len(shape) == 2 else None)
    return arrays


Q = gguf.GGMLQuantizationType


@pytest.mark.parametrize("kind", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1], ids=lambda kind: kind.name)
def test_dequantized_as_gguf_does(tmp_path, kind):
    tensors = tiny_gguf_tensors(kind)
    model, tokenizer = load(write_gguf(tmp_path / "tiny.gguf", tensors))
    assert tokenizer is None
    state = model.state_dict()
    for name, (array, quantized) in tensors.items():
        mine = state[GGUF[name.replace("blk.0", "blk.N")].replace("N", "0")].numpy()
        exact = array if quantized is None else gguf.dequantize(gguf.quantize(array, kind), kind)
        np.testing.assert_array_equal(mine, exact, err_msg=name)


@torch.inference_mode()
@pytest.mark.parametrize("factor", [None, 8.0, 32.0])
def test_gguf_logits_as_transformers(tmp_path, factor):
    """Our reading of a GGUF as llama.cpp's converter writes it: q and k interleaved, scaling as divisors."""
    reference = tiny_hugging_face(num_hidden_layers=1, rope=PLAIN if factor is None else SCALED | {"factor": factor})
    state = reference.state_dict()
    theirs = {mine: name for name, mine in HUGGING_FACE.items()}
    tensors = {}
    for name, mine in GGUF.items():
        array = state[theirs[mine].replace("N", "0")].numpy()
        if heads := {"blk.N.attn_q.weight": 4, "blk.N.attn_k.weight": 2}.get(name):  # as convert_hf_to_gguf.py
            array = array.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(array.shape)
        tensors[name.replace("N", "0")] = (np.ascontiguousarray(array), None)
    if factor is not None:
        plain = 500_000.0 ** -(np.arange(0, 16, 2) / 16)
        tensors["rope_freqs.weight"] = ((plain / reference.model.rotary_emb.inv_freq.numpy()).astype(np.float32), None)
    theta = 10_000.0 if factor is None else 500_000.0
    model, _ = load(write_gguf(tmp_path / "tiny.gguf", tensors, theta=theta))
    assert model.cfg.rope_scaling == (None if factor is None else RopeScaling(factor))
    tokens = random_ids(40)
    torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-5, rtol=0)


GGUFS = {
    "a tensor missing": (lambda t: t.pop("output_norm.weight"), {}, "missing"),
    "a tensor too many": (lambda t: t.update(bias=(np.ones(4, np.float32), None)), {}, "bias"),
    "wrong shape": (lambda t: t.update({"output_norm.weight": (np.ones(65, np.float32), None)}), {}, "shape"),
    "unknown type": (
        lambda t: t.update({"output.weight": (np.ones((128, 64), np.float32), Q.Q5_0)}), {}, "type"
    ),
    "another scaling": (lambda t: t.update({"rope_freqs.weight": (np.full(8, 3, np.float32), None)}), {}, "rope_freqs"),
    "scaling by name": (lambda t: None, {"rope.scaling.type": "yarn"}, "scaling"),
    "no head count": (lambda t: None, {"drop": ["attention.head_count"]}, "head_count"),
    "very many layers": (lambda t: None, {"block_count": 3_000}, "missing|layers"),
    "uneven heads": (lambda t: None, {"attention.head_count_kv": 3}, "evenly"),
    "no heads": (lambda t: None, {"attention.head_count": 0}, "zero|n_heads"),
    "half of each head rotated": (lambda t: None, {"attention.key_length": 16, "rope.dimension_count": 8}, "rope|head"),
}  # fmt: skip


@pytest.mark.parametrize("change, metadata, message", GGUFS.values(), ids=GGUFS.keys())
def test_gguf_files_that_do_not_fit(tmp_path, change, metadata, message):
    tensors = tiny_gguf_tensors()
    change(tensors)
    refused(write_gguf(tmp_path / "tiny.gguf", tensors, **metadata), message)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def info(name=b"t", dims=(32,), kind=0, offset=0, n_dims=None) -> bytes:
    n_dims = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", n_dims, *dims, kind, offset)


ARCHITECTURE = key(b"general.architecture", 8, string(b"llama"))


def header(*keys, infos=(), magic=b"GGUF", version=3, n_tensors=None, n_keys=None, data=bytes(256)) -> bytes:
    counts = len(infos) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    start = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(infos)
    return start + bytes(-len(start) % 32) + data


def array(kind, count, items=b""):
    return key(b"a", 9, struct.pack("<IQ", kind, count) + items)


HUGE = (2**31, 2**62, 2**63, 2**64 - 1)
BROKEN = {
    "empty": (b"", "empty"),
    "magic": (header(magic=b"GGML"), "not a GGUF"),
    "big endian": (header(version=3 << 24), "version"),
    "version 1": (header(version=1), "version"),
    "version 4": (header(version=4), "version"),
    "empty key": (header(key(b"", 4, bytes(4))), "key"),
    "repeated key": (header(key(b"k", 4, bytes(4)), key(b"k", 4, bytes(4))), "key"),
    "key that is not UTF-8": (header(key(b"\xff", 4, bytes(4))), "UTF-8"),
    "unknown value type": (header(key(b"k", 13, bytes(8))), "type 13"),
    "nested arrays": (header(array(9, 1, struct.pack("<IQ", 4, 0))), "array"),
    "alignment 0": (header(key(b"general.alignment", 4, bytes(4))), "alignment"),
    "alignment that is a text": (header(key(b"general.alignment", 8, string(b"32"))), "alignment"),
    "huge alignment": (
        header(key(b"general.alignment", 10, struct.pack("<Q", 2**63)), infos=[info()]),
        "align|ends at",
    ),
    "no dimensions": (header(infos=[info(dims=())]), "dimensions"),
    "five dimensions": (header(infos=[info(dims=(2,) * 5)]), "dimensions"),
    "2^31 dimensions": (header(infos=[info(n_dims=2**31)]), "dimensions"),
    "dimension 0": (header(infos=[info(dims=(32, 0))]), "shape"),
    "product overflows to 0": (header(infos=[info(dims=(2**32, 2**32))]), "ends at"),
    "unknown tensor type": (header(infos=[info(kind=99)]), "type 99"),
    "part of a block": (header(infos=[info(dims=(33,), kind=8)]), "blocks"),
    "offset outside": (header(infos=[info(offset=4096)]), "ends at"),
    "offset 2^63": (header(infos=[info(offset=2**63)]), "ends at"),
    "misaligned offset": (header(ARCHITECTURE, infos=[info(offset=4)]), "offset|align"),
    "overlapping tensors": (header(ARCHITECTURE, infos=[info(), info(b"u")]), "overlap"),
    "repeated tensor": (header(infos=[info(), info(offset=128)]), "twice"),
    "short data": (header(infos=[info()], data=bytes(100)), "ends at"),
    "no architecture": (header(), "architecture"),
    "another architecture": (header(key(b"general.architecture", 8, string(b"gemma"))), "gemma"),
    **{f"{n} tensors": (header(n_tensors=n), "") for n in HUGE},
    **{f"{n} keys": (header(n_keys=n), "") for n in HUGE},
    **{f"string of {n}": (header(key(b"k", 8, struct.pack("<Q", n))), "ends") for n in HUGE},
    **{f"array of {n} texts": (header(array(8, n)), "") for n in HUGE},
    **{f"array of {n} numbers": (header(array(4, n)), "ends|array") for n in HUGE},
    **{f"array of {n} bytes": (header(array(0, n)), "ends|array") for n in HUGE},
}


@pytest.mark.parametrize("content, message", BROKEN.values(), ids=BROKEN.keys())
def test_broken_gguf(tmp_path, content, message):
    (tmp_path / "broken.gguf").write_bytes(content)
    refused(tmp_path / "broken.gguf", message)


def test_gguf_cut_off_anywhere(tmp_path):
    """Every byte of the header, then some of the data."""
    path = write_gguf(tmp_path / "tiny.gguf", tiny_gguf_tensors(Q.Q8_0))
    data = path.read_bytes()
    reader = gguf.GGUFReader(path)
    for size in [*range(min(t.data_offset for t in reader.tensors)), len(data) // 2, len(data) - 1024]:
        path.write_bytes(data[:size])
        refused(path)


@pytest.mark.parametrize("name", ["nothing", "nothing.gguf", "file.txt", "folder"])
def test_neither_file_nor_folder(tmp_path, name):
    (tmp_path / "file.txt").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / name)


@pytest.mark.weights
def test_config_of_the_real_file(ours):
    cfg = ours[0].cfg
    assert cfg.norm_eps == pytest.approx(1e-5, rel=1e-7)  # the file has it in float32
    assert dataclasses.replace(cfg, norm_eps=1e-5) == LlamaConfig.named("smollm2-135m")

"""GGUF files written by others are read exactly; broken ones give one clear line."""

import dataclasses
import struct

import gguf
import numpy as np
import pytest
import torch
from helpers import PLAIN, SCALED, random_ids, refused, tiny_hugging_face

from minillama import Llama, LlamaConfig, RopeScaling
from minillama.checkpoints import GGUF, HUGGING_FACE
from minillama.hub import load


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


@pytest.mark.weights
def test_config_of_the_real_file(ours):
    cfg = ours[0].cfg
    assert cfg.norm_eps == pytest.approx(1e-5, rel=1e-7)  # the file has it in float32
    assert dataclasses.replace(cfg, norm_eps=1e-5) == LlamaConfig.named("smollm2-135m")

"""safetensors, byte by byte: whole files are read exactly, broken ones give one clear line."""

import json
import struct

import pytest
import torch
from helpers import all_refused, refused, tiny_hugging_face
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from minillama import CheckpointError, Llama, LlamaConfig, Tokenizer
from minillama.checkpoints.assemble import Checkpoint, assemble
from minillama.checkpoints.hugging_face_writer import STORED
from minillama.checkpoints.names import META, NAMES, rename
from minillama.checkpoints.tensors import open_safetensors
from minillama.inference.loading import load


@pytest.fixture
def folder(tmp_path):
    tiny_hugging_face(num_hidden_layers=1).save_pretrained(tmp_path)
    return tmp_path


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter("__metadata__".__ne__),
    st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from([*STORED])),
    max_size=5,
))  # fmt: skip
def test_what_the_library_writes(tmp_path_factory, wanted):
    tensors = {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in wanted.items()}
    path = tmp_path_factory.mktemp("library") / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    opened = open_safetensors(path)
    assert opened.keys() == tensors.keys()
    for name, tensor in tensors.items():
        stored = opened[name]
        assert stored.shape == tuple(tensor.shape) and torch.equal(stored.read(), tensor)
        data = tensor.view(torch.uint8).flatten()
        assert torch.equal(stored.raw(), data) and torch.equal(stored.raw(1, 7), data[1:7])


def entry(**changes):
    return {"model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


def safetensors_bytes(header, data=bytes(16), length=None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def two(first, second, size):
    """Two tensors of 16 bytes at these offsets."""
    b = {"dtype": "F32", "shape": [4], "data_offsets": second}
    return safetensors_bytes(entry(data_offsets=first) | {"b": b}, bytes(size))


ENTRY = json.dumps(entry()).encode()
MANY = {
    str(n): {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]}
    for n in range(20_000)
}
SAFETENSORS = {
    "empty": b"",
    "seven bytes": bytes(7),
    "eight bytes": bytes(8),
    "header longer than the file": safetensors_bytes(entry(), length=10_000),
    "header of 2^63 bytes": safetensors_bytes(entry(), length=2**63),
    "header of 2^64 - 1 bytes": safetensors_bytes(entry(), length=2**64 - 1),
    "header of 100 MB and a byte": safetensors_bytes(b" " * 100_000_001),
    "header one byte short": safetensors_bytes(entry(), length=len(json.dumps(entry())) - 1),
    "not JSON": safetensors_bytes(b"{norm}"),
    "not UTF-8": safetensors_bytes(b'{"\xff": 1}'),
    "half a surrogate pair": safetensors_bytes(b'{"\xed\xa0\x80": 1}'),
    "NaN": safetensors_bytes(b'{"norm": NaN}'),
    "an offset of NaN": safetensors_bytes(entry(data_offsets=[float("nan"), 16])),
    "an infinite offset": safetensors_bytes(entry(data_offsets=[0, float("inf")])),
    "no object": safetensors_bytes(b"[1]"),
    "deep": safetensors_bytes(b"[" * 100_000),
    "an entry that is no object": safetensors_bytes({"norm": 3}),
    "repeated key": safetensors_bytes(b'{"norm": 1, "norm": 2}'),
    "repeated key, both honest": safetensors_bytes(ENTRY[:-1] + b"," + ENTRY[1:]),
    "repeated key inside": safetensors_bytes(ENTRY.replace(b'"dtype"', b'"shape": [4], "dtype"')),
    "a key too many": safetensors_bytes(entry(alignment=8)),
    "no offsets": safetensors_bytes({"norm": {"dtype": "F32", "shape": [4]}}),
    "unknown dtype": safetensors_bytes(entry(dtype="F4")),
    "a number for a dtype": safetensors_bytes(entry(dtype=[4])),
    "dtype and size disagree": safetensors_bytes(entry(dtype="F16")),
    "size and shape disagree": safetensors_bytes(entry(shape=[5])),
    "negative shape": safetensors_bytes(entry(shape=[-2, -2])),
    "fractional shape": safetensors_bytes(entry(shape=[4.0])),
    "shape of booleans": safetensors_bytes(entry(shape=[True, 4])),
    "shape of a word": safetensors_bytes(entry(shape="4")),
    "no shape": safetensors_bytes(entry(shape=None)),
    "a shape of nothing": safetensors_bytes(entry(shape=[])),
    "a dimension of 0": safetensors_bytes(entry(shape=[0, 4], data_offsets=[0, 0])),
    "a product that overflows": safetensors_bytes(entry(shape=[2**62, 16])),
    "very many dimensions": safetensors_bytes(entry(shape=[1] * 200_000 + [4])),
    "very many huge dimensions": safetensors_bytes(entry(shape=[2**62] * 200_000)),
    "negative offset": safetensors_bytes(entry(data_offsets=[-16, 0])),
    "offsets the other way round": safetensors_bytes(entry(data_offsets=[16, 0])),
    "offsets of 2^63": safetensors_bytes(entry(data_offsets=[2**63, 2**63 + 16])),
    "three offsets": safetensors_bytes(entry(data_offsets=[0, 16, 32])),
    "hole": safetensors_bytes(entry(data_offsets=[4, 20]), bytes(20)),
    "hole between": two([0, 16], [20, 36], 36),
    "overlap": two([0, 16], [8, 24], 24),
    "the same place": two([0, 16], [0, 16], 16),
    "trailing bytes": safetensors_bytes(entry(), bytes(17)),
    "short data": safetensors_bytes(entry(), bytes(15)),
    "thousands of tensors": safetensors_bytes(MANY, bytes(80_000)),
}  # fmt: skip


def test_broken_safetensors(tmp_path):
    """All of the above, and some that are cut off."""
    good, broken = tmp_path / "good", {}
    tiny_hugging_face(num_hidden_layers=1).save_pretrained(good)
    data = (good / "model.safetensors").read_bytes()
    contents = SAFETENSORS | {f"cut at {size}": data[:size] for size in range(0, 1500, 50)}
    for name, content in contents.items():
        path = tmp_path / str(len(broken))
        path.mkdir()
        (path / "config.json").write_bytes((good / "config.json").read_bytes())
        (path / "model.safetensors").write_bytes(content)
        broken[name] = path, "model.safetensors"
    all_refused(good, broken)


def test_cut_off_anywhere(folder):
    """Every byte of the header, then some of the data."""
    data = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for size in [*range(header + 1), header + 100, len(data) // 2, len(data) - 1]:
        (folder / "model.safetensors").write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            open_safetensors(folder / "model.safetensors")


def test_a_file_that_shrinks_or_changes_while_it_is_read(folder):
    path = folder / "model.safetensors"
    data, opened = path.read_bytes(), open_safetensors(path)
    path.write_bytes(data[:-4])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        opened["lm_head.weight"].read()
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(CheckpointError, match="changed while it was read"):
        opened["lm_head.weight"].read()


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.attention.wq",
        "layers.N.attention.wq.weight",
        "layers.01.attention.wq.weight",
        "norm",
        "",
        "layers.-1.attention.wq.weight",
        "layers..attention.wq.weight",
        "layers.1234567.attention.wq.weight",
        "layers.0.attention.wq.weight.weight",
        "model.norm.weight",
        "layers.٣.attention.wq.weight",
    ],
)
def test_names_that_are_not_in_the_table(name):
    with pytest.raises(CheckpointError, match="not part of a Llama"):
        rename(name, META)


def test_the_table_of_names_is_the_model():
    parameters = dict(Llama(LlamaConfig.named("debug")).named_parameters())
    ours = {row[0] + ".weight" for row in NAMES}
    assert {
        name.replace("blocks.0", "blocks.N").replace("blocks.1", "blocks.N") for name in parameters
    } == ours
    for column in range(4):
        assert len({row[column] for row in NAMES}) == len(NAMES)
    ours = {name: name for name in (row[0] + ".weight" for row in NAMES)}
    assert rename("blocks.31.ffn_norm.weight", ours) == "blocks.31.ffn_norm.weight"


def test_a_tokenizer_larger_than_the_embedding(folder):
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, {})
    with pytest.raises(CheckpointError, match="ids up to 255, the embedding 128 rows"):
        Checkpoint(load(folder)[0].cfg, {}, tokenizer)


def test_nothing_is_read_before_all_fits(folder):
    """A missing tensor is found before the first number is fetched."""
    cfg = load(folder)[0].cfg
    opened = {name: "would fail if it were read" for name in ("a", "b")}
    with pytest.raises(CheckpointError, match="2 tensors cannot be those"):
        assemble(Checkpoint(cfg, opened, None))


@pytest.mark.parametrize("name", ["nothing", "nothing.gguf", "file.txt", "folder"])
def test_neither_file_nor_folder(tmp_path, name):
    (tmp_path / "file.txt").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / name)

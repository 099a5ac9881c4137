"""PyTorch's files read without running them: as torch.load sees them, and no further than a
description may go.
"""

import collections
import io
import os
import pickle
import re
import struct
import time
import warnings
import zipfile

import pytest
import torch
from helpers import all_refused
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama import CheckpointError, Llama, LlamaConfig
from minillama.checkpoints.meta_writer import save_meta
from minillama.checkpoints.pth import MAX_DESCRIPTION, MAX_INSTRUCTIONS, open_pth, run_pickle


# What torch.save writes


def program_of(value) -> bytes:
    """The pickle in the archive that torch.save makes of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=2)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=20), st.tuples(SHAPES, DTYPES, st.booleans()), max_size=20),
    st.integers(0, 9),
)
def test_described_as_torch_load_does(tmp_path_factory, wanted, seed):
    """Tensors of all kinds, parameters among them; the numbers too."""
    torch.manual_seed(seed)
    tensors = {}
    for name, (shape, dtype, parameter) in wanted.items():
        tensor = torch.randn(shape).to(dtype)
        tensors[name] = torch.nn.Parameter(tensor) if parameter else tensor
    path = tmp_path_factory.mktemp("pth") / "some.pth"
    torch.save(tensors, path)
    theirs = torch.load(path, weights_only=True)
    ours = open_pth(path)
    assert ours.keys() == {name for name in theirs if not name.endswith("rope.freqs")}
    for name, stored in ours.items():
        assert (
            torch.equal(stored.read(), theirs[name]) and stored.read().dtype == theirs[name].dtype
        )
        assert (
            stored.raw().tolist()
            == theirs[name].detach().contiguous().view(torch.uint8).flatten().tolist()
        )


def test_views_as_torch_load_does():
    whole = torch.randn(6, 4)
    many = {
        "rows": whole[2:4],
        "turned": whole.T,
        "column": whole[:, 1],
        "wide": whole.expand(3, 6, 4),
    }
    many |= {"one": torch.ones(1, 1)[:, 0], "flat": whole.view(-1)[5:9]}
    views, theirs = run_pickle(program_of(many)), many
    for name, view in views.items():
        assert (view.offset, view.shape) == (
            theirs[name].storage_offset(),
            tuple(theirs[name].shape),
        ), name
        assert (
            view.stride == theirs[name].stride()
            and view.storage[4] == theirs[name].untyped_storage().nbytes() // 4
        )


def test_a_state_dict_with_its_versions():
    """A module's state dict carries _metadata, which arrives by BUILD; more than 1,000 entries come
    in two parts.
    """
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(600)])
    assert isinstance(model.state_dict(), collections.OrderedDict)
    assert run_pickle(program_of(model.state_dict())).keys() == model.state_dict().keys()


def test_parts_of_one_storage(tmp_path):
    """As in Llama 2's files; the rotation's frequencies are not ours to read."""
    whole = torch.randn(8, 4)
    torch.save(
        {"a": whole[:3], "b": whole[3:], "x.rope.freqs": torch.ones(2, 2, 2, dtype=torch.float32)},
        tmp_path / "x.pth",
    )
    tensors = open_pth(tmp_path / "x.pth")
    assert tensors.keys() == {"a", "b"}
    assert torch.equal(torch.cat([tensors["a"].read(), tensors["b"].read()]), whole)


def test_tied_tensors_share_their_bytes(tmp_path):
    weight = torch.randn(4, 2)
    torch.save({"tok_embeddings.weight": weight, "output.weight": weight}, tmp_path / "x.pth")
    tensors = open_pth(tmp_path / "x.pth")
    assert torch.equal(tensors["output.weight"].read(), weight) and len(tensors) == 2


def test_a_file_that_changes(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(1000)}, path)
    stored = open_pth(path)["a"]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="changed|truncated"):
        stored.read()


# Programs that no weights need

TENSOR = program_of({"norm.weight": torch.ones(64)})  # its storage is entry 0, 64 elements
HASH_BOMB = b"\x80\x02}K\x01\x85q\x00" + 60 * b"h\x00\x86q\x00" + b"K\x01s."


class Call:
    """Something that pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def tensor_program(**changes) -> bytes:
    """The program of one tensor of 64 elements, with other values than PyTorch would write."""
    value = (
        dict(key="0", count=64, offset=0, shape=(64,), stride=(1,), kind=b"ctorch\nFloatStorage\n")
        | changes
    )

    def push(thing) -> bytes:
        if isinstance(thing, bytes):
            return thing
        return pickle.dumps(thing, protocol=2)[2:-1]

    storage = (
        b"("
        + push("storage")
        + push(value["kind"])
        + push(value["key"])
        + push("cpu")
        + push(value["count"])
        + b"tQ"
    )
    arguments = (
        b"(" + storage + push(value["offset"]) + push(value["shape"]) + push(value["stride"])
    )
    call = (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + arguments
        + b"\x89ccollections\nOrderedDict\n)Rt"
        + b"R"
    )
    return b"\x80\x02}" + push("norm.weight") + call + b"s."


PROGRAMS = {
    "a command": (pickle.dumps({"norm.weight": Call(os.system, "exit 1")}, 2), "system"),
    "a command, protocol 4": (
        pickle.dumps({"norm.weight": Call(os.system, "exit 1")}, 4),
        "protocol|no weights need",
    ),
    "a command, protocol 0": (b"cos\nsystem\n(S'exit 1'\ntR.", "system"),
    "INST": (b"(S'exit 1'\nios\nsystem\n.", "STRING|INST"),
    "eval": (pickle.dumps(Call(eval, "1"), 2), "eval"),
    "getattr": (pickle.dumps(Call(getattr, "x", "upper"), 2), "getattr"),
    "torch.load itself": (
        b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x00\x85R.",
        "_load_from_bytes",
    ),
    "a class": (b"\x80\x02ccollections\ndeque\n)\x81.", "deque"),
    "elements of 8 bytes": (tensor_program(kind=b"ctorch\nDoubleStorage\n"), "DoubleStorage"),
    "whole numbers": (tensor_program(kind=b"ctorch\nIntStorage\n"), "IntStorage"),
    "a kind that is a text": (tensor_program(kind="F64"), "storage"),
    "a list": (pickle.dumps([1], 2), "EMPTY_LIST"),
    "a number": (pickle.dumps(3, 2), "malformed|int"),
    "None": (b"\x80\x02N.", "NoneType"),
    "a name": (b"\x80\x02ctorch\nFloatStorage\n.", "str"),
    "a tensor with no name": (
        b"\x80\x02" + tensor_program()[3:].replace(b"s.", b"."),
        "malformed|missing",
    ),
    "no dictionary of tensors": (pickle.dumps({"norm.weight": 3}, 2), "int"),
    "a dictionary in a dictionary": (pickle.dumps({"model": {}}, 2), "dict"),
    "a name twice": (
        TENSOR[:-1].replace(b"s", b"s", 1) + TENSOR[3:-1] + b".",
        "twice|malformed|put there",
    ),
    "names that are numbers": (pickle.dumps({1: 2}, 2), "no text"),
    "pairs of pairs as a name": (HASH_BOMB, "no text"),
    "pairs of pairs as a function": (
        b"\x80\x02K\x01\x85q\x00" + 60 * b"h\x00\x86q\x00" + b"h\x00R.",
        "callable",
    ),
    "pairs of pairs as a shape": (
        tensor_program(shape=b"K\x01\x85q\x00" + 60 * b"h\x00\x86q\x00"),
        "dimensions|size",
    ),
    "pairs of pairs as a key": (
        tensor_program(key=b"K\x01\x85q\x00" + 60 * b"h\x00\x86q\x00"),
        "storage",
    ),
    "pairs of pairs as a kind": (
        tensor_program(kind=b"K\x01\x85q\x00" + 60 * b"h\x00\x86q\x00"),
        "storage",
    ),
    "pairs of pairs as arguments": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01\x85q\x00"
        + 60 * b"h\x00\x86q\x00"
        + b"R.",
        "argument",
    ),
    "an empty stack": (b"\x80\x02.", "stack underflow"),
    "a tuple without a mark": (b"\x80\x02t.", "stack underflow"),
    "a memory of nothing": (b"\x80\x02h\x07.", "stack underflow"),
    "memory far away": (b"\x80\x02}r\xff\xff\xff\xff" + b"r\xfe\xff\xff\xff" + b"K\x01.", "int"),
    "no end": (b"\x80\x02}", "STOP|malformed"),
    "nothing": (b"", "malformed"),
    "an unknown instruction": (b"\x80\x02\xff.", "malformed"),
    "a text of 4 GB": (b"\x80\x02X\xff\xff\xff\xffa.", "malformed"),
    "a text that is not UTF-8": (b"\x80\x02X\x01\0\0\0\xff.", "malformed"),
    "a number of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "malformed"),
    "too many instructions": (b"\x80\x02" + b"}" * (MAX_INSTRUCTIONS + 5) + b".", "instructions"),
    "too long": (b"\x80\x02" + b"}" * (MAX_DESCRIPTION + 1), "long"),
    "many arguments, many times": (
        b"\x80\x02("
        + b"N" * 90_000
        + b"tq\x00"
        + b"ctorch._utils\n_rebuild_parameter\nq\x01"
        + b"h\x01h\x00R" * 30_000
        + b".",
        "argument",
    ),
    "a stride of 0": (tensor_program(shape=(2**20, 2**20), stride=(0, 0), count=64), "fit"),
    "overlapping rows": (tensor_program(shape=(8, 8), stride=(4, 1)), "contiguous"),
    "columns first": (tensor_program(shape=(8, 8), stride=(1, 8)), "contiguous"),
    "no dimension": (tensor_program(shape=(), stride=()), "dimensions"),
    "three dimensions": (tensor_program(shape=(4, 4, 4), stride=(16, 4, 1)), "dimensions"),
    "90,000 dimensions": (
        tensor_program(
            shape=b"(" + b"K\x02" * 90_000 + b"t", stride=b"(" + b"K\x01" * 90_000 + b"t"
        ),
        "dimensions",
    ),
    "fewer strides than dimensions": (tensor_program(shape=(8, 8)), "dimensions"),
    "a size of 0": (tensor_program(shape=(0,)), "divide"),
    "a negative size": (tensor_program(shape=(-64,)), "whole number"),
    "a size of true": (tensor_program(shape=(True,)), "whole number"),
    "a size that is a text": (tensor_program(shape=("64",)), "whole number"),
    "a huge size": (tensor_program(shape=(2**61,)), "fit"),
    "an overflowing size": (tensor_program(shape=(2**64,)), "whole number"),
    "a size of 2,000 bits": (tensor_program(shape=(2**2000,)), "whole number"),
    "an offset behind the storage": (tensor_program(offset=1), "fit"),
    "a negative offset": (tensor_program(offset=-1), "whole number"),
    "fewer elements than the entry has": (tensor_program(count=63), "fit"),
    "more elements than the entry has": (tensor_program(count=65, shape=(65,)), "fit"),
    "an entry that is not there": (tensor_program(key="1"), "data/1"),
    "an entry elsewhere": (tensor_program(key="../../data.pkl"), "has no"),
}


def archive(program=TENSOR, elements=bytes(256), compression=zipfile.ZIP_STORED, extra=()) -> bytes:
    """A .pth file, written by hand: extra entries are (name, bytes)."""
    buffer = io.BytesIO()
    with (
        warnings.catch_warnings(action="ignore"),
        zipfile.ZipFile(buffer, "w", compression) as zipped,
    ):
        zipped.writestr("x/data.pkl", program)
        zipped.writestr("x/data/0", elements)
        for name, data in extra:
            zipped.writestr(name, data)
    return buffer.getvalue()


def edited(old: bytes, new: bytes, data=None) -> bytes:
    """The archive with some bytes replaced wherever they are."""
    data = archive() if data is None else data
    assert old in data
    return data.replace(old, new)


def directory(number: int, at: int, value: int, width=4) -> bytes:
    """The archive with a field of one entry of its directory changed."""
    data = bytearray(archive())
    place = [match.start() for match in re.finditer(b"PK\x01\x02", data)][number] + at
    data[place : place + width] = value.to_bytes(width, "little")
    return bytes(data)


def tail(at: int, value: int, width=4) -> bytes:
    """The archive with a field of the record at its end changed."""
    data = bytearray(archive())
    place = data.rindex(b"PK\x05\x06") + at
    data[place : place + width] = value.to_bytes(width, "little")
    return bytes(data)


def many_entries(count: int) -> bytes:
    return archive(extra=[(f"x/data/{n}", b"") for n in range(1, count)])


def archives() -> dict[str, tuple[bytes, str]]:
    return {
        "empty": (b"", "empty"),
        "no archive": (bytes(1000), "no zip"),
        "a pickle, as before PyTorch 1.6": (pickle.dumps({"a": 1}, 2), "1.6"),
        "an archive of nothing": (b"PK\x05\x06" + bytes(18), "has no"),
        "cut in the middle": (archive()[:300], "no zip"),
        "cut at the end": (archive()[:-1], "no zip"),
        "begins too late": (archive()[100:], "no zip|overlap|fit|malformed|has no|packs"),
        "no program": (edited(b"data.pkl", b"data.pkm"), "data.pkl"),
        "compressed": (archive(compression=zipfile.ZIP_DEFLATED), "compressed"),
        "a bomb": (archive(elements=bytes(10**7), compression=zipfile.ZIP_DEFLATED), "compressed"),
        "a bomb of a program": (archive(b"}" * 10**7, compression=zipfile.ZIP_LZMA), "compressed"),
        "an entry twice": (archive(extra=[("x/data/0", bytes(256))]), "twice"),
        "two programs": (archive(extra=[("y/data.pkl", TENSOR)]), "twice"),
        "big-endian": (archive(extra=[("x/byteorder", b"big")]), "big-endian"),
        "encrypted": (directory(1, 8, 1, 2), "encrypted"),
        "an unknown compression": (directory(1, 10, 99, 2), "compressed"),
        "a size beyond the file": (directory(1, 24, 10**6), "compressed|truncated"),
        "sizes beyond the file": (
            edited(struct.pack("<II", 256, 256), struct.pack("<II", 10**6, 10**6)),
            "overlap|trunc",
        ),
        "entries at one place": (directory(1, 42, 0), "overlap"),
        "an entry in the directory": (directory(1, 42, len(archive()) - 60), "truncated|fit"),
        "an entry behind the file": (directory(1, 42, 2**31), "truncated|should have"),
        "an entry that ends the file": (
            directory(1, 42, len(archive()) - 10),
            "truncated|should have",
        ),
        "needs a newer zip": (directory(1, 6, 255, 2), "no zip"),
        "a directory of 4 GB": (tail(12, 2**32 - 2), "no zip"),
        "a directory elsewhere": (tail(16, 2**31), "no zip|overlap"),
        "too many entries": (many_entries(5_000), "more than"),
        "a directory of a million bytes": (many_entries(30_000), "no zip"),
        "a huge byteorder": (archive(extra=[("x/byteorder", bytes(33_000_000))]), "describes"),
        "tensors that share bytes": (
            archive(program_of({"a": (both := torch.ones(64)), "b": both})),
            "share",
        ),
        "rows that two tensors share": (
            archive(program_of({"a": (both := torch.ones(8, 8))[:5], "b": both[4:]})),
            "share",
        ),
    }


def refused(path, message) -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        open_pth(path)
    assert time.process_time() - start < 1
    assert re.search(message, str(caught.value)) and "\n" not in str(caught.value), str(
        caught.value
    )


def test_the_archive_itself_is_sound(tmp_path):
    for name, data in {
        "a": archive(),
        "b": archive(tensor_program()),
        "c": many_entries(3_000),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert torch.equal(open_pth(tmp_path / name)["norm.weight"].read(), torch.zeros(64))


def test_files_that_no_weights_need(tmp_path):
    """Each as the only file of a folder."""
    good, broken = tmp_path / "good", {}
    save_meta(Llama(LlamaConfig(32, 1, 4, 2, 8, 48, 64)), None, good)
    programs = {
        f"program, {name}": (archive(program), words) for name, (program, words) in PROGRAMS.items()
    }
    for name, (data, words) in (programs | archives()).items():
        path = tmp_path / str(len(broken))
        path.mkdir()
        (path / "params.json").write_bytes((good / "params.json").read_bytes())
        (path / "consolidated.00.pth").write_bytes(data)
        broken[name] = path, words
    all_refused(good, broken)


def test_every_byte(tmp_path):
    """Cut anywhere, refused; any byte another one, refused or harmless."""
    data, path, loaded = archive(), tmp_path / "x.pth", 0
    elements = data.index(bytes(256))  # of which eight are enough
    for n in range(1, len(data)):
        path.write_bytes(data[:n])
        refused(path, "")
    for n in (*range(elements + 8), *range(elements + 256, len(data))):
        for byte in (0, 1, 255):
            path.write_bytes(data[:n] + bytes([byte]) + data[n + 1 :])
            try:
                for stored in open_pth(path).values():
                    stored.read()
                loaded += 1
            except CheckpointError as error:
                assert "\n" not in str(error)
    assert loaded > 24  # the numbers themselves, and what nobody reads


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(TENSOR)), st.binary(max_size=4)), min_size=1, max_size=4)
)
def test_changed_programs(tmp_path_factory, changes):
    """Instructions put in or replaced at random: a dictionary, or one of the documented errors."""
    program = TENSOR
    for at, data in changes:
        program = program[:at] + data + program[at + len(data) // 2 :]
    path = tmp_path_factory.getbasetemp() / "changed.pth"
    path.write_bytes(archive(program))
    try:
        open_pth(path)
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_nothing_is_called(tmp_path):
    """A program with a side effect, in every place where a program can be."""
    trace = tmp_path / "ran"
    for protocol in (0, 1, 2, 3, 4, 5):
        (tmp_path / "x.pth").write_bytes(
            archive(pickle.dumps({"a": Call(os.mkdir, str(trace))}, protocol))
        )
        refused(tmp_path / "x.pth", "")
    torch.save({"a": Call(os.mkdir, str(trace))}, tmp_path / "y.pth")
    refused(tmp_path / "y.pth", "mkdir")
    assert not trace.exists()

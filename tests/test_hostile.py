"""Files of all formats, changed at random, load or are refused; the broken ones by hand stand with
their format.
"""

import time

import pytest
import test_gguf
import test_hugging_face
import test_meta
from helpers import SECONDS, tiny_hugging_face
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama import CheckpointError
from minillama.checkpoints.hugging_face_writer import save_hugging_face
from minillama.checkpoints.meta_writer import save_meta
from minillama.inference.loading import load


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
NUMBERS = (0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
EXTREMES = [number.to_bytes(8, "little") for number in NUMBERS] + [
    number.to_bytes(8, "little")[:4] for number in NUMBERS
]


def changed(draw, data: bytes) -> bytes:
    """The bytes after up to four accidents, most of them where files describe themselves: at both
    ends.
    """
    for _ in range(draw(st.integers(1, 4))):
        front, back = min(len(data), 3000), max(0, len(data) - 3000)
        first, last = draw(
            st.sampled_from([(0, front), (0, front), (back, len(data)), (0, len(data))])
        )
        at, size = draw(st.integers(first, last)), draw(st.integers(0, 40))
        what = draw(st.sampled_from(["byte", "extreme", "lost", "copied", "cut"]))
        if what == "byte":
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif what == "extreme":
            number = draw(st.sampled_from(EXTREMES))
            data = data[:at] + number + data[at + len(number) :]
        elif what == "lost":
            data = data[:at] + data[at + size :]
        elif what == "copied":
            other = draw(st.integers(first, last))
            data = data[:at] + data[other : other + size] + data[at:]
        else:
            data = data[:at]
    return data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """format -> (what to load, its files)"""
    root = tmp_path_factory.mktemp("tiny")
    one_file = test_gguf.write_gguf(
        root / "tiny.gguf", test_gguf.tiny_tensors(test_gguf.Q.Q8_0), test_gguf.BASE
    )
    shards, meta, folder = root / "shards", root / "meta", root / "hugging-face"
    tiny_hugging_face(num_hidden_layers=1).save_pretrained(shards, max_shard_size="60KB")
    save_meta(test_meta.random_model(), None, meta, 4)
    save_hugging_face(
        test_hugging_face.tiny_llama(), test_hugging_face.trained.__wrapped__(), folder
    )
    return {
        "gguf": (one_file, [one_file]),
        "hugging face": (
            folder,
            [folder / name for name in ("config.json", "model.safetensors", *TOKENIZER)],
        ),
        "meta": (meta, [meta / "params.json", meta / "consolidated.01.pth"]),
        "shards": (
            shards,
            [shards / "model.safetensors.index.json", *sorted(shards.glob("*.safetensors"))[:1]],
        ),
    }


@pytest.mark.filterwarnings("ignore:its tokenizer")
@pytest.mark.parametrize("name", ["gguf", "hugging face", "meta", "shards"])
def test_a_changed_file_loads_or_is_refused(tiny, name):
    path, files = tiny[name]
    originals = {file: file.read_bytes() for file in files}

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def attempt(data):
        file = data.draw(st.sampled_from(files))
        file.write_bytes(changed(data.draw, originals[file]))
        start = time.process_time()
        try:
            load(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
        finally:
            file.write_bytes(originals[file])
        assert time.process_time() - start < SECONDS

    attempt()
    load(path)

"""Fetched files and loaded models, once per session."""

import contextlib
import functools
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from minillama import hub
from minillama.hub import load


GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden"


def fetched(name: str) -> Path:
    """The fetched file; without a network a skip, but in CI (or MINILLAMA_REQUIRE_WEIGHTS=1) a failure."""
    try:
        return hub.fetch(name)
    except hub.FetchError as error:
        required = os.environ.get("CI") or os.environ.get("MINILLAMA_REQUIRE_WEIGHTS")
        (pytest.fail if required else pytest.skip)(f"{name} is needed: {error}")


@pytest.fixture
def no_compiler():
    """PyTorch finds no C++ compiler. subtle: setattr on its configuration, undone, would take the setting away."""
    import torch._inductor.config

    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        yield


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return fetched("smollm2-135m-instruct")


@functools.cache
def gguf_reader(path: Path):
    """A file as the gguf package reads it, from plain arrays: np.memmap is slow where every field is a slice."""
    from gguf.gguf_reader import GGUFReader

    mapped = np.memmap
    with mock.patch.object(np, "memmap", lambda *args, **options: np.asarray(mapped(*args, **options))):
        return GGUFReader(path)


@contextlib.contextmanager
def one_reader():
    """transformers reads a GGUF file once for each thing it wants and makes the table of names for every module."""
    import gguf

    with (
        mock.patch.object(gguf, "GGUFReader", lambda path: gguf_reader(Path(path).resolve())),
        mock.patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        yield


@pytest.fixture(scope="session")
def smollm2_gguf(smollm2_path):
    """The file as the gguf package reads it."""
    return gguf_reader(smollm2_path.resolve())


@pytest.fixture(scope="session")
def llama3_vocabulary() -> Path:
    return fetched("llama-3.1-tokenizer")


@pytest.fixture(scope="session")
def ours(smollm2_path):
    """Our model and tokenizer, float32."""
    return load(smollm2_path)


@pytest.fixture(scope="session")
def theirs(smollm2_path):
    """transformers' model from the same file, float32."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    folder, name = str(smollm2_path.parent), smollm2_path.name
    with one_reader():
        return transformers.LlamaForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def their_tokenizer(smollm2_path, tmp_path_factory):
    """transformers' conversion of the GGUF's tokenizer; from a folder of its own, for beside Meta's tokenizer.model it
    would silently take that."""
    import transformers

    folder = tmp_path_factory.mktemp("gguf")
    (folder / smollm2_path.name).symlink_to(smollm2_path.resolve())
    with one_reader():
        return transformers.AutoTokenizer.from_pretrained(str(folder), gguf_file=smollm2_path.name)


@pytest.fixture(scope="session")
def golden():
    """What Meta's own code computed, by name; data/golden/make_meta_logits.py made it."""
    with np.load(GOLDEN / "meta_smollm2.npz") as smollm2, np.load(GOLDEN / "meta_llama31.npz") as llama31:
        return dict(smollm2) | dict(llama31)


@pytest.fixture(scope="session")
def meta_logits(smollm2_gguf, golden):
    """Meta's logits (T, V) from its hidden states and the embedding as the gguf package reads it."""
    import gguf

    tensor = next(t for t in smollm2_gguf.tensors if t.name == "token_embd.weight")
    embedding = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    return golden["hidden"].astype(np.float64) @ embedding.T

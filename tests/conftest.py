"""Fetched files and loaded models, once per session."""

import os
from pathlib import Path

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


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return fetched("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def smollm2_gguf(smollm2_path):
    """The file as the gguf package reads it."""
    import gguf

    return gguf.GGUFReader(smollm2_path)


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
    return transformers.LlamaForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()


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

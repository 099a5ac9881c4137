"""The whole model against the two reference implementations: Meta's code and transformers.

`pytest -s tests/test_reference.py` prints the largest differences measured.
"""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import GOLDEN

import minillama


REAL = 2e-4  # real weights, logits up to 37: Meta's code and transformers differ by 1e-4 themselves
TINY = 1e-5  # tiny random weights, logits up to 4


def largest_difference(what: str, a, b) -> float:
    difference = float(
        np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).max()
    )
    print(f"\n{what}: largest difference {difference:.2e}")
    return difference


@pytest.fixture(scope="module")
def our_logits(ours, golden):
    with torch.inference_mode():
        return ours[0](torch.from_numpy(golden["ids"]).long()[None])[0].numpy()


@pytest.mark.weights
def test_golden_text_is_ours(ours, golden):
    text = (GOLDEN / "text.txt").read_text(encoding="utf-8")
    assert ours[1].encode(text) == golden["ids"].tolist() and len(golden["ids"]) >= 256


@pytest.mark.weights
def test_every_logit_as_meta(our_logits, meta_logits, golden):
    assert largest_difference("ours and Meta's, every logit", our_logits, meta_logits) < REAL
    assert (our_logits.argmax(1) == golden["top1"]).all()


@pytest.mark.weights
def test_logits_meta_stored(our_logits, meta_logits, golden):
    """The stored sample of Meta's own logits, without the detour over hidden states."""
    stored, at = golden["sample_logits"], golden["sample_ids"].astype(np.int64)
    assert (
        largest_difference("ours and Meta's, stored", np.take_along_axis(our_logits, at, 1), stored)
        < REAL
    )
    assert (
        largest_difference(
            "Meta's, rebuilt and stored", np.take_along_axis(meta_logits, at, 1), stored
        )
        < 1e-4
    )


@pytest.mark.weights
def test_every_logit_as_transformers(our_logits, theirs, golden):
    with torch.inference_mode():
        logits = theirs(torch.from_numpy(golden["ids"]).long()[None]).logits[0].numpy()
    assert largest_difference("ours and transformers', every logit", our_logits, logits) < REAL
    assert (our_logits.argmax(1) == logits.argmax(1)).all()


@pytest.mark.weights
def test_greedy_text_as_both(ours, theirs, golden):
    prompt = golden["prompt"].tolist()
    mine = list(minillama.generate(ours[0], prompt, max_new_tokens=64))
    reference = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    assert mine == golden["greedy"].tolist() and mine[:16] == reference[0, len(prompt) :].tolist()


def maker():
    """data/golden/make_meta_logits.py as a module, for the formula of its tiny model's weights."""
    spec = importlib.util.spec_from_file_location(
        "make_meta_logits", GOLDEN / "make_meta_logits.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def meta_name(name: str) -> str:
    """Meta's name of one of our parameters."""
    renamed = {
        "embedding": "tok_embeddings",
        "blocks": "layers",
        "head": "output",
        "gate": "w1",
        "up": "w3",
    }
    return ".".join(renamed.get(part, "w2" if part == "down" else part) for part in name.split("."))


@pytest.fixture(scope="module")
def scaled_model():
    """The tiny model with scaled RoPE whose logits Meta's code computed."""
    cfg = minillama.LlamaConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=192, vocab_size=256,
        rope_scaling=minillama.RopeScaling(),
    )  # fmt: skip
    model = minillama.Llama(cfg)
    weights = maker().tiny_weights(
        {meta_name(n): tuple(p.shape) for n, p in model.named_parameters()}
    )
    model.load_state_dict(
        {name: torch.from_numpy(weights[meta_name(name)]) for name in model.state_dict()}
    )
    return model


def test_scaled_rope_as_meta_beyond_8192(scaled_model, golden):
    """9,216 tokens fed to the cache in uneven pieces; Meta's code took them 512 at a time."""
    tokens = torch.from_numpy(maker().tiny_tokens())[None]
    cache = minillama.KVCache(scaled_model.cfg, max_seq_len=tokens.shape[1])
    with torch.inference_mode():
        logits = [scaled_model(piece, cache=cache)[0].numpy() for piece in tokens.split(700, dim=1)]
    logits = np.concatenate(logits)
    assert (
        largest_difference("tiny, first positions", logits[: len(golden["first"])], golden["first"])
        < TINY
    )
    assert (
        largest_difference("tiny, beyond 8192", logits[-len(golden["last"]) :], golden["last"])
        < TINY
    )

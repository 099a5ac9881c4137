"""The model: tiny random ones against transformers, published parameter counts, what a position may
see.
"""

from dataclasses import replace

import pytest
import torch
from helpers import SCALED, random_ids, tiny_pair
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama


CASES = {
    "grouped": {},
    "one kv head": dict(num_key_value_heads=1),
    "as many kv heads": dict(num_key_value_heads=4),
    "three heads a group": dict(hidden_size=96, num_attention_heads=6),
    "head width 20": dict(head_dim=20),
    "head width 80": dict(head_dim=80, num_key_value_heads=1),
    "tied": dict(tie_word_embeddings=True),
    "tied and scaled": dict(tie_word_embeddings=True, rope=SCALED),
    "scaled by 8": dict(rope=SCALED),
    "scaled by 32, width 80": dict(rope=SCALED | {"factor": 32.0}, head_dim=80),
    "large eps": dict(rms_norm_eps=0.1),
    "another theta": dict(rope={"rope_type": "default", "rope_theta": 123.0}),
}


@pytest.fixture(scope="module")
def debug_model():
    torch.manual_seed(0)
    return minillama.Llama(minillama.LlamaConfig.named("debug")).eval()


@torch.inference_mode()
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_every_logit_as_transformers(tmp_path, changes):
    reference, model = tiny_pair(tmp_path, **changes)
    tokens = random_ids(2 * 48).view(2, 48)
    torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("rope", [SCALED, SCALED | {"factor": 32.0}], ids=["8", "32"])
def test_scaled_beyond_8192_as_transformers(tmp_path, rope):
    """9,000 tokens through both caches in pieces; the last 100 are compared."""
    reference, model = tiny_pair(tmp_path, num_attention_heads=1, num_key_value_heads=1, rope=rope)
    cache, their_cache = minillama.KVCache(model.cfg, max_seq_len=9000), None
    for piece in random_ids(9000).split(1000, dim=1):
        logits = model(piece, cache=cache)
        theirs = reference(piece, past_key_values=their_cache, use_cache=True)
        their_cache = theirs.past_key_values
    torch.testing.assert_close(logits[:, -100:], theirs.logits[:, -100:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name, count",
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_published_parameter_counts(name, count):
    with torch.device("meta"):
        model = minillama.Llama(minillama.LlamaConfig.named(name))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_tied_head_is_the_embedding():
    model = minillama.Llama(minillama.LlamaConfig(16, 1, 2, 1, 8, 24, 32, tied_embeddings=True))
    assert model.head.weight is model.embedding.weight


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 11), st.integers(0, 511))
def test_a_future_token_changes_no_earlier_logit(debug_model, position, token):
    tokens = random_ids(12, vocab_size=512)
    changed = tokens.clone()
    changed[0, position] = token
    with torch.inference_mode():
        before, after = debug_model(tokens), debug_model(changed)
    assert torch.equal(before[:, :position], after[:, :position])


@torch.inference_mode()
def test_rows_of_a_batch_do_not_mix(debug_model):
    tokens = random_ids(4 * 10, vocab_size=512).view(4, 10)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        debug_model(tokens)[order], debug_model(tokens[order]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        debug_model(tokens)[2:3], debug_model(tokens[2:3]), atol=1e-6, rtol=0
    )


@torch.inference_mode()
def test_logits_are_float32_in_bfloat16_too():
    model = minillama.Llama(minillama.LlamaConfig.named("debug")).to(torch.bfloat16)
    assert model(random_ids(5, vocab_size=512)).dtype == torch.float32


def test_gradients_reach_every_parameter(debug_model):
    debug_model(random_ids(6, vocab_size=512)).logsumexp(-1).sum().backward()
    gradients = {name: parameter.grad for name, parameter in debug_model.named_parameters()}
    debug_model.zero_grad(set_to_none=True)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("tied", [False, True])
def test_first_weights_are_those_of_every_run_so_far(tied, seed):
    """Bit for bit as chapter 13a drew them before this was the model's own: old runs can be made
    again.
    """
    cfg = replace(minillama.LlamaConfig.named("debug"), n_layers=3, tied_embeddings=tied)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        old = minillama.Llama(cfg)
        for name, weight in old.named_parameters():
            if weight.ndim == 2:
                writes = name.endswith(("wo.weight", "down.weight"))
                torch.nn.init.normal_(weight, std=0.02 / 6**0.5 if writes else 0.02)
    before = torch.random.get_rng_state()
    new = minillama.Llama.from_scratch(cfg, seed).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(new[name], weight) for name, weight in old.state_dict().items())

"""Attention against loops in float64, torch's own kernel, and toy numbers."""

import math

import numpy as np
import pytest
import torch

from minillama.attention import attend, causal_mask


def qkv(heads, kv_heads, queries, keys, width, batch=2):
    torch.manual_seed(0)
    shapes = (heads, queries), (kv_heads, keys), (kv_heads, keys)
    return [torch.randn(batch, n, length, width) for n, length in shapes]


def attend_in_loops(q, k, v, masked):
    """One query at a time, numpy float64, the last query beside the last key."""
    q, k, v = (x.double().numpy() for x in (q, k, v))
    out, group, offset = np.zeros(q.shape), q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    for b, h, t in np.ndindex(q.shape[:3]):
        seen = t + offset + 1 if masked else k.shape[2]
        scores = k[b, h // group, :seen] @ q[b, h, t] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, h, t] = weights / weights.sum() @ v[b, h // group, :seen]
    return out


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (4, 1), (6, 2)])
@pytest.mark.parametrize("queries, keys, width", [(5, 5, 16), (3, 8, 20), (1, 6, 80)])
def test_as_loops_in_float64(heads, kv_heads, queries, keys, width, masked):
    q, k, v = qkv(heads, kv_heads, queries, keys, width)
    out = attend(q, k, v, causal_mask(queries, keys) if masked else None)
    np.testing.assert_allclose(out, attend_in_loops(q, k, v, masked), atol=1e-6, rtol=0)


def test_as_torch():
    q, k, v = qkv(6, 2, 9, 9, 16)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(attend(q, k, v, causal_mask(9, 9)), theirs, atol=1e-6, rtol=0)


def test_mask_lines_up_with_the_last_key():
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


def test_toy_numbers():
    """Scores 0 and ln 3 give weights 1/4 and 3/4."""
    q = torch.ones(1, 1, 1, 1)
    k = torch.tensor([0.0, math.log(3)]).view(1, 1, 2, 1)
    v = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    assert attend(q, k, v).item() == pytest.approx(0.75, abs=1e-6)


def test_large_scores_stay_finite():
    q, k, v = qkv(2, 1, 4, 4, 16)
    assert attend(1e4 * q, k, v, causal_mask(4, 4)).isfinite().all()


def test_bfloat16_stays_close():
    """40 weights rounded to 8 bits each; a sum taken in bfloat16 would drift further."""
    q, k, v = (x.bfloat16() for x in qkv(2, 2, 3, 40, 16))
    exact = attend_in_loops(q, k, v, masked=False)
    np.testing.assert_allclose(attend(q, k, v).float(), exact, atol=0.02, rtol=0)

"""Generation: from logits to one token, and the next.

Written by notebooks/09_generation.ipynb: edit it there.
"""

import math

import torch

from minillama.kv_cache import KVCache
from minillama.model import Llama


def sample(logits: torch.Tensor, temperature=0.0, top_k=None, top_p=None, generator=None) -> torch.Tensor:
    """One id per row: logits (B, V) -> (B,) int64. Temperature 0 takes the largest.

    Otherwise divide by the temperature, keep the top_k largest, keep the smallest set whose probability exceeds
    top_p (a token stays while the probability before it is at most top_p), and draw.
    """
    check_settings(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(dim=-1)
    if not torch.isfinite(logits).any(dim=-1).all():
        raise ValueError("no token can be drawn: every logit of a row is -inf or NaN")
    ordered, ids = (logits.float() / temperature).sort(dim=-1, descending=True)
    if top_k is not None:
        ordered[:, top_k:] = -math.inf
    probs = ordered.softmax(dim=-1)
    if top_p is not None:
        before = probs.cumsum(dim=-1) - probs
        probs[before > top_p] = 0.0
    drawn = torch.multinomial(probs, 1, generator=generator)
    return ids.gather(-1, drawn).squeeze(-1)


def check_settings(temperature, top_k, top_p):
    """Raise ValueError for settings that have no meaning."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 or a positive number, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 <= top_p <= 1:
        raise ValueError(f"top_p must be between 0 and 1, not {top_p}")


def generate(model: Llama, ids, max_new_tokens=64, temperature=0.0, top_k=None, top_p=None, seed=None, stop_ids=()):
    """Yield up to max_new_tokens ids that continue `ids`, ending before the first of stop_ids.

    Prefill once, then one token a step. The same seed gives the same ids. ValueError if it cannot fit the context.
    """
    check_settings(temperature, top_k, top_p)
    if not len(ids):
        raise ValueError("nothing to continue: the prompt has no tokens")
    if len(ids) + max_new_tokens > model.cfg.max_seq_len:
        raise ValueError(f"{len(ids)} + {max_new_tokens} tokens exceed the context of {model.cfg.max_seq_len}")
    weight = model.embedding.weight
    generator = torch.Generator(weight.device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    cache = KVCache(model.cfg, 1, len(ids) + max_new_tokens, weight.dtype, weight.device)
    tokens = torch.tensor([list(ids)], device=weight.device)
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            logits = model(tokens, cache=cache)[:, -1]
            tokens = sample(logits, temperature, top_k, top_p, generator)[:, None]
        if (id := tokens.item()) in stop_ids:
            return
        yield id

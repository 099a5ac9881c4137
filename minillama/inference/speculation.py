"""9a. Speculation: several tokens from one pass, and the same text.

Written by notebooks/09a_speculation.ipynb: edit it there.
"""

import time

import torch

from minillama.generation import SamplingParams, Statistics, check_request, next_logits, sample
from minillama.kv_cache import KVCache


GRAM, DRAFT = 2, 8  # copy what followed the newest 2 tokens when they last occurred, 8 tokens of it


def speculate(model, ids, max_new_tokens=64, stop_ids=(), stats=None):
    """Iterate over the ids that greedy `generate` gives, several from one pass where the text
    repeats itself.

    A draft copied from the text so far goes through the model with the newest token; what the model
    would have chosen itself is accepted, the rest is discarded (Leviathan et al. 2022,
    arXiv:2211.17192). Errors are those of `generate`.
    """
    params = SamplingParams(max_new_tokens, stop_ids=stop_ids)
    text, stats = check_request(model.cfg, ids, params), stats or Statistics()
    prompt, end = len(text), len(text) + max_new_tokens
    # gram -> place after its last occurrence
    follows = {tuple(text[i - GRAM : i]): i for i in range(GRAM, prompt)}

    def steps():
        cache = KVCache(model.cfg, 1, end, model.dtype, model.device)
        while len(text) < end:
            start, at = time.perf_counter(), follows.get(tuple(text[-GRAM:]))
            # round and round if it is short
            copied = text[at : at + DRAFT] * DRAFT if at and cache.length else []
            draft = copied[: min(DRAFT, end - len(text) - 1)]
            tokens = torch.tensor([text[cache.length :] + draft], device=model.device)  # (1, T)
            with torch.no_grad():
                # k + 1 ids
                chosen = sample(next_logits(model, tokens, cache, 1 + len(draft))[0]).tolist()
            accepted = next((i for i, id in enumerate(draft) if id != chosen[i]), len(draft))
            cache.truncate(len(text) + accepted)  # roll back the rejected guesses
            stats.add(
                0 if len(text) > prompt else prompt, accepted + 1, time.perf_counter() - start
            )
            for id in chosen[: accepted + 1]:
                if id in params.stop_ids:
                    return
                follows[tuple(text[-GRAM:])] = len(text)
                text.append(id)
                yield id

    return steps()

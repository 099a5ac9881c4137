"""17a. Parallel: one model on several ranks.

Written by notebooks/17a_parallel.ipynb: edit it there.
"""

import random
from dataclasses import replace

import torch
import torch.distributed as dist

from minillama.distributed.parallel import ParallelError
from minillama.kv_cache import KVCache
from minillama.model import Llama


def broadcast(message=None, group=None):
    """What rank 0 says, on all ranks; the others' own message is not looked at."""
    box = [message]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def common_seed(seed: int | None = None) -> int:
    """The seed, or else one that is drawn once and the same on all ranks, so that they draw the
    same tokens.
    """
    return broadcast(random.SystemRandom().randrange(2**48)) if seed is None else seed


def lead(model: Llama, tell) -> Llama:
    """Rank 0's model, in place: every pass that it makes behind a cache is told to the other ranks,
    which `follow`.
    """
    ranks = getattr(model, "whole", model.cfg).n_heads // model.cfg.n_heads
    model.attention_backend = replace(
        model.attention_backend, name=f"{model.attention_backend.name} on {ranks} ranks"
    )

    def announce(model, args, kwargs):
        tokens, cache = args
        if len(tokens) > 1:
            raise ParallelError(
                "ranks answer one prompt at a time: use generate, not generate_batch"
            )
        tell(("pass", tokens.tolist(), cache.length, cache.max_seq_len, kwargs["last"]))

    model.register_forward_pre_hook(announce, with_kwargs=True)
    return model


@torch.no_grad()
def follow(model: Llama, hear) -> None:
    """Make the passes that rank 0's model makes, until it says that this is the end. hear() -> the
    next message.
    """
    cache = None
    while (message := hear())[0] != "end":
        _, tokens, length, size, last = message
        if length == 0:
            cache = KVCache(model.cfg, len(tokens), size, model.dtype, model.device)
        cache.truncate(length)
        model(torch.tensor(tokens, device=model.device), cache, last=last)

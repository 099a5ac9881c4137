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
    """Rank 0's message, on all ranks; those of the others are ignored."""
    box = [message]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def common_seed(seed: int | None = None) -> int:
    """The seed, or else one that is drawn once and the same on all ranks, so that they draw the
    same tokens.
    """
    return broadcast(random.SystemRandom().randrange(2**48)) if seed is None else seed


def broadcast_passes(model: Llama, send) -> Llama:
    """Rank 0's model, in place: every pass that it makes with a cache is broadcast to the other
    ranks, which `replay_passes`.
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
        send(("pass", tokens.tolist(), cache.length, cache.max_seq_len, kwargs["last"]))

    model.register_forward_pre_hook(announce, with_kwargs=True)
    return model


@torch.no_grad()
def replay_passes(model: Llama, receive) -> None:
    """Run the passes that rank 0's model runs, until the message that ends it. receive() -> the
    next message.
    """
    cache = None
    while (message := receive())[0] != "end":
        _, tokens, length, size, last = message
        if length == 0:
            cache = KVCache(model.cfg, len(tokens), size, model.dtype, model.device)
        cache.truncate(length)
        model(torch.tensor(tokens, device=model.device), cache, last=last)

"""11d. One graph for every step.

Written by notebooks/11d_decode_graph.ipynb: edit it there.
"""

from functools import cache

import torch
import torch.nn.functional as F

import minillama.cuda as kernels
from minillama.rmsnorm import RMSNorm
from minillama.rope import apply_rope


class Slots:
    """One layer of a cache, whole, for a step that reads from the device which slot is its own: a KVCache to a block."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slot: torch.Tensor):
        """keys and values (1, K, S, W), slot (1,) int64"""
        self.keys, self.values, self.slot = keys, values, slot

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (1, K, 1, W) into the slot, in place; return all slots, used or not."""
        self.keys.index_copy_(2, self.slot, k)
        self.values.index_copy_(2, self.slot, v)
        return self.keys, self.values


def through_block(block, x, cos, sin, slot, length, keys, values) -> torch.Tensor:
    """The chapters' block for one token, x (1, 1, D); only its cache and what it calls a mask are others."""
    return block(x, (cos, sin), length, Slots(keys, values, slot))


def graph_of(f, *args) -> torch.fx.GraphModule:
    """What torch.compile finds in a function: every tensor operation, in order, nothing yet replaced."""
    found = []

    def keep(graph: torch.fx.GraphModule, inputs):
        found.append(graph)
        return graph.forward

    torch.compile(f, backend=keep, fullgraph=True, dynamic=False)(*args)
    return found[0]


def swiglu_of_chapter_5(gate, up):
    return F.silu(gate) * up


@cache
def rules(dtype: torch.dtype, eps: float) -> dict:
    """Name -> (graph of some of the chapters' lines, what takes its place): one kernel instead of several."""
    x, norm = torch.zeros(1, 1, 2, dtype=dtype), RMSNorm(2, eps).to(dtype)
    norm.requires_grad_(False)
    table = torch.zeros(1, 1)
    return {
        "norm": (graph_of(norm, x), lambda x, weight: kernels.norm(x, weight, eps)),
        "rope": (graph_of(apply_rope, x[None], table, table), kernels.rope),
        "swiglu": (graph_of(swiglu_of_chapter_5, x, x), kernels.swiglu),
    }

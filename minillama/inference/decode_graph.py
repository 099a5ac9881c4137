"""11d. One graph for every step.

Written by notebooks/11d_decode_graph.ipynb: edit it there.
"""

import weakref
from collections import Counter
from functools import cache
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.subgraph_rewriter import replace_pattern

from minillama.attention import AttentionMask
from minillama.inference.compilation import CompileError
from minillama.kernels import small
from minillama.kv_cache import KVCache
from minillama.model import Llama
from minillama.rmsnorm import RMSNorm
from minillama.rope import apply_rope, rope_table


class Slots:
    """One layer of a cache at full length, for a step that reads its slot on the device; a block
    uses it as a LayerCache.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slot: torch.Tensor):
        """keys and values (1, K, S, W), slot (1,) int64"""
        self.keys, self.values, self.slot = keys, values, slot

    def update(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (1, K, 1, W) into the slot, in place; return all slots, used or not."""
        self.keys.index_copy_(2, self.slot, k)
        self.values.index_copy_(2, self.slot, v)
        return self.keys, self.values


def through_block(block, attend, x, cos, sin, slot, length, keys, values) -> torch.Tensor:
    """A block's decode step, x (1, 1, D), with an attention backend; the token's slot is read on
    the device.
    """
    return block(x, (cos, sin), AttentionMask(slot, length), Slots(keys, values, slot), attend)


def compile_apart(f, backend):
    """torch.compile of the whole function, with a compile cache of its own: a code object keeps at
    most eight versions.
    """

    def call(*args):
        return f(*args)

    # the compile cache belongs to this code object
    own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    return torch.compile(own, backend=backend, fullgraph=True, dynamic=False)


def graph_of(f, *args) -> torch.fx.GraphModule:
    """The graph that torch.compile traces: every tensor operation of a function, in order, nothing
    replaced yet.
    """
    found = []

    def keep(graph: torch.fx.GraphModule, inputs):
        found.append(graph)
        return graph.forward

    compile_apart(f, keep)(*args)
    return found[0]


def swiglu_of_chapter_5(gate, up):
    """What FeedForward does between its matrices."""
    return F.silu(gate) * up


@cache
def rules(dtype: torch.dtype, eps: float) -> dict:
    """Name -> (graph of some of a block's lines, the one kernel that replaces them, matches per
    block).
    """
    x, y, cos, sin = (
        torch.zeros(1, 1, 1, 2, dtype=dtype),
        torch.ones(1, 1, 1, 2, dtype=dtype),
        *torch.zeros(2, 1, 1),
    )
    norm = RMSNorm(2, eps).to(dtype).requires_grad_(False)
    return {
        "norm": (graph_of(norm, x), lambda x, weight: small.norm(x, weight, eps), 2),
        "rope": (
            graph_of(apply_rope, x, cos, sin),
            lambda x, cos, sin: small.rope(x, cos, sin),
            2,
        ),
        "swiglu": (
            graph_of(swiglu_of_chapter_5, x, y),
            lambda gate, up: small.swiglu(gate, up),
            1,
        ),
    }


def replace_patterns(
    graph: torch.fx.GraphModule, dtype: torch.dtype, eps: float
) -> torch.fx.GraphModule:
    """A block's graph with one kernel for each pattern of `rules`; CompileError if one is not
    found.
    """
    for name, (pattern, kernel, times) in rules(dtype, eps).items():
        found = len(replace_pattern(graph, pattern, kernel))
        if found != times:
            raise CompileError(f"{name} is in the graph of a block {found} times, not {times}")
    graph.recompile()
    return graph


@cache
def capture_stream(device: int) -> "torch.cuda.Stream":
    """The stream on which a device's graphs are captured: always the same, since libraries reserve
    memory for each stream.
    """
    return torch.cuda.Stream(device)


class RecordedStep:
    """One token through a model whose cache stays where it is in memory: on CUDA one graph,
    launched as a whole.
    """

    def __init__(self, model: Llama, block, cache: KVCache):
        """block: through_block, compiled."""
        device, self.attend = model.device, model.attention_backend.attend
        self.model, self.block, self.keys = model, block, cache.keys
        self.layers = list(zip(model.blocks, cache.keys, cache.values, strict=True))
        for _, *tensors in self.layers:
            for each in tensors:
                torch._dynamo.maybe_mark_dynamic(each, 2)  # compiled once for caches of all sizes
        self.cos, self.sin = rope_table(model.cfg, torch.arange(cache.max_seq_len, device=device))
        self.token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.slot = torch.full((1,), cache.length, dtype=torch.int64, device=device)
        self.graph = None
        if model.norm.weight.is_cuda:
            self.capture()

    def once(self) -> torch.Tensor:
        """The token through all blocks: (1, 1, D). Its slot is read on the device."""
        # subtle: Llama.hidden cannot be captured: rope_table copies its frequencies from the host
        length, x = (self.slot + 1).to(torch.int32), self.model.embedding(self.token)
        cos, sin = self.cos[self.slot], self.sin[self.slot]  # (1, W/2)
        for block, keys, values in self.layers:
            x = self.block(block, self.attend, x, cos, sin, self.slot, length, keys, values)
        return self.model.norm(x)

    def capture(self) -> None:
        """Capture all launches of a step as one graph. The warm-up uses the slot that is written
        next.
        """
        with torch.cuda.device(self.token.device):
            stream = capture_stream(torch.cuda.current_device())
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # compiles what is not yet compiled, which a graph cannot hold
                    self.once()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self.out = self.once()

    def __call__(self, token: torch.Tensor, slot: int) -> torch.Tensor:
        """token (1, 1), and the slot of the cache that is its own -> (1, 1, D)"""
        self.token.copy_(token)
        self.slot.fill_(slot)
        if self.graph is None:
            return self.once()
        self.graph.replay()
        return self.out.clone()


class GraphStep:
    """A model's decode step as one compiled graph; no Triton is written, generated or needed."""

    def __init__(self, model: Llama):
        """The model's attention backend goes into the graph. CompileError if there can be none."""
        self.model, self.steps, self.rewritten = model, weakref.WeakKeyDictionary(), Counter()
        kinds = {
            type(layer)
            for block in model.blocks
            for layer in block.modules()
            if hasattr(layer, "weight")
        }
        if not kinds <= {nn.Linear, RMSNorm}:
            raise CompileError("only models that are not quantized run as one graph")
        dtype, eps = model.dtype, model.cfg.norm_eps

        def backend(graph, inputs):
            self.rewritten.update(compiled=1)
            return replace_patterns(graph, dtype, eps).forward

        self.block = compile_apart(through_block, backend)
        if model.norm.weight.is_cuda:
            self.try_out()

    def try_out(self) -> None:
        """A step on a temporary cache: what is missing for a graph is a CompileError now, not
        later.
        """
        model, weight = self.model, self.model.norm.weight
        cache = KVCache(model.cfg, 1, 40, model.dtype, model.device)
        try:
            with torch.no_grad():
                # what no kernel can do without is missed here already
                small.norm(weight, weight, model.cfg.norm_eps)
                RecordedStep(model, self.block, cache)(
                    torch.zeros(1, 1, dtype=torch.int64, device=model.device), 0
                )
        except Exception as error:  # the compilers' errors have no type in common
            raise CompileError(
                str(error).strip().partition("\n")[0] or type(error).__name__
            ) from error

    def supports(self, cache: KVCache) -> bool:
        """One row without padding."""
        return cache.keys.shape[1] == 1 and cache.padding is None

    def __call__(self, token: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """token (1, 1) -> (1, 1, D)"""
        cache.reserve(1, 1)
        step = self.steps.get(cache)
        if step is None or step.keys is not cache.keys:  # a cache that lost rows has other tensors
            step = self.steps[cache] = RecordedStep(self.model, self.block, cache)
        x = step(token, cache.length)
        cache.length += 1
        self.model.ran[f"{self.model.attention_backend.name}, as one graph"] += 1
        return x

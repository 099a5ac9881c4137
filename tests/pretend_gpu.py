"""A GPU that is not there. Whatever is asked of device "cuda" is done in the processor's memory,
our operations run what is registered for CUDA, and a driver of our own takes their launches: it
checks them and, if asked to, plays them.

A recording replays operations on the tensors they were given, as a CUDA graph would. What this
cannot see: time, tensors on two devices (test_cuda.py has fake tensors for that), and whether a
real driver agrees.
"""

import contextlib
import ctypes
import time
from types import SimpleNamespace

import torch
from recorder import Tape
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily

from course.cuda_on_cpu import HEADER, LAUNCH, compile_text
from minillama.inference import decode_graph
from minillama.inference.attention_backends import fused_attention
from minillama.inference.decode_graph import compile_apart
from minillama.kernels import cuda, small
from minillama.kernels.attention import instantiate
from minillama.kernels.mma import MMA_PREAMBLE


# bytes of shared memory: what a launch may have unasked, and at most on an A10
SMALLEST, MOST = 48 * 1024, 99 * 1024


class Driver:
    """libcuda.so.1, as far as minillama.kernels.cuda calls it. emulated: compute what is launched, or
    only look at it.
    """

    def __init__(self, emulated: bool):
        self.emulated, self.sources, self.room, self.launched = emulated, [], {}, []

    def cuModuleLoadData(self, module, code):
        self.sources.append(code.decode())
        module._obj.value = len(self.sources)

    def cuModuleGetFunction(self, function, module, name):
        assert (
            'extern "C" __global__ void __launch_bounds__' in self.sources[module.value - 1]
            and name == b"kernel"
        )
        function._obj.value = module.value

    def cuFuncSetAttribute(self, function, attribute, size):
        assert attribute == 8 and size <= MOST
        self.room[function.value] = size

    def cuLaunchKernel(self, function, x, y, z, threads, by, bz, shared, stream, args, extra):
        text = self.sources[function.value - 1]
        assert 0 < x < 2**31 and 0 < y < 2**16 and 0 < z < 2**16 and (by, bz, extra) == (1, 1, None)
        assert f"__launch_bounds__({threads})" in text and threads <= 1024
        assert shared <= self.room.get(function.value, SMALLEST)
        self.launched.append(text.rpartition("{ ")[2].partition("(p)")[0])
        if self.emulated:
            body = text.removeprefix(cuda.TYPES_CPP).removeprefix(MMA_PREAMBLE)
            launch = compile_text(HEADER.read_text(encoding="utf-8") + body + LAUNCH)
            assert launch(ctypes.c_void_p(args[0]), x, y, z, threads, 0) == 0


class Graph(Tape):
    """torch.cuda.CUDAGraph, and the context of torch.cuda.graph."""


class Elsewhere(TorchFunctionMode):
    """device="cuda" is another device."""

    def __init__(self, place: str):
        super().__init__()
        self.place = place

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args = [self.instead(x) for x in args]
        return func(*args, **{key: self.instead(x) for key, x in (kwargs or {}).items()})

    def instead(self, x):
        return self.place if isinstance(x, (str, torch.device)) and str(x).startswith("cuda") else x


def apart(f, backend):
    """decode_graph.compile_apart; the code names no device, and Dynamo would trace Elsewhere."""
    compiled = compile_apart(f, backend)

    def call(*args):
        with (
            _pop_mode_temporarily()
            if torch._C._len_torch_function_stack()
            else contextlib.nullcontext()
        ):
            return compiled(*args)

    return call


class Event:
    """torch.cuda.Event, on the wall's clock."""

    def __init__(self, enable_timing=False):
        self.at = None

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1000 * (end.at - self.at)


@contextlib.contextmanager
def gpu(monkeypatch, emulated=True, capability=(9, 0), place="cpu"):
    """The driver of a GPU that is there as long as the context lasts; its tensors lie in
    `place`.
    """
    stream, nothing = (
        SimpleNamespace(cuda_stream=0, wait_stream=lambda other: None),
        contextlib.nullcontext,
    )
    about = SimpleNamespace(name="pretended", multi_processor_count=2, total_memory=0)
    pretended = {
        "device": lambda device: nothing(),
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda: capability,
        "get_device_properties": lambda device: about,
        "current_stream": lambda: stream,
        "Stream": lambda device: stream,
        "stream": lambda stream: nothing(),
        "CUDAGraph": Graph,
        "graph": lambda graph, stream: graph,
        "Event": Event,
    }
    driver = Driver(emulated)
    with monkeypatch.context() as patch:
        for name, value in pretended.items():
            patch.setattr(torch.cuda, name, value)
        for operation in (small.norm, small.rope, small.swiglu, fused_attention):
            patch.setitem(operation._backend_fns, "cpu", operation._backend_fns["cuda"])
        patch.setattr(torch.Tensor, "is_cuda", property(lambda x: True), raising=False)
        patch.setattr(decode_graph, "compile_apart", apart)
        patch.setattr(cuda, "driver", lambda: driver)
        patch.setattr(cuda, "compile_cuda", lambda source, arch: source.encode())
        forget()
        with Elsewhere(place):
            yield driver
    forget()


def forget() -> None:
    """Kernels that were loaded before are loaded anew."""
    for each in (instantiate, small.norm_kernel, small.rope_kernel, small.swiglu_kernel):
        each.cache_clear()

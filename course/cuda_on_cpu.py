"""Run a CUDA kernel without a GPU: its own C++ text, compiled by g++, its threads emulated one
after the other.

What the threads ask of the hardware (shuffles, barriers, tensor cores, asynchronous copies) is
emulated by cuda_on_cpu.h. The order in which threads run is drawn from a seed and copies arrive as
late as they may, so a missing barrier shows as a wrong answer. It says nothing about speed.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from minillama.kernels.cuda import Kernel


HEADER = Path(__file__).with_name("cuda_on_cpu.h")
FAULTS = {
    1: "a thread left while others of its block wait for it",
    2: "a copy of 16 bytes that does not start at one",
}
LAUNCH = """
extern "C" int launch(const Problem *p, int x, int y, int z, int threads, unsigned seed) {
    return emulate({(unsigned)x, (unsigned)y, (unsigned)z}, threads, seed, [&] { kernel(*p); });
}
"""


def compiler() -> str | None:
    """The C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


@cache
def compile_text(text: str):
    """The function `launch` of C++ text; RuntimeError with the compiler's first complaint."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = (
            Path(folder, "kernel.cpp"),
            Path(folder, hashlib.sha256(text.encode()).hexdigest() + ".so"),
        )
        source.write_text(text, encoding="utf-8")
        command = [
            compiler() or "g++",
            "-O1",
            "-std=c++17",
            "-shared",
            "-fPIC",
            "-w",
            "-o",
            str(library),
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise RuntimeError(
                next((x for x in done.stderr.splitlines() if "error" in x), "g++ failed")
            )
        return ctypes.CDLL(str(library)).launch


def emulate(kernel: Kernel, grid: tuple[int, int, int], *values, seed=0) -> None:
    """As kernel.launch, on tensors of the CPU; AssertionError for what no GPU would forgive."""
    launch = compile_text(kernel.source(preamble=HEADER.read_text(encoding="utf-8")) + LAUNCH)
    problem = kernel.problem(*(v.data_ptr() if isinstance(v, torch.Tensor) else v for v in values))
    fault = launch(ctypes.byref(problem), *grid, kernel.threads, seed)
    assert not fault, FAULTS[fault]

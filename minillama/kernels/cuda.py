"""11a. CUDA: one program, a thousand threads.

Written by notebooks/11a_cuda.ipynb: edit it there.
"""

import ctypes
import ctypes.util
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

import torch


TYPES_CPP = r"""
struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

__device__ float to_float(float x) { return x; }
__device__ float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ float to_float(f16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }

// two values, rounded to nearest, in one register
template <typename N> __device__ unsigned pair(float low, float high);
template <> __device__ unsigned pair<bf16>(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
template <> __device__ unsigned pair<f16>(float low, float high) {
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ void store(float *to, float x) { *to = x; }
template <typename N> __device__ void store(N *to, float x) { to->bits = (unsigned short)pair<N>(x, 0); }
"""
C_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "float"}


LANES = r"""
__device__ float over_lanes_sum(float x, int lanes) {
    for (int step = lanes / 2; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}
__device__ float over_lanes_max(float x, int lanes) {
    for (int step = lanes / 2; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}
"""


def struct(**fields: str) -> type[ctypes.Structure]:
    """The layout of a C struct: struct(pointers="x out", longs="n", ints="dim", floats="eps"), its
    fields in this order.
    """
    kinds = {
        "pointers": ctypes.c_void_p,
        "longs": ctypes.c_longlong,
        "ints": ctypes.c_int,
        "floats": ctypes.c_float,
    }
    body = [(name, kinds[kind]) for kind, names in fields.items() for name in names.split()]
    return type("Problem", (ctypes.Structure,), {"_fields_": body})


class Kernel:
    """A kernel in CUDA C++: compiled for a device when it is first launched there, then kept."""

    def __init__(
        self,
        body: str,
        entry: str,
        problem: type[ctypes.Structure],
        threads: int,
        shared=0,
        preamble=TYPES_CPP,
    ):
        """body: C++ with struct Problem and the template; entry: its name, as in norm<bf16>;
        preamble: C++ before the body.
        """
        self.body, self.entry, self.preamble = body, entry, preamble
        self.threads, self.shared = threads, shared
        self.problem, self.loaded = problem, {}

    def source(self, preamble: str | None = None) -> str:
        bounds = f"__launch_bounds__({self.threads})"
        start = (
            f'extern "C" __global__ void {bounds} kernel(const Problem p) {{ {self.entry}(p); }}\n'
        )
        return (self.preamble if preamble is None else preamble) + self.body + start

    def launch(self, grid: tuple[int, int, int], *values) -> None:
        """Run it on PyTorch's current stream. values: the fields of Problem, a tensor for each
        pointer.
        """
        launch(self, grid, *values)


class CudaError(RuntimeError):
    """What a kernel needs and this machine does not have, or a kernel that does not compile; one
    line or the log.
    """


def c_name(dtype: torch.dtype) -> str:
    """The C++ name of a type; CudaError for one that the kernels do not support."""
    if dtype not in C_NAMES:
        raise CudaError(f"kernels support {', '.join(map(str, C_NAMES))}, not {dtype}")
    return C_NAMES[dtype]


def library_folders() -> list[Path]:
    """Where NVRTC is looked for, best first: beside PyTorch's own CUDA libraries, in PyTorch, in a
    toolkit.
    """
    package = importlib.util.find_spec("nvidia")
    roots = package.submodule_search_locations if package else []
    found = [
        path
        for root in roots
        for name in ("*/lib", "*/bin/**/")
        for path in sorted(Path(root).glob(name))
    ]
    toolkits = [
        Path(os.environ.get(name, "/usr/local/cuda")) for name in ("CUDA_HOME", "CUDA_PATH")
    ]
    own = Path(torch.__file__).parent / "lib"
    return [*found, own, *(root / name for root in toolkits for name in ("lib64", "bin"))]


@cache
def nvrtc() -> ctypes.CDLL:
    """The library that compiles CUDA C++; CudaError says how to get it."""
    windows = sys.platform == "win32"
    name, builtins = (
        ("nvrtc64_*.dll", "nvrtc-builtins*.dll")
        if windows
        else ("libnvrtc.so*", "libnvrtc-builtins.so*")
    )
    found = [
        path
        for folder in library_folders()
        for path in sorted(folder.glob(name))
        if "alt" not in path.name
    ]
    # PyTorch's own: a driver may refuse a later one's code
    version = (torch.version.cuda or "").partition(".")[0]
    found.sort(
        key=lambda path: not path.name.startswith((f"libnvrtc.so.{version}", f"nvrtc64_{version}"))
    )
    try:
        for path in found:
            # NVRTC asks for it by name, and finds it if it is loaded already
            for helper in path.parent.glob(builtins):
                ctypes.CDLL(str(helper), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
        if system := ctypes.util.find_library("nvrtc"):
            return ctypes.CDLL(system)
    except OSError as error:
        raise CudaError(f"NVRTC, which compiles CUDA C++, cannot be loaded: {error}") from None
    raise CudaError(
        "NVRTC, which compiles CUDA C++, is not there: pip install nvidia-cuda-nvrtc brings it"
    )


def compile_cuda(source: str, arch: str) -> bytes:
    """CUDA C++ without headers -> machine code (cubin) for an architecture such as sm_90; CudaError
    with the log.
    """
    lib, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    options = f"--gpu-architecture={arch}".encode(), b"--std=c++17"
    lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        failed = lib.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*options)
        )
        what = "ProgramLog" if failed else "CUBIN"
        getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        getattr(lib, f"nvrtcGet{what}")(program, data)
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise CudaError(
            f"the kernel does not compile for {arch}: {data.value.decode(errors='replace').strip()}"
        )
    return data.raw


@cache
def driver() -> ctypes.CDLL:
    """The driver's library, which loads and launches what NVRTC made."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise CudaError("there is no CUDA driver on this machine") from None


def call(name: str, *args) -> None:
    """One call of the driver; CudaError names it and what went wrong."""
    if code := getattr(driver(), name)(*args):
        text = ctypes.c_char_p()
        driver().cuGetErrorString(code, ctypes.byref(text))
        raise CudaError(f"{name}: {(text.value or b'error %d' % code).decode()}")


def function_of(kernel: Kernel) -> ctypes.c_void_p:
    """The compiled kernel on the current device."""
    device = torch.cuda.current_device()
    if device not in kernel.loaded:
        torch.cuda.current_stream()  # makes PyTorch's context the current one
        major, minor = torch.cuda.get_device_capability()
        if major < 8:
            raise CudaError(
                f"these kernels need a GPU of compute capability 8.0 or newer, not {major}.{minor}"
            )
        code = compile_cuda(kernel.source(), f"sm_{major}{minor}")
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        call("cuModuleLoadData", ctypes.byref(module), code)
        call("cuModuleGetFunction", ctypes.byref(function), module, b"kernel")
        if kernel.shared > 48 * 1024:  # more than that has to be asked for: attribute 8
            call("cuFuncSetAttribute", function, 8, kernel.shared)
        kernel.loaded[device] = function
    return kernel.loaded[device]


def launch(kernel: Kernel, grid: tuple[int, int, int], *values) -> None:
    """Hand one launch to the driver, with the arguments as one struct."""
    problem = kernel.problem(*(v.data_ptr() if isinstance(v, torch.Tensor) else v for v in values))
    args = (ctypes.c_void_p * 1)(ctypes.addressof(problem))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    call(
        "cuLaunchKernel",
        function_of(kernel),
        *grid,
        kernel.threads,
        1,
        1,
        kernel.shared,
        stream,
        args,
        None,
    )

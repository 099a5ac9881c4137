"""Kernels without a GPU: each compiles for three generations, and its own text, played on a processor, is right."""

import ctypes
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from attention_problems import off, problem

from course.cuda_on_cpu import compiler, play
from minillama import attention_kernels, cuda, tensor_cores
from minillama.attention_kernels import RUNGS, kernel, launches
from minillama.cuda import CudaError, compile_cuda


def nvrtc_or_skip():
    try:
        return cuda.nvrtc()
    except CudaError as error:
        pytest.skip(str(error))


def all_kernels(dtype, widths=(64, 128)):
    small = [cuda.swiglu_kernel(dtype), cuda.norm_kernel(dtype), *(cuda.rope_kernel(dtype, w) for w in widths)]
    wide = [name for name in RUNGS if dtype != torch.float32 or not RUNGS[name].only_16_bits]
    return small + [kernel(name, dtype, w) for name in wide for w in widths]


@pytest.mark.parametrize("arch, widths", [("sm_80", [64]), ("sm_90", [64, 128]), ("sm_100", [128])])
def test_every_kernel_compiles(arch, widths):
    nvrtc_or_skip()
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda k: compile_cuda(k.source(), arch), all_kernels(torch.bfloat16, widths)))
    assert all(code.startswith(b"\x7fELF") for code in codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types_compile(dtype):
    nvrtc_or_skip()
    assert all(compile_cuda(k.source(), "sm_90") for k in all_kernels(dtype, (128,)))


def test_a_mistake_is_reported_with_the_compilers_words():
    nvrtc_or_skip()
    with pytest.raises(CudaError, match="does not compile for sm_90(.|\n)*oops"):
        compile_cuda('extern "C" __global__ void kernel() { oops; }', "sm_90")


needs_gxx = pytest.mark.skipif(not compiler(), reason="no C++ compiler")
SHAPES = [(1, 4, 1, 1, 7, 9), (2, 8, 2, 1, 100, 128), (1, 4, 2, 5, 5, 5), (1, 3, 1, 50, 70, 70)]
WIDE_SHAPES = [(1, 4, 1, 1, 7, 9), (1, 2, 1, 1, 70, 80), (1, 3, 1, 24, 70, 70)]


def played(name, q, k, v, length, splits=3, seed=0):
    out, todo = launches(name, q, k, v, torch.tensor([length], dtype=torch.int32), splits)
    out.fill_(math.nan)
    todo[0][2][5].fill_(math.nan)  # the parts' results
    for each, grid, values in todo:
        play(each, grid, *values, seed=seed)
    return out


@needs_gxx
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ["warp", "tiles", "tensor", "wide", "split"])
def test_rungs_played_on_a_processor(name, width):
    for seed, shape in enumerate(SHAPES if width == 64 else WIDE_SHAPES):
        if name == "split" and shape[1] // shape[2] * shape[3] > attention_kernels.FEW:
            continue
        q, k, v, want = problem(*shape, width, torch.bfloat16, seed)
        assert off(played(name, q, k, v, shape[4], seed=seed), want) < 5e-3, shape


@needs_gxx
@pytest.mark.parametrize("name, dtype, limit", [("wide", torch.float16, 1e-3), ("tiles", torch.float32, 1e-6)])
def test_other_types_played(name, dtype, limit):
    q, k, v, want = problem(1, 6, 2, 9, 40, 48, 64, dtype)
    assert off(played(name, q, k, v, 40), want) < limit


@needs_gxx
def test_more_parts_than_keys():
    q, k, v, want = problem(1, 4, 1, 1, 20, 64, 64, torch.bfloat16)
    assert off(played("split", q, k, v, 20, splits=9), want) < 5e-3


@needs_gxx
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_small_kernels_are_the_chapters(dtype):
    g, limit = torch.Generator().manual_seed(0), 0 if dtype == torch.bfloat16 else 2e-6
    a, b, weight = (torch.randn(*shape, generator=g).to(dtype) for shape in ((3, 700), (3, 700), (700,)))
    out = torch.full_like(a, math.nan)
    play(cuda.swiglu_kernel(dtype), (math.ceil(a.numel() / 256), 1, 1), a, b, out, a.numel())
    torch.testing.assert_close(out, cuda.swiglu(a, b), atol=limit, rtol=0)
    play(cuda.norm_kernel(dtype), (3, 1, 1), a, weight, out, 700, 1e-5)
    torch.testing.assert_close(out, cuda.norm(a, weight, 1e-5), atol=limit, rtol=0)
    x, (cos, sin) = torch.randn(2, 5, 3, 64, generator=g).to(dtype).transpose(1, 2), torch.randn(2, 5, 32, generator=g)
    out = cuda.turned_like(x).fill_(math.nan)
    play(cuda.rope_kernel(dtype, 64), (5, 3, 2), x, cos, sin, out, *x.stride()[:3], 3, 5, 32)
    torch.testing.assert_close(out, cuda.rope(x, cos, sin), atol=limit, rtol=0)


def test_small_operations_are_good_citizens():
    torch.library.opcheck(cuda.swiglu, (torch.randn(1, 1, 40), torch.randn(1, 1, 40)))
    torch.library.opcheck(cuda.norm, (torch.randn(1, 3, 40), torch.randn(40), 1e-5))
    torch.library.opcheck(cuda.rope, (torch.randn(1, 3, 4, 16).transpose(1, 2), *torch.randn(2, 3, 8)))


@needs_gxx
@pytest.mark.parametrize(
    "right, wrong",
    [
        ("wait_for_groups<0>();\n        __syncthreads();", "wait_for_groups<0>();"),
        ("wait_for_groups<0>();\n        __syncthreads();", "__syncthreads();"),
        ("c ^ (r & 7)", "c ^ (c & 7)"),
        (">= visible[m][i / 2]", "> visible[m][i / 2]"),
    ],
    ids=["no barrier", "no wait", "two rows in one place", "one key too many"],
)
def test_the_played_machine_notices(right, wrong):
    broken = kernel.__wrapped__("tensor", torch.bfloat16, 64)
    assert right in broken.body
    broken.body = broken.body.replace(right, wrong)
    q, k, v, want = problem(1, 2, 1, 40, 200, 200, 64, torch.bfloat16)
    out, todo = launches("tensor", q, k, v, torch.tensor([200], dtype=torch.int32))
    out.fill_(math.nan)
    play(broken, todo[0][1], *todo[0][2], seed=1)
    assert off(out, want) > 1e-2


def test_what_kernels_do_not_know_is_one_line():
    length = torch.tensor([5], dtype=torch.int32)
    q, k, v, _ = problem(1, 4, 2, 3, 5, 9, 16, torch.bfloat16)
    with pytest.raises(CudaError, match="heads of \\(64, 128\\) numbers with 16 bits, not 16"):
        launches("wide", q, k, v, length)
    q, k, v, _ = problem(1, 4, 2, 30, 30, 30, 64, torch.bfloat16)
    with pytest.raises(CudaError, match="up to 16 rows, not 60"):
        launches("split", q, k, v, length)
    with pytest.raises(CudaError, match="16 bytes"):
        launches("wide", q[..., 1:].contiguous()[..., :64].as_strided(q.shape, (1, 1, 1, 1)), k, v, length)


def test_without_nvrtc_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cuda, "folders", list)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(CudaError, match="pip install nvidia-cuda-nvrtc"):
        cuda.nvrtc.__wrapped__()


def test_the_ladder_ends_in_the_operation():
    assert tensor_cores.RUNGS is RUNGS and list(RUNGS) == ["warp", "tiles", "tensor", "wide", "split", "combine"]

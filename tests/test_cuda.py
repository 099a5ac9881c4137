"""Kernels without a GPU: each compiles for three generations, and its own source, emulated on a
processor, is right.
"""

import ctypes
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import test_gpu
import torch
from attention_problems import off, problem
from pretend_gpu import Graph, gpu
from torch._subclasses import FakeTensorMode

import minillama
from benchmarks import gpu as benchmark
from course.cuda_on_cpu import compiler, emulate
from minillama import LlamaConfig
from minillama.checkpoints.assemble import Checkpoint, assemble, skeleton
from minillama.checkpoints.tensors import StoredTensor
from minillama.inference.attention_backends import attend_flash, use_attention
from minillama.inference.decode_graph import RecordedStep, through_block
from minillama.kernels import attention as attention_kernels
from minillama.kernels import cuda, small
from minillama.kernels.attention import instantiate, launches
from minillama.kernels.cuda import CudaError, compile_cuda
from minillama.kernels.tensor_cores import ATTENTION_KERNELS


def nvrtc_or_skip():
    try:
        return cuda.nvrtc()
    except CudaError as error:
        pytest.skip(str(error))


def all_kernels(dtype, widths=(64, 128)):
    first = [
        small.swiglu_kernel(dtype),
        small.norm_kernel(dtype),
        *(small.rope_kernel(dtype, w) for w in widths),
    ]
    wide = [
        variant
        for variant in ATTENTION_KERNELS.values()
        if dtype != torch.float32 or not variant.only_16_bits
    ]
    return first + [instantiate(variant, dtype, w) for variant in wide for w in widths]


@pytest.mark.parametrize("arch, widths", [("sm_80", [64]), ("sm_90", [64, 128]), ("sm_100", [128])])
def test_every_kernel_compiles(arch, widths):
    nvrtc_or_skip()
    with ThreadPoolExecutor(2) as pool:
        codes = list(
            pool.map(lambda k: compile_cuda(k.source(), arch), all_kernels(torch.bfloat16, widths))
        )
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


def emulated(name, q, k, v, length, splits=3, seed=0):
    out, todo = launches(
        ATTENTION_KERNELS[name], q, k, v, torch.tensor([length], dtype=torch.int32), splits
    )
    out.fill_(math.nan)
    todo[0][2][5].fill_(math.nan)  # the parts' results
    for each, grid, values in todo:
        emulate(each, grid, *values, seed=seed)
    return out


@needs_gxx
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ["warp", "tiles", "tensor", "wide", "split"])
def test_rungs_played_on_a_processor(name, width):
    for seed, shape in enumerate(SHAPES if width == 64 else WIDE_SHAPES):
        if name == "split" and shape[1] // shape[2] * shape[3] > attention_kernels.MAX_SPLIT_ROWS:
            continue
        q, k, v, want = problem(*shape, width, torch.bfloat16, seed)
        assert off(emulated(name, q, k, v, shape[4], seed=seed), want) < 5e-3, shape


@needs_gxx
@pytest.mark.parametrize(
    "name, dtype, limit", [("wide", torch.float16, 1e-3), ("tiles", torch.float32, 1e-6)]
)
def test_other_types_emulated(name, dtype, limit):
    q, k, v, want = problem(1, 6, 2, 9, 40, 48, 64, dtype)
    assert off(emulated(name, q, k, v, 40), want) < limit


@needs_gxx
def test_more_parts_than_keys():
    q, k, v, want = problem(1, 4, 1, 1, 20, 64, 64, torch.bfloat16)
    assert off(emulated("split", q, k, v, 20, splits=9), want) < 5e-3


@needs_gxx
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_small_kernels_are_the_chapters(dtype):
    g, limit = torch.Generator().manual_seed(0), 0 if dtype == torch.bfloat16 else 2e-6
    a, b, weight = (
        torch.randn(*shape, generator=g).to(dtype) for shape in ((3, 700), (3, 700), (700,))
    )
    out = torch.full_like(a, math.nan)
    emulate(small.swiglu_kernel(dtype), (math.ceil(a.numel() / 256), 1, 1), a, b, out, a.numel())
    torch.testing.assert_close(out, small.swiglu(a, b), atol=limit, rtol=0)
    emulate(small.norm_kernel(dtype), (3, 1, 1), a, weight, out, 700, 1e-5)
    torch.testing.assert_close(out, small.norm(a, weight, 1e-5), atol=limit, rtol=0)
    x, (cos, sin) = (
        torch.randn(2, 5, 3, 64, generator=g).to(dtype).transpose(1, 2),
        torch.randn(2, 5, 32, generator=g),
    )
    out = small.empty_rotated(x).fill_(math.nan)
    emulate(small.rope_kernel(dtype, 64), (5, 3, 2), x, cos, sin, out, *x.stride()[:3], 3, 5, 32)
    torch.testing.assert_close(out, small.rope(x, cos, sin), atol=limit, rtol=0)


def test_small_operations_are_good_citizens():
    torch.library.opcheck(small.swiglu, (torch.randn(1, 1, 40), torch.randn(1, 1, 40)))
    torch.library.opcheck(small.norm, (torch.randn(1, 3, 40), torch.randn(40), 1e-5))
    torch.library.opcheck(
        small.rope, (torch.randn(1, 3, 4, 16).transpose(1, 2), *torch.randn(2, 3, 8))
    )


@needs_gxx
@pytest.mark.parametrize(
    "right, wrong",
    [
        ("wait_groups<0>();\n        __syncthreads();", "wait_groups<0>();"),
        ("wait_groups<0>();\n        __syncthreads();", "__syncthreads();"),
        ("c ^ (r & 7)", "c ^ (c & 7)"),
        (">= visible[m][i / 2]", "> visible[m][i / 2]"),
    ],
    ids=["no barrier", "no wait", "two rows in one place", "one key too many"],
)
def test_the_emulation_notices(right, wrong):
    broken = instantiate.__wrapped__(ATTENTION_KERNELS["tensor"], torch.bfloat16, 64)
    assert right in broken.body
    broken.body = broken.body.replace(right, wrong)
    q, k, v, want = problem(1, 2, 1, 40, 200, 200, 64, torch.bfloat16)
    out, todo = launches(
        ATTENTION_KERNELS["tensor"], q, k, v, torch.tensor([200], dtype=torch.int32)
    )
    out.fill_(math.nan)
    emulate(broken, todo[0][1], *todo[0][2], seed=1)
    assert off(out, want) > 1e-2


def test_what_kernels_do_not_know_is_one_line():
    length = torch.tensor([5], dtype=torch.int32)
    q, k, v, _ = problem(1, 4, 2, 3, 5, 9, 16, torch.bfloat16)
    with pytest.raises(CudaError, match="heads of \\(64, 128\\) elements with 16 bits, not 16"):
        launches(ATTENTION_KERNELS["wide"], q, k, v, length)
    q, k, v, _ = problem(1, 4, 2, 30, 30, 30, 64, torch.bfloat16)
    with pytest.raises(CudaError, match="up to 16 rows, not 60"):
        launches(ATTENTION_KERNELS["split"], q, k, v, length)
    for wrong in (length.long(), length.to("meta")):
        with pytest.raises(CudaError, match="the length must be int32, and lie on the device"):
            launches(ATTENTION_KERNELS["wide"], q, k, v, wrong)
    with pytest.raises(CudaError, match="16 bytes"):
        launches(
            ATTENTION_KERNELS["wide"],
            q[..., 1:].contiguous()[..., :64].as_strided(q.shape, (1, 1, 1, 1)),
            k,
            v,
            length,
        )


def test_without_nvrtc_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cuda, "library_folders", list)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(CudaError, match="pip install nvidia-cuda-nvrtc"):
        cuda.nvrtc.__wrapped__()


@pytest.mark.skipif(sys.platform == "win32", reason="the files have other names there")
def test_of_two_nvrtcs_the_one_of_pytorchs_cuda_is_loaded(monkeypatch, tmp_path):
    for name in (
        "13/libnvrtc.so.13",
        "13/libnvrtc-builtins.so.13.0",
        "12/libnvrtc.so.12",
        "12/libnvrtc.alt.so.12",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(cuda, "library_folders", lambda: [tmp_path / "13", tmp_path / "12"])
    with pytest.raises(
        CudaError, match="^NVRTC, which compiles CUDA C\\+\\+, cannot be loaded: .*file too short$"
    ):
        cuda.nvrtc.__wrapped__()
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode=0: path)
    for version, name in {
        "12.8": "libnvrtc.so.12",
        "13.0": "libnvrtc.so.13",
        None: "libnvrtc.so.13",
    }.items():
        monkeypatch.setattr(torch.version, "cuda", version)
        assert cuda.nvrtc.__wrapped__().endswith(name)


@pytest.fixture
def smaller(monkeypatch):
    """What tests/test_gpu.py tries, with few elements: threads that are emulated take their time."""
    monkeypatch.setattr(test_gpu, "SHAPES", [(1, 4, 2, 1, 7, 9), (1, 2, 1, 9, 9, 9)])
    monkeypatch.setattr(test_gpu, "TOKENS", 5)
    monkeypatch.setattr(test_gpu, "LAYERS", 1)


@needs_gxx
@pytest.mark.usefixtures("smaller")
def test_the_switch_on_a_pretended_gpu(monkeypatch, tmp_path):
    """From load(..., device="cuda", compiled=True) to the ids: all but NVRTC, the driver and the
    recording are real.
    """
    with gpu(monkeypatch) as driver:
        test_gpu.test_the_switch(tmp_path)
    assert {name.partition("<")[0] for name in driver.launched} == {
        "tiles",
        "norm",
        "rope",
        "swiglu",
    }


@needs_gxx
@pytest.mark.usefixtures("smaller")
def test_every_kernel_on_a_pretended_gpu(monkeypatch):
    with gpu(monkeypatch) as driver:
        for name in ("warp", "tiles", "tensor", "wide", "split"):
            test_gpu.test_every_kernel_against_float64(name, 64, torch.bfloat16)
    entries = {"warp_per_query", "tiles", "tensor_cores", "split", "combine"}
    assert {name.partition("<")[0] for name in driver.launched} == entries


@pytest.mark.usefixtures("smaller")
def test_what_is_missing_is_said_once_on_a_pretended_gpu(monkeypatch, tmp_path):
    """NVRTC, a GPU that is new enough, a type that the kernels support; what is used instead is
    named.
    """
    path, old = (
        tmp_path / "model",
        "these kernels need a GPU of compute capability 8.0 or newer, not 7.5",
    )
    with gpu(monkeypatch, emulated=False):
        test_gpu.test_without_nvrtc_the_next_best_is_named(monkeypatch, tmp_path)
    with gpu(monkeypatch, emulated=False, capability=(7, 5)) as driver:
        with pytest.warns(
            UserWarning, match=f"^falling back to sdpa attention, uncompiled: [^;]*: {old}$"
        ):
            minillama.load(path, device="cuda", compiled=True)
        with pytest.raises(ValueError, match=f"no fused attention here: {old}"):
            minillama.load(path, device="cuda", compiled=True, attention="fused")
        with pytest.warns(
            UserWarning,
            match="^falling back to uncompiled: kernels support .*, not torch.float64$",
        ):
            minillama.load(
                path, device="cuda", compiled=True, attention="naive", dtype=torch.float64
            )
        assert not driver.launched
    with pytest.raises(ValueError, match="there is no cuda:9 here: PyTorch .* sees . CUDA devices"):
        minillama.load(path, device="cuda:9")


def test_no_step_mixes_devices(monkeypatch):
    """Tensors without numbers that refuse those of another device: a prompt, what follows it, a
    step written down.
    """
    cfg = LlamaConfig(128, 2, 4, 2, 64, 128, 96)
    monkeypatch.setattr(Graph, "replay", lambda graph: None)
    with gpu(monkeypatch, emulated=False, place="meta"), FakeTensorMode(), torch.inference_mode():
        shapes = {name: tuple(p.shape) for name, p in skeleton(cfg, 100).named_parameters()}
        tensors = {
            name: StoredTensor(shape, partial(torch.empty, shape)) for name, shape in shapes.items()
        }
        chosen = use_attention(
            assemble(Checkpoint(cfg, tensors, None), torch.bfloat16, "cuda"), "fused"
        )
        cache, ids = (
            minillama.KVCache(cfg, 1, 64, torch.bfloat16, "cuda"),
            torch.ones(1, 9, dtype=int, device="cuda"),
        )
        for tokens in (ids, ids[:, :5]):
            assert chosen(tokens, cache).device.type == "meta"
        step = RecordedStep(chosen, through_block, cache)
        assert step.graph.calls and step(ids[:, :1], 14).device.type == "meta"
        one = torch.ones(1, dtype=torch.int32, device="cuda")
        assert attend_flash(
            torch.ones(1, 4, 1, 64, device="cuda"), *cache.keys[:, :], one
        ).shape == (1, 4, 1, 64)
        with pytest.raises(RuntimeError, match="same device"):
            step(torch.ones(1, 1, dtype=int), 14) + torch.ones(1)


def test_the_benchmark_on_a_pretended_gpu(monkeypatch, tmp_path, capsys):
    """Every kernel and every way to take a step, launched but not computed."""
    monkeypatch.setattr(benchmark, "FRESH", 1)
    monkeypatch.setattr(
        benchmark, "seconds", lambda calls, device: benchmark.timed(calls[0], device)
    )
    monkeypatch.setattr("sys.argv", ["gpu.py", "--quick", "--json", str(tmp_path / "gpu.json")])
    with gpu(monkeypatch, emulated=False) as driver:
        benchmark.main()
    said = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    ways = {(row["phase"], row["way"]) for row in said["attention"]}
    assert {
        (phase, name)
        for phase in ("prefill", "decode")
        for name in ("warp", "tiles", "tensor", "wide")
    } < ways
    steps, prompts = ({row["way"] for row in said["decode"][kind]} for kind in ("steps", "prompt"))
    assert ("decode", "split") in ways and {
        "fused, launched one by one",
        "fused, one graph",
        "sdpa, one graph",
    } < steps
    assert prompts == {"sdpa", "fused"} and not said["decode"]["missing"]
    assert {"split<bf16, 64>", "norm<bf16>", "rope<bf16>", "swiglu<bf16>"} < set(driver.launched)
    assert "not there: cudnn, prefill" in capsys.readouterr().out, (
        "what fails is named, and the rest goes on"
    )

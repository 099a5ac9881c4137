"""Everything that needs CUDA: `make test-gpu`. Elsewhere only the proof's report is tried, on the
processor; and tests/test_cuda.py calls some of these tests, made smaller, on a GPU that is
pretended.

It needs PyTorch 2.11 or newer with CUDA, and numpy, tiktoken, regex, tqdm, safetensors and pytest.
Nothing is fetched: real weights are used if they are in the cache already.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_problems import GRID, attended, every_combination, off, problem
from helpers import with_attention
from pretend_gpu import forget

import minillama
from minillama.checkpoints import hub
from minillama.inference.attention_backends import BACKENDS, fused_attention
from minillama.inference.decode_graph import GraphStep
from minillama.kernels import cuda, small
from minillama.kernels.attention import MAX_SPLIT_ROWS, launches
from minillama.kernels.cuda import CudaError
from minillama.kernels.tensor_cores import ATTENTION_KERNELS


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ROOT = Path(__file__).resolve().parent.parent
LIMITS = {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float32: 1e-4}  # relative
SHAPES = [shape[:-1] for shape in GRID if shape[-1] in (64, 128)] + [
    (1, 32, 8, 1, 1000, 1024),  # 8B's heads: a step, a prompt, a prompt behind a cache
    (1, 32, 8, 700, 700, 700),
    (1, 32, 8, 65, 1000, 1024),
    (3, 9, 3, 17, 130, 257),  # SmolLM2's heads
]


TOKENS, LAYERS = 40, 3


def on_cuda(*tensors):
    """The same views, strides kept, in the GPU's memory."""
    return [
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda").copy_(x)
        for x in tensors
    ]


def length_of(n: int) -> torch.Tensor:
    return torch.tensor([n], dtype=torch.int32, device="cuda")


@needs_cuda
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ["warp", "tiles", "tensor", "wide", "split"])
def test_every_kernel_against_float64(name, width, dtype):
    """Fresh inputs, NaN behind the keys in use and in the answer's room, and two lengths with one
    launch's values.
    """
    if ATTENTION_KERNELS[name].only_16_bits and dtype == torch.float32:
        return
    for seed, shape in enumerate(SHAPES):
        if name == "split" and shape[1] // shape[2] * shape[3] > MAX_SPLIT_ROWS:
            continue
        q, k, v, want = problem(*shape, width, dtype, seed)
        out, todo = launches(
            ATTENTION_KERNELS[name], *on_cuda(q, k, v), length_of(shape[4]), splits=7
        )
        out.fill_(math.nan)
        todo[0][2][5].fill_(math.nan)
        for each, grid, values in todo:
            each.launch(grid, *values)
        assert off(out.cpu(), want) < LIMITS[dtype], shape


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", BACKENDS)
def test_every_way_against_float64(name, dtype):
    """With the length as a number, and on the device; sdpa has no fused kernel for float32, and
    says so.
    """
    for seed, shape in enumerate(SHAPES):
        q, k, v, want = problem(*shape, 128, dtype, seed)
        args = on_cuda(q, k, v)
        if name == "sdpa" and dtype == torch.float32:
            with pytest.raises(RuntimeError):
                attended(name, *args, shape[4])
            continue
        assert off(attended(name, *args, shape[4]).cpu(), want) < LIMITS[dtype], shape
        if name == "sdpa" and (shape[0], shape[3]) != (1, 1):
            continue  # on the device, the length of one step
        clean = args if name in ("sdpa", "fused") else [x.nan_to_num() for x in args]
        assert off(attended(name, *clean, length_of(shape[4])).cpu(), want) < LIMITS[dtype], shape


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["naive", "fused"])
def test_every_combination_against_float64(name, dtype):
    for seed, shape in enumerate(every_combination()):
        q, k, v, want = problem(*shape, 64, dtype, seed)
        length = length_of(shape[4]) if name == "fused" else shape[4]
        assert off(attended(name, *on_cuda(q, k, v), length).cpu(), want) < LIMITS[dtype], shape


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_small_kernels_are_what_the_processor_computes(dtype):
    g, limit = torch.Generator().manual_seed(0), {"rtol": 1e-2, "atol": 1e-2}
    limit = limit if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 2e-6}
    a, b = (torch.randn(3, 5, 700, generator=g).to(dtype) for _ in "ab")
    weight, x = (
        torch.randn(700, generator=g).to(dtype),
        torch.randn(2, 5, 3, 64, generator=g).to(dtype).transpose(1, 2),
    )
    cos, sin = torch.randn(2, 5, 32, generator=g)
    calls = (small.swiglu, (a, b)), (small.norm, (a, weight, 1e-5)), (small.rope, (x, cos, sin))
    for operation, args in calls:
        there = [arg.cuda() if isinstance(arg, torch.Tensor) else arg for arg in args]
        torch.testing.assert_close(operation(*there).cpu(), operation(*args), **limit)
        torch.library.opcheck(operation, tuple(there))


@needs_cuda
def test_our_operation_is_a_good_citizen_on_cuda():
    for shape in ((1, 4, 2, 3, 5, 9), (1, 8, 2, 1, 100, 128)):
        q, k, v, _ = problem(*shape, 64, torch.bfloat16)
        torch.library.opcheck(
            fused_attention, (*on_cuda(q, k.nan_to_num(), v.nan_to_num()), length_of(shape[4]))
        )


def random_model(dtype=torch.float32, device="cpu") -> minillama.Llama:
    """A few layers of heads that every kernel knows; the same numbers at every call."""
    torch.manual_seed(0)
    cfg = minillama.LlamaConfig(256, LAYERS, 4, 2, 64, 512, 128)
    return minillama.Llama(cfg).eval().requires_grad_(False).to(dtype).to(device)


def stepwise(model, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits (T, V) of a prompt at once and the rest token by token, behind a cache with room to
    spare.
    """
    cache = minillama.KVCache(model.cfg, 1, ids.shape[1] + 9, model.dtype, model.device)
    pieces = ids.to(model.device).split([prompt] + [1] * (ids.shape[1] - prompt), dim=1)
    with torch.inference_mode():
        return torch.cat([model(piece, cache)[0] for piece in pieces]).cpu()


@needs_cuda
@pytest.mark.parametrize("one_graph", [False, True])
@pytest.mark.parametrize("name", BACKENDS)
def test_logits_are_the_processors(name, one_graph):
    ids = torch.randint(128, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want = random_model()(ids)[0].double()
    for dtype, limit in {torch.float32: 1e-4, torch.bfloat16: 2e-2}.items():
        if name == "sdpa" and dtype == torch.float32:
            continue
        model = with_attention(random_model(dtype, "cuda"), name, one_graph)
        for _ in range(2):  # a second cache, a second capture
            assert off(stepwise(model, ids, 10), want) < limit
        assert model.ran == ({name: 2, f"{name}, as one graph": 60} if one_graph else {name: 62})


@needs_cuda
def test_one_capture_serves_every_position_and_keeps_the_cache_in_place():
    model = with_attention(random_model(torch.bfloat16, "cuda"), "fused", one_graph=True)
    cache = minillama.KVCache(model.cfg, 1, 64, torch.bfloat16, "cuda")
    with torch.inference_mode():
        model(torch.arange(5, device="cuda")[None], cache)
        for position in range(5, TOKENS):
            before, place = cache.keys.clone(), cache.keys.data_ptr()
            model(torch.tensor([[position]], device="cuda"), cache)
            changed = (
                (cache.keys != before).any(-1).any(0).any(0).any(0).nonzero().flatten().tolist()
            )
            assert changed == [position] and cache.keys.data_ptr() == place
    (step,) = model.decode_step.steps.values()
    assert step.graph is not None and model.decode_step.rewritten == {"compiled": 1}


@needs_cuda
def test_the_switch(tmp_path):
    """load(..., device="cuda", compiled=True): our kernel, one graph, and the processor's greedy
    text and logits.
    """
    minillama.save(random_model(), None, tmp_path / "model")
    model, _ = minillama.load(tmp_path / "model", device="cuda", compiled=True)
    assert greedy(model, [5, 6, 7], TOKENS) == greedy(random_model(), [5, 6, 7], TOKENS)
    assert isinstance(model.decode_step, GraphStep) and model.decode_step.rewritten == {
        "compiled": 1
    }
    assert model.ran == {"fused": 1, "fused, as one graph": TOKENS - 1}
    ids = torch.arange(TOKENS)[None]
    with torch.inference_mode():
        want = random_model()(ids)[0].double()
    assert off(stepwise(model, ids, 2), want) < 1e-4


def greedy(model, ids: list[int], count: int) -> list[int]:
    return list(minillama.generate(model, ids, count))


@needs_cuda
@pytest.mark.parametrize("name", ["fused", "sdpa"])
def test_the_reference_weights(name):
    """SmolLM2: float32 logits and greedy text are the processor's naive ones; bfloat16 is that
    close to them.
    """
    if not (path := hub.find("smollm2-135m-instruct")):
        pytest.skip(
            "SmolLM2 is not in the cache; `python -m minillama fetch smollm2-135m-instruct` brings "
            "it"
        )
    plain, tokenizer = minillama.load(path)
    ids = tokenizer.encode(
        "The sea was calm, and the boat went on through the night without a light."
    )
    with torch.inference_mode():
        want = plain(torch.tensor([ids]))[0].double()
    for dtype, limit in {torch.float32: 1e-4, torch.bfloat16: 4e-2}.items():
        if name == "sdpa" and dtype == torch.float32:
            continue
        model = minillama.load(path, dtype=dtype, device="cuda", compiled=True, attention=name)[0]
        assert off(stepwise(model, torch.tensor([ids]), 6), want) < limit
        if dtype == torch.float32:
            assert greedy(model, ids, 60) == greedy(plain, ids, 60)
        assert set(model.ran) == {name, f"{name}, as one graph"}


@needs_cuda
def test_without_nvrtc_the_next_best_is_named(monkeypatch, tmp_path):
    """One line, once; and what it names is what writes."""

    def missing(*_):
        raise CudaError("NVRTC is not there")

    monkeypatch.setattr(cuda, "compile_cuda", missing)
    forget()  # kernels of former tests are compiled already
    minillama.save(random_model(), None, tmp_path / "model")
    with pytest.warns(UserWarning) as caught:
        model, _ = minillama.load(
            tmp_path / "model", dtype=torch.bfloat16, device="cuda", compiled=True
        )
    forget()
    said = "falling back to sdpa attention, uncompiled: no fused attention here: NVRTC is not there"
    assert [
        text for warning in caught if (text := str(warning.message)).startswith("falling back")
    ] == [said]
    greedy(model, [5, 6, 7], 4)
    assert model.ran == {"sdpa": 4}


def makefile(pattern: str) -> str:
    return re.search(pattern, (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]


@pytest.mark.parametrize("options", [(), ("-I", "-S")], ids=["no CUDA", "no PyTorch"])
def test_the_targets_say_in_one_line_what_is_missing(options):
    # -S: without site-packages
    check = [sys.executable, *options, "-c", makefile("^CUDA := (.+)$")]
    done = subprocess.run(
        check, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "this needs PyTorch 2.11 or newer with a CUDA device\n"


def test_the_benchmark_runs_where_minillama_is_not_installed():
    words = makefile(r"^\t\$\(PYTHON\) (.*gpu) --json").split()
    done = subprocess.run(
        [sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    # -m: found in the folder where it is started
    assert words[0] == "-m" and done.returncode == 0, done.stderr


def report(tmp_path, *words) -> dict:
    """What tests/without_triton.py says, with folders for Triton and Inductor that were empty."""
    folders = {name: tmp_path / name for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    for folder in folders.values():
        folder.mkdir()
    env = (
        os.environ
        | {name: str(folder) for name, folder in folders.items()}
        | {"PYTHONPATH": str(ROOT)}
    )
    command = [sys.executable, str(ROOT / "tests" / "without_triton.py"), *words]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_no_triton(said: dict) -> None:
    assert said["error"] is None and said["steps"] == 3
    assert said["inductor_kernels"] == said["triton_files"] == said["triton_modules"] == 0
    assert not [name for name in said["events"] if name.startswith("triton_")]
    assert {"minillama::attend", "minillama::norm", "minillama::rope", "minillama::swiglu"} <= set(
        said["events"]
    )


def test_the_report_on_a_processor(tmp_path):
    check_no_triton(report(tmp_path, "cpu", "graph", "refuse"))


@needs_cuda
def test_no_triton_is_imported_generated_or_run(tmp_path):
    said = report(tmp_path, "cuda", "graph", "refuse")
    check_no_triton(said)
    assert said["graphs"] == 1
    assert "kernel" in said["events"], "what ran on the GPU has our kernels' name"


@needs_cuda
def test_the_proof_would_see_triton(tmp_path):
    """Its positive control: the same steps through Inductor show Triton's kernels, and fail where
    it is refused.
    """
    pytest.importorskip("triton", reason="Triton is not installed, so nothing can be allowed")
    (tmp_path / "allowed").mkdir()
    said = report(tmp_path / "allowed", "cuda", "inductor", "allow")
    assert (
        said["error"] is None
        and said["inductor_kernels"]
        and said["triton_files"]
        and said["triton_modules"]
    )
    assert [name for name in said["events"] if name.startswith("triton_")]
    (tmp_path / "refused").mkdir()
    assert "Triton" in report(tmp_path / "refused", "cuda", "inductor", "refuse")["error"]

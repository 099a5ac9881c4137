"""How fast is attention, kernel by kernel, and a step of 8B, on one GPU? One run, ways in turns,
medians, fresh memory.

    python -m benchmarks.gpu [--json FILE] [--repeats 7] [--quick] [--device cpu]

Ceilings first: what a copy moves and what a matrix product computes a second, here and now. Then
each attention kernel in a prompt and in a step of 8B's shape, then whole steps and a whole prompt
of a random 8B in bfloat16: the chapters' model as it is, as one graph (chapter 11d), and as
PyTorch's own compiler makes it where Triton is installed. A way that this machine does not have is
named with the reason. --device cpu with --quick: does the script run at all?
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import minillama
from minillama.attention import AttentionMask
from minillama.inference.attention_backends import BACKENDS, use_attention
from minillama.inference.decode_graph import GraphStep, RecordedStep, through_block
from minillama.kernels.attention import MAX_SPLIT_ROWS, run_kernel
from minillama.kernels.tensor_cores import ATTENTION_KERNELS


HEADS, KV_HEADS, WIDTH = 32, 8, 128  # 8B's
PROMPTS, CACHES, CONTEXTS = (1024, 2048, 8192), (1024, 8192, 32_768, 131_072), (128, 2048, 8192)
# bytes that are touched before the same are touched again: more than any cache on the chip
FRESH = 256 << 20


def seconds(calls: list[Callable], device: str, at_least=0.05) -> float:
    """Seconds of one call, from a row of calls that takes at least so long; calls are made in
    turns.
    """
    count = len(calls)
    while True:
        took = timed(lambda count=count: [calls[i % len(calls)]() for i in range(count)], device)
        if took >= at_least:
            return took / count
        count = math.ceil(count * min(20, 1.2 * at_least / max(took, 1e-6)))


def timed(f: Callable, device: str) -> float:
    """Seconds on the device's own clock, or on the wall's where it has none."""
    if device == "cpu":
        start = time.perf_counter()
        f()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    f()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def in_turns(ways: dict[str, list[Callable]], device: str, repeats: int) -> tuple[dict, dict]:
    """({way: median seconds}, {way: why it did not run}); the first round warms up."""
    runs, missing = {name: [] for name in ways}, {}
    for repeat in range(repeats + 1):
        for name in sorted(ways, reverse=repeat % 2):  # neither is always first
            if name in missing:
                continue
            try:
                runs[name].append(seconds(ways[name], device))
            except RuntimeError as error:  # no memory is one, too
                missing[name] = reason(error)
    return {
        name: statistics.median(took[1:]) for name, took in runs.items() if name not in missing
    }, missing


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def settled(call: Callable, device: str, repeats: int) -> float:
    """Median seconds of one call after a first time that warms up."""
    return statistics.median([seconds([call], device) for _ in range(repeats + 1)][1:])


def ceilings(device: str, repeats: int, size: int) -> dict:
    """Bytes a second of a copy (read and written both count), operations a second of a product of
    random matrices.
    """
    a = torch.empty(size * size * 8, dtype=torch.bfloat16, device=device).normal_()
    b = torch.empty_like(a)
    x, y = (torch.randn(size, size, device=device).bfloat16() for _ in "xy")
    took, _ = in_turns({"copy": [lambda: b.copy_(a)], "product": [lambda: x @ y]}, device, repeats)
    return {
        "copy_bytes_per_s": 2 * a.nbytes / took["copy"],
        "matmul_flops_per_s": 2 * size**3 / took["product"],
    }


def questions(T: int, S: int, device: str) -> list[tuple]:
    """Random q, k, v of T queries, the last of S tokens, often enough that none is still in a cache
    on the chip.
    """
    each = 2 * WIDTH * (2 * HEADS * T + 2 * KV_HEADS * S)
    count = math.ceil(FRESH / each) if device == "cuda" else 1
    made = [(HEADS, T), (KV_HEADS, S), (KV_HEADS, S)]
    return [
        tuple(torch.randn(1, n, t, WIDTH, device=device, dtype=torch.bfloat16) for n, t in made)
        for _ in range(count)
    ]


def cudnn(q, k, v, length):
    """PyTorch's way to cuDNN's kernel; a causal mask only where queries and keys are equally
    many.
    """
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        causal = q.shape[2] > 1
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=True
        )


def attention_ways(T: int, S: int, device: str) -> dict[str, Callable]:
    """Name -> f(q, k, v, length on the device), all with the same answer."""
    positions = torch.arange(S - T, S, device=device)

    def known(name):
        """The backend, when the length is a number."""
        return lambda q, k, v, n: BACKENDS[name].attend(q, k, v, AttentionMask(positions, S))

    def on_device(name):
        return lambda q, k, v, n: BACKENDS[name].attend(q, k, v, AttentionMask(positions, n))

    ways = {"sdpa": known("sdpa")}
    if T == 1 or T <= 2048:
        ways["naive"] = known("naive")
    if device == "cpu":
        return ways | {"fused": on_device("fused")}
    if T == 1:
        ways["flash, length on the device"] = on_device("sdpa")
    ways["cudnn"] = cudnn
    for name, variant in ATTENTION_KERNELS.items():
        if name != "combine" and (variant.rows or T * HEADS // KV_HEADS <= MAX_SPLIT_ROWS):
            ways[name] = lambda q, k, v, n, variant=variant: run_kernel(variant, q, k, v, n)
    return ways


def measure_attention(
    phase: str, T: int, S: int, device: str, repeats: int
) -> tuple[list[dict], dict]:
    """One row of the table per way: seconds, and the least bytes and the operations that any way
    needs.
    """
    made, length = questions(T, S, device), torch.tensor([S], dtype=torch.int32, device=device)
    ways = {
        name: [lambda f=f, qkv=qkv: f(*qkv, length) for qkv in made]
        for name, f in attention_ways(T, S, device).items()
    }
    took, missing = in_turns(ways, device, repeats)
    seen = T * (2 * S - T + 1) / 2  # pairs of a query and a key that it may look at
    cost = {
        "bytes": 2 * WIDTH * (2 * HEADS * T + 2 * KV_HEADS * S),
        "flops": 4 * WIDTH * HEADS * seen,
    }
    shape = {"heads": HEADS, "kv_heads": KV_HEADS, "width": WIDTH, "queries": T, "keys": S}
    rows = [
        {"way": name, "phase": phase, "shape": shape, "seconds": s} | cost
        for name, s in took.items()
    ]
    return rows, missing


class WholeStep(RecordedStep):
    """A step of which PyTorch's own compiler makes one function, Triton where it wants it; then one
    graph as ours.
    """

    compiled = None

    def once(self):
        if self.compiled is None:
            # of one size, not of any
            self.layers = [(block, k.detach(), v.detach()) for block, k, v in self.layers]
            self.compiled = torch.compile(super().once, fullgraph=True, dynamic=False)
        return self.compiled()


class ThroughInductor(GraphStep):
    """GraphStep with WholeStep for a step."""

    def __call__(self, token, cache):
        if cache not in self.steps:
            self.steps[cache] = WholeStep(self.model, through_block, cache)
        return super().__call__(token, cache)


def random_model(cfg: minillama.LlamaConfig, device: str) -> minillama.Llama:
    """A model of this shape in bfloat16 whose numbers are random; it is never held in float32."""
    with torch.device("meta"):
        model = minillama.Llama(cfg).bfloat16()
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.normal_(1.0 if "norm" in name else 0.0, 0.02)
    return model


def writers(model: minillama.Llama, device: str) -> dict[str, Callable]:
    """Name -> a function that gives the model this way to take a step."""

    def using(name: str, step=None):
        def use() -> None:
            use_attention(model, name)
            model.decode_step = step(model) if step else None

        return use

    sides = {f"{name}, launched one by one": using(name) for name in ("naive", "sdpa", "fused")}
    sides |= {f"{name}, one graph": using(name, GraphStep) for name in ("sdpa", "fused")}
    if device == "cpu" or importlib.util.find_spec("triton"):
        sides["sdpa, torch.compile"] = using("sdpa", ThroughInductor)
    return sides


def measure_model(cfg, device: str, repeats: int, contexts, prompt: int) -> dict:
    """Steps and a prompt of a random model: seconds, tokens a second, and the floor that a copy's
    speed sets.
    """
    model, missing = random_model(cfg, device), {}
    embedding = model.embedding.weight
    weights = sum(p.nbytes for p in model.parameters()) - (
        0 if cfg.tied_embeddings else embedding.nbytes
    )
    result = {"weight_bytes": weights, "steps": [], "prompt": [], "missing": missing}
    cache = minillama.KVCache(cfg, 1, max(max(contexts) + 64, prompt), torch.bfloat16, device)
    token = torch.full((1, 1), 5, device=device)

    def run(tokens, context):
        cache.length = context
        return model(tokens, cache, last=1)

    for name, use in tqdm(writers(model, device).items(), desc="steps of a model", leave=False):
        try:
            use()
            for context in contexts:
                took = settled(lambda c=context: run(token, c), device, repeats)
                slots = 2 * cache.keys[:, :, :, :1].nbytes * (context + 1)
                result["steps"].append(
                    {"way": name, "context": context, "seconds": took, "bytes": weights + slots}
                )
        except Exception as error:  # torch.compile raises its own kinds
            missing[name] = reason(error)
    ids = torch.randint(cfg.vocab_size, (1, prompt), device=device)
    blocks = sum(p.numel() for b in model.blocks for p in b.parameters())
    flops = 2 * blocks * prompt + 2 * cfg.n_layers * cfg.n_heads * cfg.head_dim * prompt * (
        prompt + 1
    )
    for name in ("sdpa", "fused"):
        try:
            use_attention(model, name)
            took = settled(lambda: run(ids, 0), device, repeats)
            result["prompt"].append(
                {"way": name, "tokens": prompt, "seconds": took, "flops": flops}
            )
        except (RuntimeError, ValueError) as error:
            missing[f"{name}, a prompt"] = reason(error)
    return result


def machine(device: str) -> dict:
    """What the figures depend on."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if device == "cpu":
        return {"gpu": None, "cpu": platform.processor(), "versions": versions}
    versions["cudnn"] = torch.backends.cudnn.version()
    about = torch.cuda.get_device_properties(0)
    return {
        "gpu": about.name,
        "multiprocessors": about.multi_processor_count,
        "memory_bytes": about.total_memory,
        "versions": versions,
    }


def print_tables(result: dict) -> None:
    copy, product = result["ceilings"]["copy_bytes_per_s"], result["ceilings"]["matmul_flops_per_s"]
    print(
        f"\n{result['machine']['gpu']}: a copy {copy / 1e12:.2f} TB/s, a product "
        f"{product / 1e12:.0f} TFLOP/s\n"
    )
    print(
        f"{'attention':32}{'queries':>8}{'keys':>8}{'ms':>10}{'TB/s':>8}{'TFLOP/s':>9}{'of its ceiling':>16}"
    )
    for row in result["attention"]:
        moved, computed = row["bytes"] / row["seconds"], row["flops"] / row["seconds"]
        T, S = row["shape"]["queries"], row["shape"]["keys"]
        share = max(moved / copy, computed / product)
        speeds = f"{1e3 * row['seconds']:10.3f}{moved / 1e12:8.2f}{computed / 1e12:9.0f}"
        print(f"{row['way']:32}{T:8}{S:8}{speeds}{share:16.0%}")
    print(
        f"\n{'a step of ' + result['model']:44}{'context':>8}{'ms':>10}{'tokens/s':>10}{'of its floor':>14}"
    )
    for row in result["decode"]["steps"]:
        share = row["bytes"] / copy / row["seconds"]
        speed = 1 / row["seconds"]
        print(
            f"{row['way']:44}{row['context']:8}{1e3 * row['seconds']:10.3f}{speed:10.1f}{share:14.0%}"
        )
    for row in result["decode"]["prompt"]:
        share = row["flops"] / row["seconds"] / product
        print(
            f"a prompt of {row['tokens']}, {row['way']}: {row['seconds']:.3f} s, {share:.0%} of "
            f"the product's speed"
        )
    for name, why in (result["missing"] | result["decode"]["missing"]).items():
        print(f"not there: {name}: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine here")
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, once: does it run at all?"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.device_count():
        parser.error("there is no CUDA device here; --device cpu --quick tries the script")
    name = "debug" if args.quick else "llama-3.1-8b"
    prompts, caches, contexts, repeats = PROMPTS, CACHES, CONTEXTS, args.repeats
    if args.quick:
        prompts, caches, contexts, repeats = (64,), (128,), (16, 40), 1
    torch.manual_seed(0)
    result = {
        "machine": machine(args.device),
        "repeats": repeats,
        "model": name,
        "attention": [],
        "missing": {},
    }
    with torch.inference_mode():
        result["ceilings"] = ceilings(args.device, repeats, 256 if args.quick else 8192)
        shapes = [("prefill", n, n) for n in prompts] + [("decode", 1, n) for n in caches]
        for phase, T, S in tqdm(shapes, desc="attention", leave=False):
            rows, missing = measure_attention(phase, T, S, args.device, repeats)
            result["attention"] += rows
            result["missing"] |= {f"{way}, {phase}": why for way, why in missing.items()}
        cfg = minillama.LlamaConfig.named(name)
        # the kernels know heads of 64 and 128
        cfg = dataclasses.replace(cfg, head_dim=64) if args.quick else cfg
        result["decode"] = measure_model(cfg, args.device, repeats, contexts, prompts[-1])
    print_tables(result)
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

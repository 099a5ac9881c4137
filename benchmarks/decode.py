"""How fast does each engine write? Same weights, same threads, one run, engines taken in turns;
medians.

    python benchmarks/decode.py [--repeats 5] [--contexts 64 128 ...] [--json FILE] [--plot FILE] [--quick] [--eight-b]

Ours in every mode, transformers (its own cache and forward pass, without generate()'s overhead;
once with it), and llama.cpp where llama-cpp-python is installed (pip install -e '.[bench]'): from
the file, Q4_1, and the same weights as Q4_0, for which it has faster code on some processors. Its
speed depends on the instructions that it was built for; they are printed and kept beside the
figures. Beside them the memory roofline of this run: what a plain sum over a buffer of the int4
weights' size reads per second, divided by the bytes that a token needs.
"""

import argparse
import copy
import ctypes
import json
import os
import platform
import re
import statistics
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

import minillama
from minillama.checkpoints import hub
from minillama.generation import next_logits
from minillama.inference.compilation import CompiledStep
from minillama.inference.quantization import Int4Linear, Int8Linear, model_bytes


NAME = "smollm2-135m-instruct"
CONTEXTS, BATCHES, PREFILL, NEW = (64, 128, 512, 2048, 8100), (1, 2, 4, 8, 16), 512, 16
TEXT = "The sea was calm, and the boat went on through the night without a light. "


class Ours:
    """A model of ours with a cache; `at` puts the cache at a length, whatever it holds."""

    def __init__(self, model, rows=1, capacity=8192):
        self.model, self.bytes = model, model_bytes(model)
        self.cache = minillama.KVCache(model.cfg, rows, capacity, model.dtype)
        self.token = torch.full((rows, 1), 5)
        self.bytes_per_slot = 2 * self.cache.keys[:, 0, :, 0].nbytes

    def read(self, ids: list[int]) -> None:
        self.cache.length = 0
        next_logits(self.model, torch.tensor([ids]), self.cache)

    def at(self, length: int) -> None:
        self.cache.length = length

    def step(self) -> None:
        next_logits(self.model, self.token, self.cache).argmax().item()


class Transformers:
    """transformers' model from the same file."""

    def __init__(self, path: Path, dtype: torch.dtype):
        transformers.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        kind = transformers.LlamaForCausalLM
        self.model = kind.from_pretrained(str(path.parent), gguf_file=path.name, dtype=dtype).eval()
        self.bytes, cfg = model_bytes(self.model), self.model.config
        self.bytes_per_slot = (
            2 * cfg.num_hidden_layers * cfg.num_key_value_heads * cfg.head_dim * dtype.itemsize
        )
        self.rows = 1

    def read(self, ids: list[int]) -> None:
        cache = transformers.DynamicCache(config=self.model.config)
        self.model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)

    def at(self, length: int) -> None:
        cfg, self.cache = self.model.config, transformers.DynamicCache(config=self.model.config)
        for layer in range(cfg.num_hidden_layers):
            past = torch.zeros(
                self.rows, cfg.num_key_value_heads, length, cfg.head_dim, dtype=self.model.dtype
            )
            self.cache.update(past, past.clone(), layer)

    def step(self) -> None:
        token = torch.full((self.rows, 1), 5)
        out = self.model(token, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        out.logits[:, -1].argmax(-1, keepdim=True).sum().item()

    def generate(self, ids: list[int], count: int) -> float:
        """Seconds per token of generate(), the prompt's included."""
        start = time.perf_counter()
        self.model.generate(
            torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
        return (time.perf_counter() - start) / count


def requantized(path: Path, folder: str) -> Path:
    """The file once more with matrices in Q4_0, as llama.cpp itself writes it."""
    import llama_cpp

    params, target = llama_cpp.llama_model_quantize_default_params(), Path(folder) / "q4_0.gguf"
    params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    if llama_cpp.llama_model_quantize(
        str(path).encode(), str(target).encode(), ctypes.byref(params)
    ):
        raise RuntimeError("llama.cpp could not write Q4_0")
    return target


def instructions() -> str:
    """What llama.cpp was built for, as it says itself: AVX2, FMA ..."""
    import llama_cpp

    found = re.findall(r"(\w+) = 1", llama_cpp.llama_print_system_info().decode())
    return ", ".join(name for name in found if name not in ("LLAMAFILE", "OPENMP"))


class LlamaCpp:
    """llama.cpp on a GGUF file; its cache is filled once, then cut back, and restored where it is
    too short.
    """

    def __init__(self, path: Path, threads: int, longest: int):
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=8192,
            n_threads=threads,
            n_threads_batch=threads,
            n_batch=512,
            verbose=False,
        )
        cfg = hub.open_checkpoint(path).cfg
        self.bytes, self.bytes_per_slot = (
            path.stat().st_size,
            2 * 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim,
        )
        self.model.eval(self.model.tokenize(TEXT.encode() * 500)[:longest])
        self.full = self.model.save_state()

    def read(self, ids: list[int]) -> None:
        self.model.n_tokens = 0
        self.model.eval(ids)

    def at(self, length: int) -> None:
        if self.model.n_tokens < length:
            self.model.load_state(self.full)
        self.model.n_tokens = length  # eval() discards what comes after

    def step(self) -> None:
        self.model.eval([5])
        self.model.scores[0].argmax()  # it reads the logits out, as we do


def compiled(model, packages: Path, whole=False) -> minillama.Llama:
    """A model with the same weights whose decode step is compiled."""
    model = copy.copy(model)
    model.decode_step = CompiledStep(model, packages, whole)
    return model


def engines(path: Path, threads: int, longest: int, quick: bool) -> dict:
    """Name -> engine. Compiled modes share their weights with the plain ones."""
    packages, made = hub.cache_dir() / "compiled", {}
    modes = (("float32", torch.float32, None), ("bfloat16", torch.bfloat16, None))
    modes += (("int8", torch.bfloat16, "int8"), ("int4", torch.bfloat16, "int4"))
    for name, dtype, quantize in tqdm(
        modes[-1:] if quick else modes, desc="load and compile", leave=False
    ):
        model, _ = minillama.load(path, dtype=dtype, quantize=quantize)
        made[name], made[f"{name}, compiled"] = Ours(model), Ours(compiled(model, packages))
        if name == "int4" and not quick:
            made["int4, compiled max"] = Ours(compiled(model, packages, whole=True))
    if not quick:
        made["transformers float32"] = Transformers(path, torch.float32)
        made["transformers bfloat16"] = Transformers(path, torch.bfloat16)
    try:
        made["llama.cpp Q4_1"] = LlamaCpp(path, threads, longest)
        with tempfile.TemporaryDirectory() as folder:
            made["llama.cpp Q4_0"] = LlamaCpp(requantized(path, folder), threads, longest)
    except ImportError:
        print(
            "llama.cpp: not measured, llama-cpp-python is not installed (pip install -e '.[bench]')"
        )
    return made


def seconds(work, count=1) -> float:
    """Seconds for each of `count` calls."""
    start = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - start) / count


def bandwidth(size: int) -> float:
    """Bytes a second of a plain sum over a float32 buffer."""
    buffer = torch.ones(size // 4)
    return 4 * (size // 4) / min(seconds(buffer.sum) for _ in range(5))


def measure(sides: dict, ids: list[int], contexts, repeats: int) -> dict:
    """{engine: {"decode": {context: tokens/s}, "prefill": tokens/s, "bytes": ...}} and "roofline"
    in bytes a second.
    """
    decode = {name: {context: [] for context in contexts} for name in sides}
    prefill, roofline = {name: [] for name in sides}, []
    for repeat in tqdm(range(repeats + 1), desc="measure", leave=False):  # the first only warms up
        order = sorted(sides, reverse=repeat % 2)  # neither is always first
        for context in contexts:
            roofline.append(bandwidth(95_000_000))
            for name in order:
                sides[name].at(context - NEW // 2)
                decode[name][context].append(1 / seconds(sides[name].step, NEW))
        for name in order:
            prefill[name].append(len(ids) / seconds(lambda name=name: sides[name].read(ids)))
    result = {"roofline": statistics.median(roofline), "engines": {}}
    for name, side in sides.items():
        speeds = {
            context: 1 / statistics.median([1 / s for s in runs[1:]])
            for context, runs in decode[name].items()
        }
        result["engines"][name] = {
            "decode": speeds,
            "prefill": statistics.median(prefill[name][1:]),
            "bytes": side.bytes,
            "bytes_per_slot": side.bytes_per_slot,
        }
    return result


def measure_batches(sides: dict, repeats: int) -> dict:
    """{engine: {rows: tokens/s of all rows together}} at a context of 128."""
    result = {}
    for name in ("bfloat16", "int4", "transformers bfloat16"):
        if name not in sides:
            continue
        result[name] = {}
        for rows in tqdm(BATCHES, desc=f"batches, {name}", leave=False):
            side = sides[name]
            if isinstance(side, Ours):
                side = Ours(side.model, rows, 256)
            else:
                side.rows = rows
            side.at(128)
            seconds(side.step, 2)
            result[name][rows] = rows / statistics.median(
                seconds(side.step, 4) for _ in range(repeats)
            )
            if not isinstance(side, Ours):
                side.rows = 1
    return result


def eight_billion(repeats: int) -> dict:
    """A model of Llama 3.1 8B's shape in four bits, random: bytes of weights it moves per second
    while it writes.
    """
    cfg = minillama.LlamaConfig.named("llama-3.1-8b")
    with torch.device("meta"):
        model = minillama.Llama(cfg).bfloat16().eval()
    for block in tqdm(model.blocks, desc="8B, random", leave=False):
        for part in (block.attention, block.feed_forward):
            for name, layer in list(part.named_children()):
                shape = layer.weight.shape
                levels = torch.randint(16, shape, dtype=torch.uint8)
                step = torch.full((shape[0], shape[1] // 32), 0.004)
                setattr(part, name, Int4Linear(levels, step, -7.5 * step))
        for norm in (block.attention_norm, block.ffn_norm):
            norm.weight = torch.nn.Parameter(
                torch.ones(cfg.dim, dtype=torch.bfloat16), requires_grad=False
            )
    model.norm.weight = torch.nn.Parameter(
        torch.ones(cfg.dim, dtype=torch.bfloat16), requires_grad=False
    )
    table = torch.empty(cfg.vocab_size, cfg.dim, dtype=torch.bfloat16).normal_(std=0.02)
    model.embedding.weight, model.head = (
        torch.nn.Parameter(table, requires_grad=False),
        Int8Linear(table),
    )
    side = Ours(compiled(model, hub.cache_dir() / "compiled"), capacity=256)
    side.read([1, 2, 3, 4, 5, 6, 7, 8])
    side.at(128)
    each = statistics.median(seconds(side.step) for _ in range(repeats + 3))
    read = side.bytes - table.nbytes  # of the embedding a token reads one row
    return {"bytes": side.bytes, "tokens_per_second": 1 / each, "bytes_per_second": read / each}


def machine() -> dict:
    """What the figures depend on."""
    names = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
    model = next(
        (line.split(":")[1].strip() for line in names if line.startswith("model name")),
        platform.processor(),
    )
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "llama-cpp-python"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if "llama-cpp-python" in versions:
        versions["llama.cpp's instructions"] = instructions()
    about = {
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
    }
    return about | {"threads": torch.get_num_threads(), "versions": versions}


def print_table(result: dict) -> None:
    contexts = next(iter(result["engines"].values()))["decode"]
    print(
        f"\ntokens/s{'':18}"
        + "".join(f"{f'at {c}':>9}" for c in contexts)
        + f"{'prompt':>9}{'MB':>7}  of roofline"
    )
    for name, row in result["engines"].items():
        ceiling = result["roofline"] / (row["bytes"] + 128 * row["bytes_per_slot"])
        share = row["decode"].get(128, next(iter(row["decode"].values()))) / ceiling
        speeds = "".join(f"{speed:9.1f}" for speed in row["decode"].values())
        print(f"{name:26}{speeds}{row['prefill']:9.0f}{row['bytes'] / 1e6:7.0f}{share:9.0%}")
    print(f"roofline: {result['roofline'] / 1e9:.1f} GB/s")
    print("; ".join(f"{name} {value}" for name, value in result["machine"]["versions"].items()))
    for ours, theirs in (
        ("int4, compiled", "llama.cpp Q4_1"),
        ("int4, compiled max", "llama.cpp Q4_1"),
        ("int4, compiled", "llama.cpp Q4_0"),
        ("int4, compiled max", "llama.cpp Q4_0"),
        ("float32, compiled", "transformers float32"),
        ("bfloat16, compiled", "transformers bfloat16"),
    ):
        if {ours, theirs} <= result["engines"].keys():
            a, b = result["engines"][ours], result["engines"][theirs]
            ratios = "  ".join(f"{a['decode'][c] / b['decode'][c]:.2f} at {c}" for c in contexts)
            print(f"{ours} / {theirs}: {ratios}  prompt {a['prefill'] / b['prefill']:.1f}")
    for name, rows in result.get("batches", {}).items():
        print(
            f"rows together, {name}: " + "  ".join(f"{n}: {speed:.0f}" for n, speed in rows.items())
        )
    if "generate" in result:
        print(f"transformers' generate(), float32, at 64: {result['generate']:.1f} tokens/s")
    if "8b" in result:
        big, small = result["8b"], result["engines"]["int4, compiled"]
        moved = small["bytes"] * small["decode"][128]
        print(
            f"8B in int4 ({big['bytes'] / 1e9:.2f} GB): {big['tokens_per_second']:.2f} tokens/s, "
            f"moving "
            f"{big['bytes_per_second'] / 1e9:.1f} GB/s of weights; the small model's int4 "
            f"{moved / 1e9:.1f} GB/s"
        )


PLAIN, FAST, PEER, ENGINE = "#56B4E9", "#0072B2", "#999999", "#D55E00"  # the series' colours
PANELS = {
    "float32": [
        ("float32", "ours", PLAIN),
        ("float32, compiled", "compiled", FAST),
        ("transformers float32", "transformers", PEER),
    ],
    "bfloat16": [
        ("bfloat16", "ours", PLAIN),
        ("bfloat16, compiled", "compiled", FAST),
        ("transformers bfloat16", "transformers", PEER),
    ],
    "8 bits": [("int8", "ours", PLAIN), ("int8, compiled", "compiled", FAST)],
    "4 bits": [
        ("int4", "ours", PLAIN),
        ("int4, compiled", "compiled", FAST),
        ("llama.cpp Q4_1", "llama.cpp", ENGINE),
        ("llama.cpp Q4_0", "llama.cpp Q4_0", ENGINE),
    ],
}


def draw(ax, lines: list[tuple], title: str, xlabel: str) -> None:
    """Curves (x -> y, label, colour), each labelled at its right end; labels do not overlap."""
    for curve, _, colour in lines:
        ax.plot([int(x) for x in curve], curve.values(), "o-", color=colour, markersize=3.5, lw=1.6)
    ends = sorted((list(curve.values())[-1], label, colour) for curve, label, colour in lines)
    top, at = max(max(curve.values()) for curve, *_ in lines), -1.0
    right = max(int(x) for curve, *_ in lines for x in curve)
    for y, label, colour in ends:
        at = max(y, at + 0.075 * top)
        ax.annotate(
            label, (right, at), (5, 0), textcoords="offset points", color=colour, va="center"
        )
    ax.set(ylim=(0, 1.1 * top), xlabel=xlabel)
    ax.set_title(title, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#eeeeee")


def plot(result: dict, path: Path) -> None:
    """Tokens/s over context length for each kind of weights, and over conversations at once."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10})
    fig, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    fig.get_layout_engine().set(wspace=0.1, hspace=0.08)
    engines = result["engines"]
    for ax, (title, rows) in zip(axes.flat, PANELS.items(), strict=False):
        lines = [(engines[n]["decode"], label, c) for n, label, c in rows if n in engines]
        if lines:
            draw(ax, lines, f"{title}: tokens/s", "tokens in the cache")
            ax.set_xscale("log")
            contexts = [int(c) for c in lines[0][0]]
            ax.set_xticks(contexts, [f"{c:,}" for c in contexts])
            ax.minorticks_off()
    colours = {"bfloat16": PLAIN, "int4": FAST}
    rows = [(rows, n, colours.get(n, PEER)) for n, rows in result.get("batches", {}).items()]
    if rows:
        draw(axes.flat[4], rows, "tokens/s of all, not compiled", "conversations at once")
    for ax in axes.flat:
        ax.set_visible(ax.has_data())
    fig.savefig(path, dpi=110)
    plt.close(fig)


def keep(result: dict, args) -> None:
    """Print the figures, and write what was asked for."""
    print_table(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        plot(result, Path(args.plot))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=list(CONTEXTS), help="up to 8,180"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine here")
    parser.add_argument("--plot", metavar="FILE", help="write the picture here")
    parser.add_argument(
        "--quick", action="store_true", help="int4 only, one context, once: does it run at all?"
    )
    parser.add_argument(
        "--eight-b", action="store_true", help="also a random model of 8B's shape (needs 12 GB)"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    contexts, repeats = ([64], 1) if args.quick else (sorted(args.contexts), args.repeats)
    path = hub.fetch(NAME)
    ids = minillama.load(path)[1].encode(TEXT * 60)[: 64 if args.quick else PREFILL]
    with torch.inference_mode():
        sides = engines(path, args.threads, contexts[-1], args.quick)
        result = {"weights": NAME, "repeats": repeats, "machine": machine()} | measure(
            sides, ids, contexts, repeats
        )
        if not args.quick:
            result["batches"] = measure_batches(sides, repeats)
            theirs = sides["transformers float32"]
            result["generate"] = 1 / statistics.median(
                theirs.generate(ids[:64], 32) for _ in range(3)
            )
        keep(result, args)
        if args.eight_b:
            sides.clear()
            result["8b"] = eight_billion(repeats)
            keep(result, args)


if __name__ == "__main__":
    main()

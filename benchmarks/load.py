"""How fast, and in how much memory, does a checkpoint of the 8B model's shape load? Beside a plain
read of its files.

    python benchmarks/load.py [--layers 32] [--folder DIR] [--keep] [--repeats 3] [--json FILE]

Writes a Hugging Face folder of random bfloat16 numbers (16 GB with all 32 layers, in shards of 5
GB) into a temporary folder, then takes turns, each in a process of its own and with the files
dropped from the page cache: read every byte into one small buffer; read every byte and keep it, the
least that any loader can do; load the model with minillama. Peak memory is what the system counted,
less what Python and torch take before loading; the goal is the model plus its largest tensor plus
10 percent.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from minillama import Llama, LlamaConfig
from minillama.checkpoints.names import HUGGING_FACE


SHARD = 5_000_000_000
BLOCK = 1 << 24


def tensor_shapes(cfg: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names and shapes of a model's tensors, in the model's order."""
    theirs = {ours: name for name, ours in HUGGING_FACE.items()}
    with torch.device("meta"):
        parameters = Llama(cfg).named_parameters()
    shapes = {}
    for name, parameter in parameters:
        number = next((part for part in name.split(".") if part.isdigit()), None)
        pattern = name if number is None else name.replace(number, "N", 1)
        shapes[theirs[pattern].replace("N", str(number))] = tuple(parameter.shape)
    return shapes


def write_random(folder: Path, cfg: LlamaConfig) -> None:
    """A Hugging Face folder of that shape: small random numbers, the same block of them over and
    over.
    """
    shards, size = [[]], 0
    for name, shape in tensor_shapes(cfg).items():
        n_bytes = 2 * math.prod(shape)
        if size + n_bytes > SHARD:
            shards, size = [*shards, []], 0
        shards[-1].append((name, shape, n_bytes))
        size += n_bytes
    generator = torch.Generator().manual_seed(0)
    block = (
        (torch.randn(BLOCK // 2, generator=generator) / 50)
        .bfloat16()
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )
    index = {}
    for i, shard in enumerate(tqdm(shards, "writing", unit="shard", disable=None), 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        header, at = {}, 0
        for name, shape, n_bytes in shard:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n_bytes]}
            index[name], at = file, at + n_bytes
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as sink:
            sink.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, at, BLOCK):
                sink.write(block[: at - start])
            sink.flush()
            os.fsync(sink.fileno())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index}), encoding="utf-8"
    )
    config = dict(
        model_type="llama",
        hidden_size=cfg.dim,
        num_hidden_layers=cfg.n_layers,
        num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_kv_heads,
        head_dim=cfg.head_dim,
        intermediate_size=cfg.ffn_dim,
        vocab_size=cfg.vocab_size,
        rms_norm_eps=cfg.norm_eps,
        rope_theta=cfg.rope_theta,
        max_position_embeddings=cfg.max_seq_len,
    )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


PEAK = """
import resource, sys, time
from pathlib import Path
import torch, minillama
from minillama.checkpoints.assemble import assemble

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

files, before, start = sorted(Path(sys.argv[1]).glob("*.safetensors")), peak(), time.perf_counter()
"""
READ = (
    PEAK
    + """
buffer = bytearray(1 << 24)
for file in files:
    with open(file, "rb", buffering=0) as source:
        while source.readinto(buffer):
            pass
print(time.perf_counter() - start, peak() - before)
"""
)
KEEP = (
    PEAK
    + """
kept = []
for file in files:
    with open(file, "rb", buffering=0) as source:
        while True:
            data = torch.empty(1 << 24, dtype=torch.uint8)
            if not source.readinto(data.numpy()):
                break
            kept.append(data)
print(time.perf_counter() - start, peak() - before)
"""
)
LOAD = (
    PEAK
    + """
minillama.load(sys.argv[1], dtype=torch.bfloat16)
print(time.perf_counter() - start, peak() - before)
"""
)


def forget(folder: Path) -> None:
    """Ask the system to drop the files from its page cache, so that both sides start cold."""
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(program: str, folder: Path) -> tuple[float, int]:
    """Seconds, and peak bytes above the start, of a program in a fresh process."""
    forget(folder)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


def measure(folder: Path, cfg: LlamaConfig, repeats: int) -> dict:
    sizes = [2 * math.prod(shape) for shape in tensor_shapes(cfg).values()]
    programs = {"read": READ, "read and keep": KEEP, "minillama": LOAD}
    runs = {name: [] for name in programs}
    for i in range(repeats):
        for name, program in sorted(programs.items(), reverse=i % 2):
            runs[name].append(run(program, folder))
            print(f"{name:13s} {runs[name][-1][0]:6.1f} s", file=sys.stderr, flush=True)
    seconds = {name: statistics.median(second for second, _ in each) for name, each in runs.items()}
    peak = max(peak for _, peak in runs["minillama"])
    return {
        "bytes": sum(sizes),
        "largest_tensor": max(sizes),
        "layers": cfg.n_layers,
        "seconds": seconds,
        "rate": {name: sum(sizes) / second for name, second in seconds.items()},
        "peak": peak,
        "peak_over_model": peak / sum(sizes),
        "peak_over_goal": peak / (1.1 * (sum(sizes) + max(sizes))),
        "torch": torch.__version__,
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32, help="32 is the 8B model (%(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where to write the checkpoint (a temporary folder)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="use the folder as it is, and leave it there"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result here too")
    args = parser.parse_args()
    cfg = replace(LlamaConfig.named("llama-3.1-8b"), n_layers=args.layers, rope_scaling=None)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="minillama-load-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (args.keep and (folder / "config.json").exists()):
            write_random(folder, cfg)
        result = measure(folder, cfg, args.repeats)
    finally:
        if not args.keep:
            shutil.rmtree(folder)
    rates, seconds = result["rate"], result["seconds"]
    print(
        f"{result['bytes'] / 1e9:.2f} GB, bfloat16, {args.layers} layers; median of {args.repeats} "
        f"cold runs each"
    )
    for name in rates:
        print(f"{name:13s} {seconds[name]:7.1f} s {rates[name] / 1e9:6.2f} GB/s")
    for name in ("read", "read and keep"):
        print(f"loading runs at {rates['minillama'] / rates[name]:.2f} of the rate of: {name}")
    print(
        f"peak {result['peak'] / 1e9:.2f} GB = {result['peak_over_model']:.3f} of the model, "
        f"{result['peak_over_goal']:.2f} of the goal (model + largest tensor, and 10 percent)"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Is minillama at least as fast as transformers? Same weights, threads and float32, runs taken in turns.

    python benchmarks/decode.py [--repeats 5] [--threads N] [--json FILE]

Prefill: 64 tokens, logits of the last one only, as transformers' generate() does it.
Decode: 48 tokens, one at a time, after a prompt of 16; transformers without generate()'s overhead.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

import minillama
from minillama import hub


NAME = "smollm2-135m-instruct"
PREFILL, PROMPT, NEW = 64, 16, 48


def load_theirs(path: Path):
    """transformers' model from our GGUF file, float32."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    model = transformers.LlamaForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    return model.eval()


def ours(model, ids: list[int], count: int) -> list[float]:
    """The moments at which each of `count` tokens was there, the start first."""
    times = [time.perf_counter()]
    for _ in minillama.generate(model, ids, max_new_tokens=count):
        times.append(time.perf_counter())
    return times


@torch.inference_mode()
def theirs(model, ids: list[int], count: int) -> list[float]:
    """The same with transformers' own cache, written as its generate() does it."""
    times = [time.perf_counter()]
    tokens, cache = torch.tensor([ids]), transformers.DynamicCache(config=model.config)
    for _ in range(count):
        logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        tokens = logits[:, -1].argmax(dim=-1, keepdim=True)
        tokens.item()
        times.append(time.perf_counter())
    return times


def tokens_per_second(generate, model, ids) -> tuple[float, float]:
    """Speed of prefill and of decode, once."""
    prefill = generate(model, ids[:PREFILL], 1)
    decode = generate(model, ids[:PROMPT], NEW + 1)
    return PREFILL / (prefill[1] - prefill[0]), NEW / (decode[-1] - decode[1])


def measure(repeats: int) -> dict:
    """Medians of alternating runs after one warm-up of each: {"prefill" or "decode": {"ours", "theirs", "ratio"}}."""
    path = hub.fetch(NAME)
    model, tokenizer = minillama.load(path)
    sides = {"ours": (ours, model), "theirs": (theirs, load_theirs(path))}
    ids = tokenizer.encode("The sea was calm, and the boat went on through the night without a light. " * 8)
    for generate, model in sides.values():
        tokens_per_second(generate, model, ids)
    speeds = {side: [] for side in sides}
    for repeat in range(repeats):
        for side, (generate, model) in sorted(sides.items(), reverse=repeat % 2):  # neither is always first
            speeds[side].append(tokens_per_second(generate, model, ids))
    result = {}
    for i, phase in enumerate(("prefill", "decode")):
        medians = {side: statistics.median(run[i] for run in runs) for side, runs in speeds.items()}
        result[phase] = medians | {"ratio": medians["ours"] / medians["theirs"]}
    return result


def machine() -> dict:
    """What the figures depend on."""
    names = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.processor())
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("torch", "transformers")}
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the machine here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = {
        "weights": NAME,
        "dtype": "float32",
        "repeats": args.repeats,
        "machine": machine(),
        **measure(args.repeats),
    }
    print(f"{NAME}, float32, {result['machine']['threads']} threads, {result['machine']['cpu']}")
    print(f"{'tokens/s':12}{'minillama':>12}{'transformers':>14}{'ratio':>8}")
    for phase in ("prefill", "decode"):
        row = result[phase]
        print(f"{phase:12}{row['ours']:12.1f}{row['theirs']:14.1f}{row['ratio']:8.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

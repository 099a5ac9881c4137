"""How fast does a model learn? Ours beside transformers from nothing, and LoRA beside peft; one
run, in turns; medians.

    python benchmarks/train.py [--repeats 7] [--rows 8] [--json FILE] [--only scratch|lora]

From nothing: a Llama of 6.6 million weights (vocabulary 4,096, width 256, 8 layers), rows of 256
tokens, AdamW, clipping, bfloat16 products, compiled; ours as `minillama train` does it, attending
in blocks, and with PyTorch's fused kernel; transformers in its ways to attend, with weights kept in
float32 (autocast, as ours) or in bfloat16. LoRA: SmolLM2-135M-Instruct, rank 8 on all seven layers,
not compiled. Every engine is a process of its own, so that its memory is its own; they take turns,
so that the machine's moods meet all of them. Memory is the most that a process held, less what it
held after its imports.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm


SHAPE = dict(
    dim=256, n_layers=8, n_heads=8, n_kv_heads=4, head_dim=32, ffn_dim=640, vocab_size=4096
)
LENGTH, NAME = 256, "smollm2-135m-instruct"
SCRATCH = {
    "ours": ("scratch_ours", dict(attention="blocks")),
    "ours, fused kernel": ("scratch_ours", dict(attention="sdpa")),
    "transformers, sdpa, autocast": ("scratch_theirs", dict(attention="sdpa", dtype="float32")),
    "transformers, sdpa, bfloat16": ("scratch_theirs", dict(attention="sdpa", dtype="bfloat16")),
    "transformers, eager, autocast": ("scratch_theirs", dict(attention="eager", dtype="float32")),
    "transformers, eager, bfloat16": ("scratch_theirs", dict(attention="eager", dtype="bfloat16")),
}
LORA = {
    "ours, LoRA": ("lora_ours", {}),
    "peft, LoRA, sdpa": ("lora_theirs", dict(attention="sdpa")),
    "peft, LoRA, eager": ("lora_theirs", dict(attention="eager")),
}


def ids(rows: int, vocab_size: int) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, LENGTH + 1), generator=torch.Generator().manual_seed(0))


def scratch_ours(rows: int, attention: str):
    """A step as `fit` makes it with the settings of `minillama train`, which attends in blocks."""
    from minillama import Llama, LlamaConfig
    from minillama.inference.attention_backends import use_attention
    from minillama.studies import story_model
    from minillama.training.loop import compile_loss

    model = Llama.from_scratch(LlamaConfig(**SHAPE, tied_embeddings=True, max_seq_len=2048), 0)
    use_attention(model, attention)
    return our_step(
        model, compile_loss(story_model.batch_loss), rows, SHAPE["vocab_size"], story_model.SETTINGS
    )


def our_step(model, loss_of, rows, vocab_size, settings):
    from minillama.training.optimizer import adamw, train_step
    from minillama.training.packing import shift

    tokens = ids(rows, vocab_size)
    batch, optimizer = (
        shift(tokens, torch.zeros_like(tokens)),
        adamw(model, settings),
    )
    return lambda: train_step(model, loss_of, [batch], optimizer, settings, 1e-4)


def scratch_theirs(rows: int, attention: str, dtype: str):
    import transformers

    cfg = transformers.LlamaConfig(
        vocab_size=SHAPE["vocab_size"],
        hidden_size=SHAPE["dim"],
        intermediate_size=SHAPE["ffn_dim"],
        num_hidden_layers=SHAPE["n_layers"],
        num_attention_heads=SHAPE["n_heads"],
        head_dim=SHAPE["head_dim"],
        num_key_value_heads=SHAPE["n_kv_heads"],
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    model = transformers.LlamaForCausalLM(cfg).to(getattr(torch, dtype))
    return their_step(
        model, torch.compile(model), rows, SHAPE["vocab_size"], autocast=dtype == "float32"
    )


def their_step(model, call, rows, vocab_size, autocast):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = ids(rows, vocab_size)[:, :-1]

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = call(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def lora_ours(rows: int):
    import minillama
    from minillama.inference.attention_backends import use_attention
    from minillama.studies import story_model
    from minillama.training import finetuning
    from minillama.training.optimizer import Settings

    model, tokenizer = minillama.load(NAME, dtype=torch.bfloat16)
    model = finetuning.add_lora(use_attention(model, "sdpa"), rank=8, alpha=16)
    settings = Settings(dtype="bfloat16")
    return our_step(model, story_model.batch_loss, rows, model.cfg.vocab_size, settings)


def lora_theirs(rows: int, attention: str):
    import peft
    import transformers

    from minillama.checkpoints import hub

    path = hub.fetch(NAME)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    model = transformers.LlamaForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.bfloat16, attn_implementation=attention
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    return their_step(model, model, rows, model.config.vocab_size, autocast=True)


def most_memory() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def work(pipe, build: str, options: dict, rows: int, threads: int) -> None:
    """An engine's process: builds it, then makes a step each time it is asked; answers with seconds
    and bytes.
    """
    torch.set_num_threads(threads)
    import peft  # noqa: F401
    import transformers  # noqa: F401

    import minillama  # noqa: F401

    before, step = most_memory(), globals()[build](rows, **options)
    while pipe.recv():
        start = time.perf_counter()
        step()
        pipe.send((time.perf_counter() - start, most_memory() - before))


def measure(engines: dict, rows: int, repeats: int, threads: int) -> dict:
    """Name -> median seconds of a step, and bytes; two steps first, which compile and are not
    counted.
    """
    context, running = multiprocessing.get_context("spawn"), {}
    seconds, memory = {name: [] for name in engines}, {}
    for name, (build, options) in engines.items():
        here, there = context.Pipe()
        process = context.Process(
            target=work, args=(there, build, options, rows, threads), daemon=True
        )
        process.start()
        running[name] = (process, here)
    for turn in tqdm(range(repeats + 2), desc="steps", disable=None):
        for name, (_, pipe) in running.items():
            pipe.send(True)
            took, memory[name] = pipe.recv()
            if turn >= 2:
                seconds[name].append(took)
    for process, pipe in running.values():
        pipe.send(False)
        process.join()
    tokens = rows * LENGTH
    return {
        name: {
            "tokens_per_second": tokens / statistics.median(each),
            "best": tokens / min(each),
            "bytes": memory[name],
        }
        for name, each in seconds.items()
    }


def show(results: dict) -> None:
    first = next(iter(results.values()))["tokens_per_second"]
    for name, result in results.items():
        speed = result["tokens_per_second"]
        print(
            f"{name:32} {speed:8,.0f} tokens/s   ours is {first / speed:4.2f}   "
            f"{result['bytes'] / 1e6:6,.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="(%(default)s)")
    parser.add_argument(
        "--rows", type=int, default=8, help="rows of 256 tokens in a batch (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)"
    )
    parser.add_argument("--only", choices=["scratch", "lora"])
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    results = {}
    for name, engines, rows in (
        ("scratch", SCRATCH, args.rows),
        ("lora", LORA, max(1, args.rows // 4)),
    ):
        if args.only in (None, name):
            results[name] = measure(engines, rows, args.repeats, args.threads)
            print(f"\n{name}: {rows} rows of {LENGTH}, {args.threads} threads")
            show(results[name])
    if args.json:
        about = {
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "threads": args.threads,
            "rows": args.rows,
            "repeats": args.repeats,
        }
        Path(args.json).write_text(json.dumps(about | results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

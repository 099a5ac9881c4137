"""What `verify` asks of a checkpoint by itself: published sizes, finite values, special tokens, a
known answer.
"""

import math
from dataclasses import replace

import torch

from minillama.config import SIZES, LlamaConfig, RopeScaling
from minillama.generation import generate


LLAMA_32 = dict(
    n_kv_heads=8, ffn_dim=8192, vocab_size=128_256, rope_scaling=RopeScaling(factor=32.0)
)
REFERENCE_CONFIGS = {name: LlamaConfig.named(name) for name in SIZES} | {
    "llama-3-8b": replace(LlamaConfig.named("llama-3.1-8b"), rope_scaling=None),
    "llama-3-70b": replace(LlamaConfig.named("llama-3.1-70b"), rope_scaling=None),
    "llama-3.2-1b": LlamaConfig(
        2048, 16, n_heads=32, head_dim=64, tied_embeddings=True, **LLAMA_32
    ),
    "llama-3.2-3b": LlamaConfig(
        3072, 28, n_heads=24, head_dim=128, tied_embeddings=True, **LLAMA_32
    ),
}
SHAPES = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "vocab_size")
SETTINGS = ("rope_theta", "rope_scaling", "tied_embeddings")
LLAMA_3_SPECIALS = {
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eom_id|>": 128008,
    "<|eot_id|>": 128009,
    "<|python_tag|>": 128010,
}
TEXT = (
    "The keeper counted 1,024 steps to the lamp. Im März schneite es noch; маяк стоял у моря. "
    "def climb(n): return sum(range(n))  # and in the evening he wrote the number down again."
)
# What Llama 3.1 8B Instruct answers to this raw prompt in bfloat16, greedily; later tokens vary
# with the version.
KNOWN_PROMPT = "Tell me about the french revolution."
KNOWN_ANSWER = (
    " The french revolution was a period of radical political and social upheaval in France"
)


class Report:
    """Prints one line for each fact and check; counts the checks that fail."""

    def __init__(self):
        self.failed = 0

    def fact(self, what: str, text: str) -> None:
        print(f"        {what:13s} {text}", flush=True)

    def check(self, what: str, good: bool, text: str) -> None:
        self.failed += not good
        print(f"{'ok' if good else 'WRONG':7s} {what:13s} {text}", flush=True)


def check_sizes(report: Report, cfg: LlamaConfig) -> None:
    """Shapes and settings beside the published ones; a model of no known shape is a fact, not a
    mistake.
    """
    report.fact("sizes", ", ".join(f"{name} {getattr(cfg, name)}" for name in SHAPES))
    report.fact("settings", ", ".join(f"{name} {getattr(cfg, name)}" for name in SETTINGS))
    alike = {
        name: known
        for name, known in REFERENCE_CONFIGS.items()
        if all(getattr(known, s) == getattr(cfg, s) for s in SHAPES)
    }
    if not alike:
        return report.fact("known as", "no published size")
    differences = {name: settings_that_differ(known, cfg) for name, known in alike.items()}
    name = min(differences, key=lambda name: len(differences[name]))
    wrong = " and ".join(differences[name])
    report.check("known as", not wrong, f"shapes of {name}, which has {wrong}" if wrong else name)


def settings_that_differ(known: LlamaConfig, cfg: LlamaConfig) -> list[str]:
    """The known size's settings, as text, where the other has something else."""
    differ = [s for s in SETTINGS if getattr(known, s) != getattr(cfg, s)]
    if not math.isclose(known.norm_eps, cfg.norm_eps, rel_tol=1e-6):  # GGUF has it in float32
        differ.append("norm_eps")
    return [f"{s} {getattr(known, s)}" for s in differ]


@torch.inference_mode()
def check_numbers(report: Report, model) -> bool:
    """NaN, infinities and matrices of nothing but zeros, signs of a broken download or
    conversion.
    """
    count, broken, empty = 0, [], []
    for name, weight in model.named_parameters():  # a tied head is met once
        low, high = weight.aminmax()
        count += weight.numel()
        broken += [name] * (not (low.isfinite() and high.isfinite()))
        empty += [name] * (low == high == 0).item()
    text = f"{count:,} in {str(weight.dtype).removeprefix('torch.')}, "
    text += (
        f"NaN or infinity in {broken[0]}"
        if broken
        else f"only zeros in {empty[0]}"
        if empty
        else "all finite"
    )
    report.check("values", not broken and not empty, text)
    return not broken


def check_tokenizer(report: Report, tokenizer) -> None:
    """Text survives the round trip; Llama 3's special tokens have Meta's ids, and it stops where it
    must.
    """
    if tokenizer is None:
        return report.fact("tokenizer", "none in this checkpoint")
    back = tokenizer.decode(tokenizer.encode(TEXT))
    report.check(
        "tokenizer", back == TEXT, f"{tokenizer.vocab_size:,} tokens, text to ids and back"
    )
    if tokenizer.vocab_size == 128_256:
        wrong = [
            name for name, id in LLAMA_3_SPECIALS.items() if tokenizer.specials.get(name) != id
        ]
        report.check(
            "specials", not wrong, f"{wrong[0]} has not its id" if wrong else "ids as Meta's"
        )
        report.check(
            "stops at", {128001, 128009} <= set(tokenizer.stop_ids), f"{sorted(tokenizer.stop_ids)}"
        )


def check_known_answer(report: Report, model, tokenizer, strict: bool) -> None:
    """The published greedy text of Llama 3.1 8B Instruct; of another model of these shapes nothing
    is known.
    """
    ids = tokenizer.encode(KNOWN_PROMPT, bos=True)
    answer = tokenizer.decode(
        list(generate(model, ids, max_new_tokens=20, stop_ids=tokenizer.stop_ids))
    )
    if answer.startswith(KNOWN_ANSWER):
        report.check("known answer", True, "Llama 3.1 8B Instruct's published text")
    elif strict:
        report.check(
            "known answer",
            False,
            f"not Llama 3.1 8B Instruct's published text, but {answer[:80]!r}",
        )
    else:
        report.fact("known answer", f"not that of Llama 3.1 8B Instruct: {answer[:80]!r}")

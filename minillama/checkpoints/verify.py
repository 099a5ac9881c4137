"""Is a checkpoint what it says it is? Published sizes, sound numbers, special tokens, and
transformers beside it.
"""

import contextlib
import gc
import importlib.util
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from minillama.checkpoints import hub
from minillama.checkpoints.assemble import assemble
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.formats import open_checkpoint
from minillama.config import SIZES, LlamaConfig, RopeScaling
from minillama.generation import generate
from minillama.rope import rope_frequencies


GOLDEN = Path(__file__).resolve().parents[2] / "data" / "golden" / "meta_smollm2.npz"
GOLDEN_NAME = "smollm2-135m-instruct"
# Largest difference of a logit, on a scale of 40. Meta's code and transformers differ by 1e-4 in
# float32; in 16 bits
# every operation rounds, and two correct programs round at different places.
TOLERANCE = {torch.float32: 2e-4, torch.float16: 0.15, torch.bfloat16: 1.0}

LLAMA_32 = dict(
    n_kv_heads=8, ffn_dim=8192, vocab_size=128_256, rope_scaling=RopeScaling(factor=32.0)
)
KNOWN = {name: LlamaConfig.named(name) for name in SIZES} | {
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
NEW = 32  # greedy tokens to compare


class Report:
    """Prints one line for each fact and check; counts the checks that fail."""

    def __init__(self):
        self.failed = 0

    def fact(self, what: str, text: str) -> None:
        print(f"        {what:13s} {text}", flush=True)

    def check(self, what: str, good: bool, text: str) -> None:
        self.failed += not good
        print(f"{'ok' if good else 'WRONG':7s} {what:13s} {text}", flush=True)


def verify(name_or_path) -> int:
    """Print what a checkpoint is and check it: 0 if every check holds, else 1. CheckpointError if
    it is unreadable.
    """
    path, report = hub.locate(name_or_path), Report()
    try:
        checkpoint = open_checkpoint(path)
        dtype = checkpoint.tensors["blocks.0.attention.wk.weight"].read().dtype
        model, tokenizer = assemble(checkpoint, dtype), checkpoint.tokenizer
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    check_sizes(report, model.cfg)
    check_tokenizer(report, tokenizer)
    if not check_numbers(report, model):
        print("with such numbers there is nothing to compare")
        return 1
    if path == hub.find(GOLDEN_NAME):
        compare_with_meta(report, model)
    if (
        model.cfg.dim == 4096
        and tokenizer
        and LLAMA_3_SPECIALS.items() <= tokenizer.specials.items()
    ):
        check_known_answer(report, model, tokenizer, strict="instruct" in path.name.lower())
    results = outputs(model, tokenizer)
    del model  # transformers' takes its place in memory
    gc.collect()
    compare_with_transformers(report, path, results)
    print(
        f"{report.failed} of these checks FAILED" if report.failed else "all of these checks hold"
    )
    return int(report.failed > 0)


def check_sizes(report: Report, cfg: LlamaConfig) -> None:
    """Shapes and settings beside the published ones; a model of no known shape is a fact, not a
    mistake.
    """
    report.fact("sizes", ", ".join(f"{name} {getattr(cfg, name)}" for name in SHAPES))
    report.fact("settings", ", ".join(f"{name} {getattr(cfg, name)}" for name in SETTINGS))
    alike = {
        name: known
        for name, known in KNOWN.items()
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
    """NaN, infinities and matrices of nothing but zeros, which a broken download or conversion
    leaves behind.
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
    report.check("numbers", not broken and not empty, text)
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


@torch.inference_mode()
def compare_with_meta(report: Report, model) -> None:
    """Every logit beside Meta's own code: final hidden states stored in the repository, times the
    embedding.
    """
    if not GOLDEN.exists():
        return report.fact(
            "Meta's code",
            "its stored results are in a checkout of the repository only (data/golden)",
        )
    with np.load(GOLDEN) as golden:
        ids, hidden, top = (torch.from_numpy(golden[name]) for name in ("ids", "hidden", "top1"))
    ours = model(ids.long()[None])[0]
    difference = (ours - hidden.double() @ model.embedding.weight.double().T).abs().max().item()
    same = (ours.argmax(-1) == top).sum().item()
    text = (
        f"{ours.numel():,} logits within {difference:.1e} (limit {TOLERANCE[torch.float32]:.0e}), "
    )
    text += f"same likeliest token at {same} of {len(ids)} positions"
    report.check("Meta's code", difference <= TOLERANCE[torch.float32] and same == len(ids), text)


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


@dataclass(frozen=True)
class Outputs:
    """What a model makes of a text: logits (T, V), the greedy tokens behind it, its rotation's
    frequencies (W/2,).
    """

    ids: list[int]
    logits: torch.Tensor
    greedy: list[int]
    frequencies: torch.Tensor
    dtype: torch.dtype
    own_ids: bool  # of a tokenizer, or only some numbers


@torch.inference_mode()
def outputs(model, tokenizer) -> Outputs:
    """What the model makes of TEXT, or of ids spread over the vocabulary where there is no
    tokenizer.
    """
    cfg = model.cfg
    ids = (
        tokenizer.encode(TEXT)
        if tokenizer
        else list(range(1, cfg.vocab_size, cfg.vocab_size // 60 + 1))
    )
    logits = model(torch.tensor([ids]))[0]
    greedy = list(generate(model, ids, max_new_tokens=NEW))
    frequencies = rope_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
    return Outputs(ids, logits, greedy, frequencies, model.norm.weight.dtype, tokenizer is not None)


@torch.inference_mode()
def compare_with_transformers(report: Report, path: Path, ours: Outputs) -> None:
    """Ids, rotation, every logit and the greedy text beside transformers."""
    if importlib.util.find_spec("transformers") is None:
        return report.fact(
            "transformers",
            "not installed, so nothing is compared: python -m pip install transformers",
        )
    if path.is_dir() and not (path / "config.json").exists():
        return report.fact(
            "transformers",
            "does not read Meta's layout; `minillama convert` writes one that it reads",
        )
    theirs, ids = load_transformers(path, ours)
    if ids is not None:
        report.check("same ids", ids == ours.ids, f"{len(ids)} for a text in three languages")
    same = torch.allclose(ours.frequencies, theirs.model.rotary_emb.inv_freq.float(), rtol=1e-5)
    report.check("same rotation", same, f"{len(ours.frequencies)} frequencies")
    prompt, limit = torch.tensor([ours.ids]), TOLERANCE[ours.dtype]
    off = (ours.logits - theirs(prompt).logits[0].float()).abs().max().item()
    report.check(
        "same logits", off <= limit, f"{ours.logits.numel():,} within {off:.1e} (limit {limit:.1e})"
    )
    greedy = theirs.generate(
        prompt, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    pairs = zip(ours.greedy, greedy[0, len(ours.ids) :].tolist(), strict=True)
    if (first := next((i for i, (mine, other) in enumerate(pairs) if mine != other), None)) is None:
        report.check("same text", True, f"{NEW} greedy tokens")
    elif ours.dtype == torch.float32:
        report.check("same text", False, f"from greedy token {first} on it differs")
    else:
        report.fact(
            "same text", f"up to greedy token {first}; in 16 bits a near tie may fall either way"
        )


def load_transformers(path: Path, ours: Outputs):
    """transformers' model, and its ids of TEXT (None where it has no tokenizer or, in a GGUF, cuts
    text otherwise).
    """
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    folder, where = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    where |= {"local_files_only": True, "trust_remote_code": False}
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that cannot be turned off
        theirs = transformers.LlamaForCausalLM.from_pretrained(
            str(folder), dtype=ours.dtype, **where
        ).eval()
    if not ours.own_ids or path.is_file():
        return theirs, None
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **where)
    return theirs, tokenizer.encode(TEXT, add_special_tokens=False)

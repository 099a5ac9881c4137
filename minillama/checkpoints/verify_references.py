"""What `verify` compares a checkpoint with: results of Meta's own code, and transformers."""

import contextlib
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from minillama.checkpoints.verify_checks import TEXT, Report
from minillama.generation import generate
from minillama.rope import rope_frequencies


GOLDEN = Path(__file__).resolve().parents[2] / "data" / "golden" / "meta_smollm2.npz"
GOLDEN_NAME = "smollm2-135m-instruct"
# Largest difference of a logit, on a scale of 40. Meta's code and transformers differ by 1e-4 in
# float32; in 16 bits
# every operation rounds, and two correct programs round at different places.
TOLERANCE = {torch.float32: 2e-4, torch.float16: 0.15, torch.bfloat16: 1.0}
NEW = 32  # greedy tokens to compare


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


@dataclass(frozen=True)
class Outputs:
    """What a model makes of a text: logits (T, V), the greedy tokens after it, its rotation's
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

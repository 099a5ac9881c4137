"""Generation: from logits to one token, and the next.

Written by notebooks/09_generation.ipynb: edit it there.
"""

import math
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch

from minillama.kv_cache import KVCache
from minillama.model import Llama


def distribution(logits: torch.Tensor, temperature=1.0, top_k=None, top_p=None) -> torch.Tensor:
    """What `sample` draws from: logits (B, V) -> probabilities (B, V), zero where a token was cut.

    In this order: divide by the temperature; keep the top_k likeliest; keep the likeliest as long
    as the probability before them is at most top_p (Holtzman et al. 2019, arXiv:1904.09751); make
    the rest sum to 1. Of equal logits the lower id goes first.
    """
    logits = logits.float()
    # subtle: float32 turns smaller temperatures into 0 and larger ones into inf
    temperature = float(min(max(temperature, 1e-30), 1e30))
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if top_k is None and top_p is None:
        return scaled.softmax(dim=-1)  # nothing is cut, so nothing needs sorting
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, min(top_k, ordered.shape[-1]) :] = -math.inf
    probs = ordered.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        probs[probs.cumsum(dim=-1) - probs > float(top_p)] = 0.0
        probs /= probs.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, ids, probs)  # from places back to ids


def sample(
    logits: torch.Tensor, temperature=0.0, top_k=None, top_p=None, generator=None
) -> torch.Tensor:
    """One id per row: logits (B, V) -> (B,) int64. Temperature 0 takes the largest, else draw from
    `distribution`.

    A logit of -inf rules its token out. ValueError for a row that is all -inf or holds NaN or +inf,
    and for settings that have no meaning.
    """
    check_settings(temperature, top_k, top_p)
    if logits.ndim != 2 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape (B, V), not {tuple(logits.shape)}")
    if not logits.amax(dim=-1).isfinite().all():  # the maximum is NaN if any entry is
        raise ValueError(
            "no token can be chosen: a row of logits is all -inf, or holds NaN or +inf"
        )
    if temperature == 0:
        return logits.argmax(dim=-1)
    ends = distribution(logits, temperature, top_k, top_p).cumsum(dim=-1)  # (B, V)
    u = torch.rand(len(logits), 1, generator=generator, device=logits.device)
    return torch.searchsorted(ends, u * ends[:, -1:], right=True).squeeze(-1)


def check_settings(temperature, top_k, top_p):
    """ValueError for settings that have no meaning: negative, NaN, infinite, a bool where a number
    is wanted.
    """
    if not is_number(temperature, Real) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 or a positive number, not {temperature!r}")
    if top_k is not None and (not is_number(top_k, Integral) or top_k < 1):
        raise ValueError(f"top_k must be a whole number from 1 on, not {top_k!r}")
    if top_p is not None and (not is_number(top_p, Real) or not 0 <= top_p <= 1):
        raise ValueError(f"top_p must be between 0 and 1, not {top_p!r}")


def is_number(value, kind) -> bool:
    """Whether value is of that kind of number; True and False are not."""
    return isinstance(value, kind) and not isinstance(value, bool)


PREFILL_CHUNK = 512  # tokens of a prompt that go through the model at once


def next_logits(model: Llama, tokens: torch.Tensor, cache: KVCache, count=1) -> torch.Tensor:
    """Logits at the last `count` of the new tokens: (B, T) -> (B, count, V); the others only update
    the cache.

    A long prompt goes through in pieces, which keeps the (T, S) scores of attention small; count is
    at most a piece.
    """
    for piece in tokens.split(PREFILL_CHUNK, dim=1):
        logits = model(piece, cache, last=count)  # (B, count, V)
    return logits


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn and when it ends: at max_new_tokens, or before the first of stop_ids.

    temperature, top_k, top_p: as for `sample`. seed: the same seed draws the same ids; None draws
    others each time. ValueError for settings that have no meaning.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop_ids: Collection[int] = ()

    def __post_init__(self):
        check_settings(self.temperature, self.top_k, self.top_p)
        if not is_number(self.max_new_tokens, Integral) or self.max_new_tokens < 0:
            raise ValueError(
                f"max_new_tokens must be a whole number from 0 on, not {self.max_new_tokens!r}"
            )
        if self.seed is not None and (
            not is_number(self.seed, Integral) or not 0 <= self.seed < 2**64
        ):
            raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, not {self.seed!r}")
        object.__setattr__(self, "stop_ids", frozenset(self.stop_ids))

    def sample(
        self, logits: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """`sample` under these settings: (B, V) -> (B,)"""
        return sample(logits, self.temperature, self.top_k, self.top_p, generator)


@dataclass
class Statistics:
    """What generating took so far: hand one over as `stats`. Seconds are the model's, not the
    reader's.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    gains: list[int] = field(default_factory=list)  # ids from each pass after the prompt's

    def add(self, prompt_tokens: int, gain: int, seconds: float) -> None:
        """Note one pass: over a prompt of so many tokens or, if that is 0, one that gave `gain`
        ids.
        """
        if prompt_tokens:
            self.prompt_tokens += prompt_tokens
            self.prompt_seconds += seconds
        else:
            self.gains.append(gain)
            self.decode_seconds += seconds

    def __str__(self):
        parts = (
            [f"prompt {self.prompt_tokens / self.prompt_seconds:.0f} tokens/s"]
            if self.prompt_tokens
            else []
        )
        parts += (
            [f"answer {sum(self.gains) / self.decode_seconds:.1f} tokens/s"] if self.gains else []
        )
        return ", ".join(
            parts + [f"peak memory {peak / 1e9:.2f} GB" for peak in [peak_memory()] if peak]
        )


def peak_memory() -> int | None:
    """Most bytes this process ever had in memory, or None where the system does not tell
    (Windows).
    """
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def generate(
    model: Llama,
    ids,
    max_new_tokens=64,
    temperature=0.0,
    top_k=None,
    top_p=None,
    seed=None,
    stop_ids=(),
    stats=None,
    params: SamplingParams | None = None,
):
    """Iterate over up to max_new_tokens ids that continue `ids`, ending before the first of
    stop_ids.

    Prefill once, then one decode step per token. The same seed gives the same ids. stats: a
    Statistics to fill on the way. params: a SamplingParams, in place of the settings. ValueError,
    at the call and not at the first token, for settings that have no meaning and for a prompt that
    is empty, foreign or too long.
    """
    params = params or SamplingParams(max_new_tokens, temperature, top_k, top_p, seed, stop_ids)
    ids = check_request(model.cfg, ids, params)
    generator, stats = seeded(params.seed, model.device), stats or Statistics()

    def steps():
        cache = KVCache(model.cfg, 1, len(ids) + params.max_new_tokens, model.dtype, model.device)
        tokens = torch.tensor([ids], device=model.device)  # (1, T): prefill
        for n in range(params.max_new_tokens):
            start = time.perf_counter()
            with torch.no_grad():
                logits = next_logits(model, tokens, cache)[:, -1]  # (1, V)
                # (1, 1): from now on a decode step
                tokens = params.sample(logits, generator)[:, None]
            id = tokens.item()
            stats.add(0 if n else len(ids), 1, time.perf_counter() - start)
            if id in params.stop_ids:
                return
            yield id

    return steps()


def seeded(seed, device) -> torch.Generator:
    """A generator of random numbers that starts at a seed, or anywhere if it is None."""
    generator = torch.Generator(device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    return generator


def check_request(cfg, ids, params: SamplingParams) -> list[int]:
    """The prompt as a list of ids; ValueError if the model cannot continue it."""
    ids = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
    if not ids:
        raise ValueError("nothing to continue: the prompt has no tokens")
    for id in ids:
        if not is_number(id, Integral) or not 0 <= id < cfg.vocab_size:
            raise ValueError(
                f"the prompt holds {id!r}, which is not an id from 0 to {cfg.vocab_size - 1}"
            )
    if len(ids) + params.max_new_tokens > cfg.max_seq_len:
        raise ValueError(
            f"{len(ids)} + {params.max_new_tokens} tokens exceed the context of {cfg.max_seq_len}"
        )
    return ids


@torch.no_grad()
def generate_batch(
    model: Llama,
    prompts,
    max_new_tokens=64,
    temperature=0.0,
    top_k=None,
    top_p=None,
    seed=None,
    stop_ids=(),
    stats=None,
    params: SamplingParams | None = None,
) -> list[list[int]]:
    """What continues each of several prompts, all in the same passes: a list of ids per prompt.

    Prompt b gets what `generate` gives it alone, with seed + b as its seed. Settings and errors are
    `generate`'s.
    """
    params = params or SamplingParams(max_new_tokens, temperature, top_k, top_p, seed, stop_ids)
    prompts = [check_request(model.cfg, ids, params) for ids in prompts]
    answers, rows = [[] for _ in prompts], list(range(len(prompts)))  # rows: the prompts that go on
    if not prompts:
        return answers
    stats, longest, seed = stats or Statistics(), max(map(len, prompts)), params.seed
    generators = [seeded(None if seed is None else (seed + b) % 2**64, model.device) for b in rows]
    padding = [longest - len(ids) for ids in prompts]
    cache = KVCache(
        model.cfg, len(rows), longest + params.max_new_tokens, model.dtype, model.device, padding
    )
    # (B, T): padding first
    tokens = [[0] * n + ids for n, ids in zip(padding, prompts, strict=True)]
    for n in range(params.max_new_tokens):
        start = time.perf_counter()
        logits = next_logits(model, torch.tensor(tokens, device=model.device), cache)  # (B, 1, V)
        drawn = [params.sample(logits[i], generators[row]).item() for i, row in enumerate(rows)]
        stats.add(0 if n else sum(map(len, prompts)), len(rows), time.perf_counter() - start)
        going = [i for i, id in enumerate(drawn) if id not in params.stop_ids]
        if not going:
            break
        cache.keep(going)
        # (B, 1): from now on one
        rows, tokens = [rows[i] for i in going], [[drawn[i]] for i in going]
        for row, (id,) in zip(rows, tokens, strict=True):
            answers[row].append(id)
    return answers

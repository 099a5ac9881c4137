"""Generation: from logits to one token, and the next.

Written by notebooks/09_generation.ipynb: edit it there.
"""

import sys
import time
from dataclasses import dataclass, field
from numbers import Integral

import torch

from minillama.kv_cache import KVCache
from minillama.model import Llama
from minillama.sampling import SamplingParams, check_settings, distribution, is_number, sample


# what the module offers; the other files of this chapter hold some of it
__all__ = ["generate", "generate_batch", "next_logits", "PREFILL_CHUNK", "Statistics"]
__all__ += ["peak_memory", "seeded", "check_request"]
__all__ += ["distribution", "sample", "check_settings", "is_number", "SamplingParams"]


PREFILL_CHUNK = 512  # tokens of a prompt that go through the model at once


def next_logits(model: Llama, tokens: torch.Tensor, cache: KVCache, count=1) -> torch.Tensor:
    """Logits at the last `count` of the new tokens: (B, T) -> (B, count, V); the others only update
    the cache.

    A long prompt goes through in chunks, which keeps the (T, S) scores of attention small; count is
    at most a chunk.
    """
    for chunk in tokens.split(PREFILL_CHUNK, dim=1):
        logits = model(chunk, cache, last=count)  # (B, count, V)
    return logits


@dataclass
class Statistics:
    """What generating took so far: hand one over as `stats`. Only time spent in the model is
    counted.
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
    constraint=None,
):
    """Iterate over up to max_new_tokens ids that continue `ids`, ending before the first of
    stop_ids.

    Prefill once, then one decode step per token. The same seed gives the same ids. stats: a
    Statistics to fill on the way. params: a SamplingParams, in place of the settings. constraint:
    which tokens may come (chapter 10a). ValueError, at the call and not at the first token, for
    settings that have no meaning and for a prompt that is empty, foreign or too long.
    """
    params = params or SamplingParams(
        max_new_tokens, temperature, top_k, top_p, seed, stop_ids, constraint
    )
    ids = check_request(model.cfg, ids, params)
    generator, stats = seeded(params.seed, model.device), stats or Statistics()

    def steps():
        state = params.step()
        cache = KVCache(model.cfg, 1, len(ids) + params.max_new_tokens, model.dtype, model.device)
        tokens = torch.tensor([ids], device=model.device)  # (1, T): prefill
        for n in range(params.max_new_tokens):
            start = time.perf_counter()
            with torch.no_grad():
                logits = next_logits(model, tokens, cache)[:, -1]  # (1, V)
                # (1, 1): from now on a decode step
                tokens = params.sample(logits, generator, state)[:, None]
            id = tokens.item()
            stats.add(0 if n else len(ids), 1, time.perf_counter() - start)
            if id in params.stop_ids:
                return
            yield id
            state = params.step(state, id)

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
    constraint=None,
) -> list[list[int]]:
    """What continues each of several prompts, all in the same passes: a list of ids per prompt.

    Prompt b gets what `generate` gives it alone, with seed + b as its seed. Settings and errors are
    `generate`'s.
    """
    params = params or SamplingParams(
        max_new_tokens, temperature, top_k, top_p, seed, stop_ids, constraint
    )
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
    states = [params.step() for _ in rows]
    for n in range(params.max_new_tokens):
        start = time.perf_counter()
        logits = next_logits(model, torch.tensor(tokens, device=model.device), cache)  # (B, 1, V)
        drawn = [
            params.sample(logits[i], generators[row], states[row]).item()
            for i, row in enumerate(rows)
        ]
        stats.add(0 if n else sum(map(len, prompts)), len(rows), time.perf_counter() - start)
        going = [i for i, id in enumerate(drawn) if id not in params.stop_ids]
        if not going:
            break
        cache.keep(going)
        # (B, 1): from now on one
        rows, tokens = [rows[i] for i in going], [[drawn[i]] for i in going]
        for row, (id,) in zip(rows, tokens, strict=True):
            answers[row].append(id)
            states[row] = params.step(states[row], id)
    return answers

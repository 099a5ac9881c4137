"""Generation: from logits to one token, and the next.

Written by notebooks/09_generation.ipynb: edit it there.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral, Real

import torch


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


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn and when it ends: at max_new_tokens, or before the first of stop_ids.

    temperature, top_k, top_p: as for `sample`. seed: the same seed draws the same ids; None draws
    others each time. constraint: which tokens may come, chapter 10a's TokenMasks; its stop_ids end
    the answer too. ValueError for settings that have no meaning.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop_ids: Collection[int] = ()
    constraint: object = None

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
        more = self.constraint.stop_ids if self.constraint else ()
        object.__setattr__(self, "stop_ids", frozenset(self.stop_ids) | frozenset(more))

    def sample(
        self, logits: torch.Tensor, generator: torch.Generator | None = None, state=None
    ) -> torch.Tensor:
        """`sample` under these settings: (B, V) -> (B,). state: the constraint's, if any."""
        if self.constraint:
            logits = self.constraint.rule_out(logits, state)
        return sample(logits, self.temperature, self.top_k, self.top_p, generator)

    def step(self, state=None, id=None):
        """The constraint's state behind one more id, or before the first; None without one."""
        if not self.constraint:
            return None
        return self.constraint.start if id is None else self.constraint.step(state, id)

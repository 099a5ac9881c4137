"""Evaluation: from one number to a judgement.

Written by notebooks/15_evaluation.ipynb: edit it there.
"""

import math
from statistics import NormalDist

import torch


def mean_and_error(values) -> tuple[float, float]:
    """The mean of one number per item, and its standard error (NaN for a single item)."""
    x = torch.as_tensor(values, dtype=torch.float64)
    if len(x) == 0:
        raise ValueError("no items, so no mean")
    return x.mean().item(), (x.std() / len(x) ** 0.5).item() if len(x) > 1 else math.nan


def paired_bootstrap(a, b, resamples: int = 10_000, seed: int = 0) -> dict:
    """How sure it is that a's mean is above b's, on the same items: the difference, the middle 95 %
    of what it is on items drawn again, and in which share of the draws a is not ahead.
    """
    x = torch.as_tensor(a, dtype=torch.float64) - torch.as_tensor(b, dtype=torch.float64)
    generator, means = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.float64)
    while len(means) < resamples:  # some at a time, which bounds memory
        rows = min(resamples - len(means), max(1, 1_000_000 // len(x)))
        drawn = torch.randint(len(x), (rows, len(x)), generator=generator)
        means = torch.cat((means, x[drawn].mean(1)))
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return dict(
        difference=x.mean().item(),
        low=low,
        high=high,
        not_ahead=(means <= 0).double().mean().item(),
    )


def questions_needed(difference: float, variance: float, power=0.8, level=0.05) -> int:
    """How many items show a true difference with this probability, in a two-sided test at this
    level.

    variance: of one item's difference between the two models: p (1 - p) for each model if they
    answer different items; the share of items on which they disagree, less the squared difference,
    if they answer the same ones.
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)
    return math.ceil(z**2 * variance / difference**2)


def reliability(confidence, right, bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean confidence, share right, how many) for each bin of confidence that is not empty."""
    p = torch.as_tensor(confidence, dtype=torch.float64)
    y = torch.as_tensor(right, dtype=torch.float64)
    place = (p * bins).long().clamp(max=bins - 1)
    found = []
    for i in range(bins):
        if (here := place == i).any():
            found.append((p[here].mean().item(), y[here].mean().item(), int(here.sum())))
    return found


def calibration_error(confidence, right, bins: int = 10) -> float:
    """The mean distance between confidence and share right, over bins, weighted by their items."""
    rows = reliability(confidence, right, bins)
    return sum(n * abs(p - share) for p, share, n in rows) / sum(n for _, _, n in rows)

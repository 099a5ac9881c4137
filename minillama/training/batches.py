"""Pretraining: from random numbers to a model.

Written by notebooks/13_pretraining.ipynb: edit it there.
"""

import torch


def shuffled(count: int, seed: int) -> torch.Tensor:
    """The numbers below count in a random order, the same for the same seed: (count,)"""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def batches_per_epoch(count: int, size: int, drop_last: bool = False) -> int:
    """How many batches count items make. drop_last: without the last one, if it is not full and
    not the only one.
    """
    return max(1, count // size) if drop_last else -(-count // size)


def shuffled_batch(
    i: int, count: int, size: int, seed: int, drop_last: bool = False
) -> torch.Tensor:
    """Which of count items are in the i-th batch, a new order each epoch: (size,), or fewer at the
    end of an epoch.
    """
    epoch, place = divmod(i, batches_per_epoch(count, size, drop_last))
    return shuffled(count, seed + epoch)[place * size :][:size]

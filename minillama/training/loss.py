"""Pretraining: from random numbers to a model.

Written by notebooks/13_pretraining.ipynb: edit it there.
"""

import torch
import torch.nn.functional as F


IGNORE = -100  # ignored: no loss is computed there (ignore_index)


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats over the targets that are not -100: (B, T, V), (B, T) -> ()"""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def count_targets(batch) -> int:
    """How many targets there are in a batch whose second part holds them."""
    return int((batch[1] != IGNORE).sum())

"""Pretraining: from random numbers to a model.

Written by notebooks/13_pretraining.ipynb: edit it there.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run but the model and the data; ValueError for invalid values.

    warmup, save_every, eval_every: in steps. min_lr_ratio: the last learning rate as a share of the
    peak. max_grad_norm: the largest norm of a gradient. gradient_accumulation_steps: batches per
    step. dtype: of the products, "float32" or "bfloat16". compiled: the loss as one program.
    activation_checkpointing: less memory, a third more work.
    """

    steps: int = 1000
    peak_lr: float = 3e-3
    warmup: int = 100
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    dtype: str = "float32"
    compiled: bool = False
    activation_checkpointing: bool = False
    seed: int = 0
    save_every: int = 200
    eval_every: int = 200

    def __post_init__(self):
        for name in ("steps", "gradient_accumulation_steps", "save_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, not {self.dtype!r}")
        if not (
            0 < self.peak_lr < math.inf
            and 0 < self.max_grad_norm
            and 0 <= self.min_lr_ratio <= 1
            and 0 <= self.warmup
        ):
            raise ValueError(
                "peak_lr and max_grad_norm must be positive, min_lr_ratio from 0 to 1, warmup 0 or "
                "more"
            )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have gradients, by name; a shared one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone (Loshchilov and Hutter 2017, arXiv:1711.05101)."""
    parameters = trainable(model).values()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=settings.peak_lr, betas=settings.betas, fused=True
    )


def learning_rate(step: int, settings: Settings) -> float:
    """Up along a line to the peak, then down along half a cosine to min_lr_ratio times the peak.
    Steps count from 0.
    """
    if step < settings.warmup:
        return settings.peak_lr * (step + 1) / settings.warmup
    # 0 at the peak, 1 at the last step
    way = (step - settings.warmup) / max(1, settings.steps - 1 - settings.warmup)
    share = settings.min_lr_ratio + (1 - settings.min_lr_ratio) * (1 + math.cos(math.pi * way)) / 2
    return settings.peak_lr * share


def train_step(
    model, loss_of, batches, optimizer, settings: Settings, lr: float, weigh=None
) -> tuple[float, float]:
    """One change of the weights: (loss, norm of the gradient before clipping); unless one of them
    is not finite.

    weigh(batch) -> how much a batch counts in the mean, such as its targets; without it all count
    alike.
    """
    parameters, total = list(trainable(model).values()), 0.0
    device = parameters[0].device.type
    weights = [weigh(batch) if weigh else 1 for batch in batches]
    for batch, weight in zip(batches, weights, strict=True):
        if not weight:
            continue  # no targets: the mean over nothing would be NaN
        with torch.autocast(device, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
            loss = loss_of(model, batch) * (weight / sum(weights))
        loss.backward()
        total += loss.item()
    norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm).item()
    if math.isfinite(total) and math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad()
    return total, norm

"""Fine-tuning: a small change to a large model.

Written by notebooks/14_finetuning.ipynb: edit it there.
"""

import math
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from minillama.inference.quantization import Int4Linear, Int8Linear, linear_bfloat16


class Product(torch.autograd.Function):
    """x (..., C) -> (..., N) through a quantized layer; the backward pass multiplies by its
    dequantized weights.
    """

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return layer(x)

    @staticmethod
    def backward(ctx, gradient):
        # subtle: made anew (N, C), since one kept for this would fill the memory saved
        weight = ctx.layer.weight
        return linear_bfloat16(gradient.to(weight.dtype), weight.T).to(gradient.dtype), None


class Frozen(nn.Module):
    """A quantized layer through which gradients reach the layers before it."""

    def __init__(self, base: Int8Linear | Int4Linear):
        super().__init__()
        self.base, self.in_features, self.out_features = base, base.in_features, base.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Product.apply(x, self.base)


def with_gradient(layer: nn.Module) -> nn.Module:
    """The layer itself, or a quantized one wrapped."""
    return Frozen(layer) if isinstance(layer, Int8Linear | Int4Linear) else layer


class LoRALinear(nn.Module):
    """x (..., C) -> (..., N): a frozen layer, and alpha/rank * b a x beside it. Hu et al. 2021,
    arXiv:2106.09685.

    a (rank, C) is random, b (N, rank) zero, both float32 and computed with as such: at first
    nothing is changed.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int = 8,
        alpha: float = 16,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        device = next(iter([*base.parameters(), *base.buffers()])).device
        self.base, self.rank, self.alpha, self.active = with_gradient(base), rank, alpha, True
        self.in_features, self.out_features = base.in_features, base.out_features
        a = (
            2 * torch.rand(rank, base.in_features, generator=generator) - 1
        ) / base.in_features**0.5
        self.a = nn.Parameter(a.to(device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if not self.active:
            return y
        # (..., r): scaled where it is small
        few = self.alpha / self.rank * F.linear(x.to(self.a.dtype), self.a)
        return (y + F.linear(few, self.b)).to(y.dtype)


TARGETS = ("wq", "wk", "wv", "wo", "gate", "up", "down")


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers that have an adapter, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def adapted(model: nn.Module) -> dict[str, LoRALinear]:
    """As `lora_layers`; ValueError if there are none."""
    if not (layers := lora_layers(model)):
        raise ValueError("the model has no adapter: add_lora or load_adapter gives it one")
    return layers


def add_lora(
    model: nn.Module, rank: int = 8, alpha: float = 16, targets=TARGETS, seed: int = 0
) -> nn.Module:
    """Give the linear layers of these names an adapter in every block, in place; nothing else can
    be trained then.

    Any model of `load` but a compiled one; ValueError for that, for a second adapter, and for
    invalid values.
    """
    targets = set(targets)
    if model.decode_step is not None:
        raise ValueError("a compiled model takes no adapter: load the model without compiled")
    if not targets or targets - set(TARGETS):
        odd = ", ".join(sorted(targets - set(TARGETS)))
        raise ValueError(f"targets must be some of {', '.join(TARGETS)}, not {odd or 'none'}")
    if type(rank) is not int or rank < 1 or not 0 < alpha < math.inf:
        raise ValueError(
            f"rank must be a whole number from 1 on and alpha positive, not {rank!r} and {alpha!r}"
        )
    if lora_layers(model):
        raise ValueError("the model has an adapter already: merge_lora it, or load the model anew")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, layer in list(model.named_modules()):
        if name.split(".")[-1] in targets:
            model.set_submodule(name, LoRALinear(layer, rank, alpha, generator))
        elif with_gradient(layer) is not layer:
            model.set_submodule(name, Frozen(layer))
    return model


@contextmanager
def without_lora(model: nn.Module):
    """The model as it was before `add_lora`, for as long as the context lasts. ValueError if it has
    no adapter.
    """
    layers = adapted(model).values()
    before = [layer.active for layer in layers]
    try:
        for layer in layers:
            layer.active = False
        yield model
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Add every update to its weights, in place: plain layers again, and everything can be trained.

    ValueError for quantized layers, whose few levels cannot take a small update.
    """
    layers = adapted(model)
    if any(isinstance(layer.base, Frozen) for layer in layers.values()):
        raise ValueError(
            "quantized layers take no update: load the model without quantize, then load_adapter "
            "and merge_lora"
        )
    for name, layer in layers.items():
        layer.base.weight += layer.alpha / layer.rank * (layer.b @ layer.a)
        model.set_submodule(name, layer.base)
    return model.requires_grad_(True)

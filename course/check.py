"""Exercises that answer with the mistake, not only with "wrong"."""

import torch


def check(got, want, mistakes=None, atol=1e-5, what="your result"):
    """Compare an exercise's result with the right one; where it matches a known wrong one, say which.

    got, want: tensors or anything torch.as_tensor takes; mistakes: {hint: wrong result}.
    Raises AssertionError with a hint, a shape or the largest difference. Prints one line if right.
    """
    if got is None or got is NotImplemented:
        raise AssertionError(f"{what} is still missing: fill in the exercise and run this cell again")
    got, want = torch.as_tensor(got).detach().double(), torch.as_tensor(want).detach().double()
    for hint, wrong in (mistakes or {}).items():
        wrong = torch.as_tensor(wrong).detach().double()
        if same(got, wrong, atol) and not same(wrong, want, atol):
            raise AssertionError(f"{what}: {hint}")
    if got.shape != want.shape:
        raise AssertionError(f"{what} has shape {tuple(got.shape)}, but {tuple(want.shape)} is expected")
    if not same(got, want, atol):
        worst = (got - want).abs().max().item()
        raise AssertionError(f"{what} has the right shape, but is off by up to {worst:.3g} (allowed: {atol:g})")
    print("right")


def same(a, b, atol):
    """True where two tensors have one shape and differ by at most atol everywhere (NaN equals nothing)."""
    return a.shape == b.shape and bool(((a - b).abs() <= atol).all())

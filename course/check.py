"""Exercises that answer with the mistake, not only with "wrong"."""

import torch


def check(got, want, mistakes=None, atol=1e-5, what="your result"):
    """Compare an exercise's result with the right one; where it matches a known wrong one, say
    which.

    got, want: tensors or anything torch.as_tensor takes; mistakes: {hint: wrong result}.
    Raises AssertionError with a hint, a shape or the largest difference. Prints one line if right.
    """
    if got is None or got is NotImplemented or got is Ellipsis:
        raise AssertionError(
            f"{what} is still missing: fill in the exercise and run this cell again"
        )
    got, want = numbers(got, what), numbers(want, "the right result")
    for hint, wrong in (mistakes or {}).items():
        wrong = numbers(wrong, "the wrong result")
        if same(got, wrong, atol) and not same(wrong, want, atol):
            raise AssertionError(f"{what}: {hint}")
    if got.shape != want.shape:
        raise AssertionError(
            f"{what} has shape {tuple(got.shape)}, but {tuple(want.shape)} is expected"
        )
    if got.isnan().any() and not want.isnan().any():
        raise AssertionError(
            f"{what} has the right shape, but {int(got.isnan().sum())} of its numbers are NaN"
        )
    if not same(got, want, atol):
        worst = (got - want).abs()[got != want].max().item()
        raise AssertionError(
            f"{what} has the right shape, but is off by up to {worst:.3g} (allowed: {atol:g})"
        )
    print("right")


def numbers(value, what):
    """A plain tensor of the value's numbers, wide enough for all kinds; AssertionError if it holds
    anything else.
    """
    try:
        # subtle: a subclass could answer every comparison with True
        with torch._C.DisableTorchFunctionSubclass():
            return torch.as_tensor(value).detach().cpu().to(torch.complex128)
    except (TypeError, ValueError, RuntimeError):
        raise AssertionError(
            f"{what} is a {type(value).__name__}, but a tensor or a number is expected"
        ) from None


def same(a, b, atol):
    """True where two tensors have one shape and differ by at most atol everywhere (NaN equals
    nothing).
    """
    # subtle: inf - inf is NaN
    return a.shape == b.shape and bool((((a - b).abs() <= atol) | (a == b)).all())

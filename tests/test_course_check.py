"""course/check.py: right answers pass, wrong ones are named, and nothing talks its way through."""

import math

import numpy as np
import pytest
import torch

from course.check import check


RIGHT = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "got, want",
    [
        (RIGHT.clone(), RIGHT),
        ([1, 2, 3], RIGHT),
        (np.array([1.0, 2.0, 3.0]), RIGHT),
        (RIGHT + 5e-6, RIGHT),
        (RIGHT.bfloat16(), RIGHT),
        (torch.nn.Parameter(RIGHT.clone()), RIGHT),
        (3, 3.0),
        (torch.tensor([0.0, -math.inf]), torch.tensor([0.0, -math.inf])),
        (torch.tensor([1 + 2j]), torch.tensor([1 + 2j])),
        (True, True),
        (torch.empty(0), torch.empty(0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_right_answers(capsys, got, want):
    assert check(got, want) is None
    assert capsys.readouterr().out == "right\n"


class Agreeable:
    """Equal to everything, never different."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __sub__(self, other):
        return 0

    __rsub__ = __le__ = __ge__ = __sub__
    shape = RIGHT.shape


class AgreeableTensor(torch.Tensor):
    """A tensor whose every operation answers with the right result."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return RIGHT.clone()


class AgreeableFloat(float):
    def __eq__(self, other):
        return True

    def __sub__(self, other):
        return 0.0

    __rsub__ = __sub__


@pytest.mark.parametrize(
    "got, want, words",
    [
        (None, RIGHT, "still missing"),
        (NotImplemented, RIGHT, "still missing"),
        (..., RIGHT, "still missing"),
        (RIGHT[:2], RIGHT, r"has shape \(2,\), but \(3,\) is expected"),
        (RIGHT[None], RIGHT, r"has shape \(1, 3\)"),
        (3.0, RIGHT, r"has shape \(\)"),
        (RIGHT + 0.25, RIGHT, "off by up to 0.25"),
        (RIGHT + 2e-5, RIGHT, "off by up to 2e-05"),
        (torch.full((3,), math.nan), RIGHT, "3 of its numbers are NaN"),
        (torch.tensor([1.0, math.nan, 3.0]), RIGHT, "1 of its numbers are NaN"),
        (torch.full((3,), math.inf), RIGHT, "off by up to inf"),
        (torch.tensor([0.0, -math.inf]), torch.tensor([0.0, math.inf]), "off by up to inf"),
        (torch.tensor([1 + 2j]), torch.tensor([1.0]), "off by up to 2"),
        (Agreeable(), RIGHT, "is a Agreeable, but a tensor or a number"),
        ([Agreeable()] * 3, RIGHT, "is a list, but a tensor or a number"),
        (torch.zeros(3).as_subclass(AgreeableTensor), RIGHT, "off by up to 3"),
        (AgreeableFloat(5.0), 3.0, "off by up to 2"),
        ("right", RIGHT, "is a str"),
        (lambda: RIGHT, RIGHT, "is a function"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_wrong_answers_say_what_is_wrong(capsys, got, want, words):
    with pytest.raises(AssertionError, match=words):
        check(got, want)
    assert capsys.readouterr().out == ""


def test_a_known_mistake_is_named():
    x, eps = torch.tensor([1e-3, 2e-3]), 1e-2
    right, outside = x / (x.square().mean() + eps).sqrt(), x / (x.square().mean().sqrt() + eps)
    hint = "is your eps inside the square root?"
    with pytest.raises(AssertionError, match=r"^x_hat: is your eps inside the square root\?$"):
        check(outside, right, {hint: outside}, what="x_hat")
    check(right, right, {hint: outside})


def test_a_mistake_of_another_shape_is_named_before_the_shape():
    with pytest.raises(AssertionError, match="transposed"):
        check(
            torch.ones(3, 2), torch.ones(2, 3), {"did you leave it transposed?": torch.ones(3, 2)}
        )


def test_a_mistake_that_equals_the_right_answer_accuses_nobody(capsys):
    check(RIGHT, RIGHT, {"never true": RIGHT.clone()})
    assert capsys.readouterr().out == "right\n"


def test_the_tolerance_is_the_caller_s():
    check(RIGHT + 0.01, RIGHT, atol=0.02)
    with pytest.raises(AssertionError, match=r"allowed: 1e-09"):
        check(RIGHT.double() + 1e-8, RIGHT, atol=1e-9)

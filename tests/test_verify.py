"""`minillama verify`: agreement, disagreement, and an installation without golden values."""

import pytest
import torch

from minillama import cli


@pytest.mark.weights
@pytest.mark.parametrize("factor, code, words", [(1, 0, "agrees with"), (0.999, 1, "DISAGREES")])
def test_verify(ours, monkeypatch, capsys, factor, code, words):
    """A final norm that is off by a thousandth is noticed."""
    norm = ours[0].norm
    monkeypatch.setitem(norm._parameters, "weight", torch.nn.Parameter(factor * norm.weight.data))
    monkeypatch.setattr(cli.hub, "load", lambda name: ours)
    assert cli.main(["verify"]) == code
    assert words in capsys.readouterr().out.splitlines()[-1]


def test_verify_without_golden_values(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "GOLDEN", tmp_path / "meta_smollm2.npz")
    assert cli.main(["verify"]) == 2
    error = capsys.readouterr().err
    assert "checkout" in error and error.count("\n") == 1

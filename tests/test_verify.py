"""`minillama verify`: agreement, disagreement, and an installation without golden values."""

import pytest

from minillama import cli
from minillama.checkpoints import load_checkpoint


@pytest.mark.weights
@pytest.mark.parametrize("weight, code, words", [(None, 0, "agrees with"), (0.999, 1, "DISAGREES")])
def test_verify(smollm2_path, monkeypatch, capsys, weight, code, words):
    """A final norm that is off by a thousandth is noticed."""

    def load(name):
        model, tokenizer = load_checkpoint(smollm2_path)
        if weight:
            model.norm.weight.data *= weight
        return model, tokenizer

    monkeypatch.setattr(cli.hub, "load", load)
    assert cli.main(["verify"]) == code
    assert words in capsys.readouterr().out.splitlines()[-1]


def test_verify_without_golden_values(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "GOLDEN", tmp_path / "meta_smollm2.npz")
    assert cli.main(["verify"]) == 2
    error = capsys.readouterr().err
    assert "checkout" in error and error.count("\n") == 1

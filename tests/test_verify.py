"""`minillama verify`: what it prints of sound checkpoints, and that each kind of unsound one is
noticed.
"""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from helpers import SCALED, tiny_hugging_face
from safetensors.torch import load_file, save_file

from minillama import Llama, LlamaConfig, cli
from minillama.checkpoints import hub, verify
from minillama.checkpoints import verify_checks as checks
from minillama.checkpoints import verify_references as references
from minillama.checkpoints.tensors import StoredTensor


def lines(capsys) -> dict[str, str]:
    """What was printed, by the name of the check: 'ok ...', 'WRONG ...' or a fact."""
    out = capsys.readouterr().out.splitlines()
    return {line[8:21].strip(): (line[:8] + line[22:]).strip() for line in out[:-1]} | {
        "end": out[-1]
    }


@pytest.fixture
def folder(tmp_path):
    tiny_hugging_face(rope=SCALED).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_sound_folder(tmp_path, capsys, dtype):
    tiny_hugging_face(rope=SCALED).to(dtype).save_pretrained(tmp_path)
    assert cli.main(["verify", str(tmp_path)]) == 0
    said = lines(capsys)
    assert said["known as"] == "no published size" and said["end"] == "all of these checks hold"
    assert said["values"].startswith("ok") and str(dtype).split(".")[1] in said["values"]
    assert said["same rotation"].startswith("ok") and said["same logits"].startswith("ok")


def test_a_known_shape_with_other_settings(folder, capsys, monkeypatch):
    cfg = hub.open_checkpoint(folder).cfg
    monkeypatch.setitem(checks.REFERENCE_CONFIGS, "tiny", cfg)
    assert cli.main(["verify", str(folder)]) == 0
    assert lines(capsys)["known as"] == "ok tiny".replace(" ", "      ")
    monkeypatch.setitem(
        checks.REFERENCE_CONFIGS,
        "tiny",
        dataclasses.replace(cfg, rope_theta=10_000.0, norm_eps=1e-6),
    )
    assert cli.main(["verify", str(folder)]) == 1
    assert lines(capsys)["known as"].endswith(
        "shapes of tiny, which has rope_theta 10000.0 and norm_eps 1e-06"
    )


@pytest.mark.parametrize(
    "value, word", [(float("nan"), "NaN"), (float("inf"), "infinity"), (0.0, "zeros")]
)
def test_values_that_are_not_finite(folder, capsys, value, word):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    where = (3, 5) if value else slice(None)
    tensors[name][where] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert cli.main(["verify", str(folder)]) == 1
    said = lines(capsys)["values"]
    assert said.startswith("WRONG") and word in said and "blocks.1.feed_forward.up" in said


def disturbed(folder, monkeypatch, change):
    """Our reading of the folder, changed: transformers reads the folder as it is."""
    checkpoint = hub.open_checkpoint(folder)
    monkeypatch.setattr(verify, "open_checkpoint", lambda path: change(checkpoint))


def test_wrong_weights_are_noticed(folder, capsys, monkeypatch):
    def change(checkpoint):
        tensor = checkpoint.tensors["norm.weight"]
        off = StoredTensor(tensor.shape, lambda: 1.001 * tensor.read())
        return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | {"norm.weight": off})

    disturbed(folder, monkeypatch, change)
    assert cli.main(["verify", str(folder)]) == 1
    said = lines(capsys)
    assert said["same logits"].startswith("WRONG") and said["same rotation"].startswith("ok")


def test_dropped_scaling_is_noticed(folder, capsys, monkeypatch):
    """By the frequencies: the logits of a short text do not show it."""
    disturbed(
        folder,
        monkeypatch,
        lambda c: dataclasses.replace(c, cfg=dataclasses.replace(c.cfg, rope_scaling=None)),
    )
    assert cli.main(["verify", str(folder)]) == 1
    assert lines(capsys)["same rotation"].startswith("WRONG")


def test_what_cannot_be_read_is_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    for path in (tmp_path, tmp_path / "nothing"):
        assert cli.main(["verify", str(path)]) == 2
        out, error = capsys.readouterr()
        assert not out and error.count("\n") == 1 and str(path) in error


def test_without_transformers(folder, capsys, monkeypatch):
    monkeypatch.setattr(references.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["verify", str(folder)]) == 0
    assert "not installed" in lines(capsys)["transformers"]


class Specials:
    """As much of a tokenizer as the check of Llama 3's control tokens looks at."""

    vocab_size, specials, stop_ids = 128_256, checks.LLAMA_3_SPECIALS, (128001, 128008, 128009)

    def encode(self, text):
        return text

    decode = encode


def test_special_tokens(capsys):
    report, tokenizer = checks.Report(), Specials()
    checks.check_tokenizer(report, tokenizer)
    assert not report.failed
    tokenizer.specials = checks.LLAMA_3_SPECIALS | {"<|eot_id|>": 128008}
    tokenizer.stop_ids = (128001,)
    checks.check_tokenizer(report, tokenizer)
    assert report.failed == 2


@pytest.mark.parametrize("strict, failed", [(True, 1), (False, 0)])
def test_known_answer(monkeypatch, capsys, strict, failed):
    class Text:
        stop_ids = ()

        def encode(self, text, bos):
            assert bos
            return text

        def decode(self, ids):
            return "".join(ids)

    report, answers = checks.Report(), iter([checks.KNOWN_ANSWER + " that", " No."])
    monkeypatch.setattr(checks, "generate", lambda *_, **__: [next(answers)])
    checks.check_known_answer(report, None, Text(), strict)
    assert report.failed == 0 and lines(capsys).keys() == {"end"}  # one line
    checks.check_known_answer(report, None, Text(), strict)
    assert report.failed == failed


@pytest.mark.weights
@pytest.mark.parametrize("factor, code", [(1, 0), (0.999, 1)])
def test_the_real_weights_beside_meta(ours, smollm2_path, monkeypatch, capsys, factor, code):
    """A final norm that is off by a thousandth is noticed."""
    norm = ours[0].norm
    monkeypatch.setitem(norm._parameters, "weight", torch.nn.Parameter(factor * norm.weight.data))
    report = checks.Report()
    checks.check_sizes(report, ours[0].cfg)
    assert report.failed == 0
    references.compare_with_meta(report, ours[0])
    assert report.failed == code


def test_without_golden_values(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(references, "GOLDEN", tmp_path / "meta_smollm2.npz")
    references.compare_with_meta(checks.Report(), None)
    assert "checkout" in capsys.readouterr().out


@pytest.mark.skipif(
    "MINILLAMA_CHECKPOINT" not in os.environ, reason="opt-in: MINILLAMA_CHECKPOINT=folder or .gguf"
)
def test_the_checkpoint_of_your_own():
    assert verify.verify(Path(os.environ["MINILLAMA_CHECKPOINT"])) == 0


def test_the_known_sizes_are_metas():
    """Parameters as Meta's model cards give them: 1.24 and 3.21 billion."""
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in Llama(checks.REFERENCE_CONFIGS[name]).parameters())
            for name in ("llama-3.2-1b", "llama-3.2-3b")
        }
    assert counts == {"llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824}
    assert isinstance(checks.REFERENCE_CONFIGS["llama-3-8b"], LlamaConfig)

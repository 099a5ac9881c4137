"""The committed tiny model: that it is what its command makes, what transformers makes of it, and
that it can write.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import minillama
from minillama import cli
from minillama.generation import generate_batch
from minillama.inference.attention_backends import use_attention
from minillama.model import Llama
from minillama.studies import stories, story_model
from minillama.training.loop import fit
from minillama.training.runs import read_metrics


FOLDER = Path(__file__).resolve().parent.parent / "data" / "stories"


@pytest.fixture(scope="module")
def tiny():
    return minillama.load(FOLDER)


@pytest.fixture(scope="module")
def reference():
    return transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_the_command_makes_it(tiny):
    """The same tokenizer, and the first steps of its curve: in float32, many times as fast as
    bfloat16 on a processor that has only the former, hence 1e-3.
    """
    texts = [stories.story(number) for number in range(60_000)]
    tokenizer = story_model.story_tokenizer(texts)
    assert tokenizer.vocab == tiny[1].vocab and tokenizer.specials == tiny[1].specials
    rows = story_model.Rows(story_model.encode_all(tokenizer, texts))
    model = use_attention(Llama.from_scratch(story_model.CONFIG, seed=0), "blocks")
    assert model.cfg == tiny[0].cfg
    plan = replace(story_model.SETTINGS, compiled=False, dtype="float32")

    class Enough(Exception):
        pass

    seen = []

    def look(row):
        seen.append(row)
        if len(seen) == 4:
            raise Enough

    with pytest.raises(Enough):
        fit(model, story_model.batch_loss, rows, plan, progress=False, callbacks=[look])
    kept = read_metrics(FOLDER / "metrics.csv")
    assert len(kept) == plan.steps and kept[-1]["step"] == plan.steps - 1
    for now, then in zip(seen, kept, strict=False):
        assert now["lr"] == then["lr"] and now["loss"] == pytest.approx(then["loss"], abs=1e-3)
        assert now["gradient_norm"] == pytest.approx(then["gradient_norm"], rel=1e-2)


def test_it_knows_what_its_curve_says(reference, tiny):
    """transformers' loss on every piece of a story that a row of the validation holds, alone;
    weights are rounded.
    """
    held = [stories.story(number, validation=True) for number in range(500)]
    rows, total, count = story_model.Rows(story_model.encode_all(tiny[1], held)), 0.0, 0
    used = len(rows.rows) // rows.batch * rows.batch
    order = torch.randperm(len(rows.rows), generator=torch.Generator().manual_seed(0))[:used]
    for row, numbers in zip(rows.rows[order], rows.documents[order], strict=True):
        for piece in row.split(numbers.unique_consecutive(return_counts=True)[1].tolist()):
            if len(piece) > 1:
                with torch.no_grad():
                    total += reference(piece[None], labels=piece[None]).loss.item() * (
                        len(piece) - 1
                    )
                count += len(piece) - 1
    said = read_metrics(FOLDER / "metrics.csv")[-1]["validation_loss"]
    assert total / count == pytest.approx(said, abs=2e-3)


def test_logits_and_ids_are_transformers(reference, tiny):
    model, tokenizer = tiny
    text = stories.story(3, validation=True)
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer.encode(text, bos=True)
    assert (
        ids[1:] == theirs.encode(text, add_special_tokens=False) and theirs.decode(ids[1:]) == text
    )
    with torch.no_grad():
        assert (
            model(torch.tensor([ids])) - reference(torch.tensor([ids])).logits
        ).abs().max() < 5e-5


def test_it_writes_stories(tiny):
    """Fifteen drawn texts end by themselves, of words that stories have, about the child they began
    with.
    """
    model, tokenizer = tiny
    known = set(re.findall(r"[A-Za-z]+", " ".join(stories.story(n) for n in range(3000))))
    names = stories.GIRLS[:15]
    prompts = [tokenizer.encode(f"One morning, {name}", bos=True) for name in names]
    texts = generate_batch(model, prompts, 400, 0.7, seed=0, stop_ids=tokenizer.stop_ids)
    for name, out in zip(names, texts, strict=True):
        words = re.findall(r"[A-Za-z]+", tokenizer.decode(out))
        assert 50 < len(words) and len(out) < 400 and words.count(name) >= 2
        assert len([word for word in words if word not in known]) <= 1, words


def test_stories_are_the_same_everywhere():
    """Python's random is specified bit for bit; these are the first words and a checksum of the
    first hundred.
    """
    assert stories.story(0) == stories.story(0) != stories.story(0, validation=True)
    assert sum(len(stories.story(n)) for n in range(100)) == 53455


def test_children_and_things_kept_back_are_not_trained_on():
    kept = {(name, thing) for name in stories.GIRLS + stories.BOYS for thing in stories.THINGS}
    kept = {pair for pair in kept if stories.held_back(*pair)}
    assert len(kept) == 80  # of 800
    for number in range(300):
        rng = stories.random.Random(number)
        cast = stories.cast(rng, rng.choice(list(stories.PLOTS)), number % 2 == 0)
        assert ((cast["A"].name, cast["thing"]) in kept) == (number % 2 == 0)


def run(capsys, *args):
    code = cli.main(["train", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_on_ones_own_text(tmp_path, capsys):
    text = "\n\n".join(
        f"The {word} is number {n}, and that is all." for n, word in enumerate(["cat", "dog"] * 400)
    )
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    words = ["--text", tmp_path / "own.txt", "--steps", 3, "--dtype", "float32", "--no-compile"]
    code, out, err = run(capsys, tmp_path / "run", *words)
    assert (code, out) == (0, "") and "3 steps, validation loss" in err
    model, tokenizer = minillama.load(tmp_path / "run" / "model")
    assert (
        tokenizer.decode(tokenizer.encode("The cat")) == "The cat"
        and model.cfg.vocab_size == tokenizer.vocab_size
    )
    # nothing left to do, and that is no mistake
    assert run(capsys, tmp_path / "run", *words)[0] == 0
    more = ["--accumulate", 2, "--recompute", "--peak-lr", "0.001"]
    assert run(capsys, tmp_path / "more", *words, *more)[0] == 0
    assert (
        read_metrics(tmp_path / "more" / "metrics.csv")[-1]["lr"]
        == 3 * 0.001 / story_model.SETTINGS.warmup
    )
    code, _, err = run(capsys, tmp_path / "run", *words, "--seed", 1)
    assert code == 2 and "holds a run with seed 0, and now it is 1" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "content, words, says",
    [
        ("one\n\ntwo", [], "2 documents; at least 10"),
        (b"\xff\xfe", [], "is not UTF-8"),
        (None, [], "text.txt cannot be read: No such file"),
        # before anything is read
        (None, ["--steps", "0", "--text", "nowhere"], "steps must be at least 1, not 0"),
        (None, ["--stories", "5"], "at least 100, not 5"),
        (
            None,
            ["--seed", str(2**70)],
            "--seed must be between 0 and 2**32 - 1, not 1180591620717411303424",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, content, words, says):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = run(capsys, tmp_path / "run", *(words or ["--text", path]))
    assert (
        (code, out) == (2, "")
        and says in err
        and err.count("\n") == 1
        and not (tmp_path / "run").exists()
    )

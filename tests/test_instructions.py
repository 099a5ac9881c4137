"""Which ids an assistant wrote, by hand and as transformers has them; rows, losses, bad files, the
command.
"""

import io
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from helpers import random_ids, tiny_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_cli import CHATML, LLAMA3, write_model

import minillama
from minillama import Tokenizer, cli
from minillama.chat import encode_dialog
from minillama.chat_formats import set_chat_format
from minillama.commands import finetune as command
from minillama.inference.attention_backends import use_attention
from minillama.tokenizer import train_bpe
from minillama.training import jsonl
from minillama.training.adapters import load_adapter
from minillama.training.finetuning import add_lora
from minillama.training.instructions import (
    Dialogs,
    answer_loss,
    answers,
    dialog,
    finetune,
    mean_answer_loss,
    pack_whole,
)
from minillama.training.loss import IGNORE, count_targets, token_loss
from minillama.training.optimizer import Settings, trainable
from minillama.training.packing import packed_logits
from minillama.training.runs import TrainingError, read_metrics


ROOT = Path(__file__).resolve().parent.parent


def said(role, content):
    return {"role": role, "content": content}


HELLO = [said("system", "You are a helpful assistant."), said("user", "Hello World!")]


@pytest.mark.weights
def test_llama_3_1_id_by_id(llama3_vocabulary):
    """The published ids of the prompt, then Hello World! and the end of the turn, twice."""
    tokenizer = Tokenizer.from_file(llama3_vocabulary)
    messages = [
        *HELLO,
        said("assistant", "Hello World!"),
        said("user", "Hello World!"),
        said("assistant", "!"),
        HELLO[1],
    ]
    prompt = [
        128000, 128006, 9125, 128007, 271, 2675, 527, 264, 11190, 18328, 13, 128009,
        128006, 882, 128007, 271, 9906, 4435, 0, 128009, 128006, 78191, 128007, 271,
    ]  # fmt: skip
    second = [128006, 882, 128007, 271, 9906, 4435, 0, 128009, 128006, 78191, 128007, 271]
    ids, wrote = answers(tokenizer, messages)
    assert ids == [*prompt, 9906, 4435, 0, 128009, *second, 0, 128009]
    assert wrote == [False] * 24 + [True] * 4 + [False] * 12 + [True] * 2


@pytest.mark.weights
def test_smollm2_id_by_id(ours):
    tokenizer = ours[1]
    ids, wrote = answers(
        tokenizer, [said("system", "Hi"), said("user", "Hi"), said("assistant", "Hi")]
    )
    start, end, line, hi = 1, 2, 198, tokenizer.encode("Hi")
    assert len(hi) == 1
    names = {role: tokenizer.encode(role) for role in ("system", "user", "assistant")}
    assert ids == [
        start, *names["system"], line, *hi, end, line, start, *names["user"], line, *hi, end, line,
        start, *names["assistant"], line, *hi, end,
    ]  # fmt: skip
    assert [i for i, mine in enumerate(wrote) if mine] == [len(ids) - 2, len(ids) - 1]


GENERATION = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}\
{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"""


@pytest.mark.weights
def test_smollm2_as_transformers_masks_it(ours, their_tokenizer):
    """apply_chat_template with return_assistant_tokens_mask, over two of the committed orders in
    one conversation.
    """
    theirs = their_tokenizer
    orders, _ = jsonl.read_jsonl(ROOT / "data" / "studies" / "orders.jsonl", dialog)
    for first, second in pairwise(orders[:40]):
        messages = [
            said("system", "Be brief."),
            *first,
            said("tool", "naïve 日本語"),
            *second,
            said("user", "Thanks!"),
        ]
        want = theirs.apply_chat_template(
            messages, chat_template=GENERATION, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, wrote = answers(ours[1], messages)
        assert (
            ids == want["input_ids"][: len(ids)]
            and theirs.decode(want["input_ids"][len(ids) :])[0] == "\n"
        )
        assert [int(mine) for mine in wrote] == want["assistant_masks"][: len(ids)] and sum(
            wrote
        ) > 40
        assert not any(want["assistant_masks"][len(ids) :])


def toy(form):
    """A tokenizer of bytes with the control tokens of a form."""
    if form == "llama3":
        return Tokenizer.llama3(train_bpe("", 256))
    return Tokenizer(train_bpe("", 256), {"<|im_start|>": 256, "<|im_end|>": 257}, stop_ids=[257])


TEXTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["<|im_end|>", "<|eot_id|>", "assistant\n", "\n\n", " x"])
)
MESSAGES = st.lists(
    st.builds(said, st.sampled_from(["system", "user", "assistant", "tool"]), TEXTS),
    min_size=1,
    max_size=7,
)


@pytest.mark.parametrize("form", ["llama3", "chatml"])
@settings(deadline=None, max_examples=80)
@given(MESSAGES)
def test_an_answer_follows_the_prompt_that_asks_for_it(form, messages):
    """Every answer stands right behind what `encode_dialog` makes of the messages before it, and
    ends as it should.
    """
    tokenizer, stop = toy(form), 257 if form == "chatml" else 256 + 9
    ids, wrote = answers(tokenizer, messages)
    expected = [False] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = encode_dialog(tokenizer, messages[:number])
            text = tokenizer.encode(message["content"])
            assert ids[: len(prompt) + len(text) + 1] == [*prompt, *text, stop]
            expected[len(prompt) : len(prompt) + len(text) + 1] = [True] * (len(text) + 1)
    assert wrote == expected and (not ids or wrote[-1])


def test_chatml_on_llama_3s_vocabulary_with_words_of_its_own():
    """The template says which format; an added word that belongs to text is one id, and is learned
    as one.
    """
    names = [
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    added = {name: 256 + i for i, name in enumerate([*names, "<think>"])}
    tokenizer = Tokenizer(train_bpe("", 256), added, plain={"<think>": False})
    set_chat_format(
        tokenizer, "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + ...", bos_id=256
    )
    ids, wrote = answers(tokenizer, [said("user", "a<think>"), said("assistant", "<think>b")])
    assert ids == [256, 260, *b"user\na", 262, 261, 10, 260, *b"assistant\n", 262, *b"b", 261]
    assert [id for id, mine in zip(ids, wrote, strict=True) if mine] == [262, *b"b", 261]


@pytest.mark.weights
def test_an_answer_that_melts_into_its_header_is_refused(ours, llama3_vocabulary):
    messages = [said("user", "x"), said("assistant", "\n\n  x")]
    with pytest.raises(ValueError, match="begins with white space"):
        answers(ours[1], messages)
    # Llama 3.1's header is cut from what follows by a control id
    tokenizer = Tokenizer.from_file(llama3_vocabulary)
    assert sum(answers(tokenizer, messages)[1]) == len(tokenizer.encode("\n\n  x")) + 1


PAIRS = st.lists(
    st.lists(st.booleans(), min_size=1, max_size=12).map(
        lambda wrote: (list(range(1, len(wrote) + 1)), wrote)
    ),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=100)
@given(PAIRS, st.integers(1, 12))
def test_every_conversation_that_fits_is_in_one_row_whole(pairs, length):
    fitting = [(number, pair) for number, pair in enumerate(pairs) if len(pair[0]) <= length + 1]
    if not fitting:
        with pytest.raises(
            ValueError, match=f"all {len(pairs)} conversations are longer than a row of {length}"
        ):
            pack_whole(pairs, length)
        return
    ids, numbers, wrote, left_out = pack_whole(pairs, length)
    assert left_out == len(pairs) - len(fitting) and ids.shape[1] <= length + 1
    for number, pair in fitting:
        place = (numbers == number).nonzero()
        assert len(place[:, 0].unique()) == 1 and place[:, 1].diff().eq(1).all()
        assert (
            ids[numbers == number].tolist() == pair[0]
            and wrote[numbers == number].tolist() == pair[1]
        )
    filler = numbers == -1
    assert filler.sum() == ids.numel() - sum(len(pair[0]) for _, pair in fitting)
    assert not ids[filler].any() and not wrote[filler].any()


def some(count=9, seed=0, vocab_size=128):
    """Pairs of random ids and marks, the first of which is never the assistant's."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for number in range(count):
        size = 4 + int(torch.randint(9, (), generator=generator))
        wrote = torch.rand(size, generator=generator) < 0.5
        wrote[0], wrote[-1] = False, True
        pairs.append((random_ids(size, seed + number, vocab_size)[0].tolist(), wrote.tolist()))
    return pairs


def test_targets_by_hand():
    rows = Dialogs(
        [([5, 6, 7], [False, True, True]), ([8, 9], [False, True]), ([4] * 9, [True] * 9)],
        6,
        batch=1,
    )
    tokens, targets, documents = rows(0)
    assert (
        tokens.tolist() == [[5, 6, 7, 8]]
        and documents.tolist() == [[0, 0, 0, 1]]
        and rows.left_out == 1
    )
    assert targets.tolist() == [[6, 7, IGNORE, 9]]


def test_the_loss_is_transformers_over_the_assistants_tokens(tmp_path):
    """transformers on every conversation alone, labels -100 where the assistant wrote nothing; ours
    on packed rows.
    """
    reference, model = tiny_pair(tmp_path)
    pairs, total, count = some(), 0.0, 0
    for ids, wrote in pairs:
        labels = torch.tensor([[id if mine else -100 for id, mine in zip(ids, wrote, strict=True)]])
        with torch.no_grad():
            total += reference(torch.tensor([ids]), labels=labels).loss.item() * sum(wrote)
        count += sum(wrote)
    rows = Dialogs(pairs, 20, batch=2)
    assert len(rows.ids) > 2 and sum(count_targets(rows(i)) for i in range(rows.turns)) == count
    assert mean_answer_loss(model, rows) == pytest.approx(total / count, abs=1e-5)
    assert mean_answer_loss(use_attention(model, "sdpa"), rows) == pytest.approx(
        total / count, abs=1e-5
    )


def test_looking_only_where_something_is_asked_changes_no_gradient(tmp_path):
    _, model = tiny_pair(tmp_path)
    add_lora(model)
    batch = Dialogs(some(), 20, batch=3)(0)
    for parameter in trainable(model).values():
        parameter.data.add_(0.01)
    gradients = []
    for loss in (
        answer_loss(model, batch),
        token_loss(packed_logits(model, batch[0], batch[2]), batch[1]),
    ):
        gradients.append(torch.autograd.grad(loss, list(trainable(model).values())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_every_row_comes_once_each_time_round_and_in_another_order():
    rows = Dialogs(some(25), 14, batch=4)
    turns = [[rows(turn * rows.turns + i)[0] for i in range(rows.turns)] for turn in range(2)]
    flat = [sorted(row for batch in turn for row in batch.tolist()) for turn in turns]
    assert (
        len(flat[0]) == len(rows.ids)
        and flat[0] == flat[1]
        and rows(0)[0].tolist() != rows(rows.turns)[0].tolist()
    )
    assert (
        rows.fingerprint()
        == Dialogs(some(25), 14).fingerprint()
        != Dialogs(some(25, 1), 14).fingerprint()
    )


BAD = {  # a line of a file, what is said about it
    '{"messages": [': "line 2: Expecting value at column 15",
    "[1, 2]": 'line 2: no object {"messages": [...]}',
    "{}": 'line 2: no object {"messages": [...]}',
    '{"messages": []}': "line 2: the messages are no list, or an empty one",
    '{"messages": {"role": "user"}}': "line 2: the messages are no list",
    '{"messages": [{"role": "user", "content": "x"}]}': "line 2: no message of the assistant",
    '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}': "line 2: message 2 is",
    '{"messages": [{"role": "bot", "content": "x"}]}': "line 2: message 1: the role 'bot' is none of system, user",
    '{"messages": [{"role": ["user"], "content": "x"}]}': "line 2: message 1: the role",
    '{"messages": [{"role": "user"}]}': 'line 2: message 1 is no {"role": ..., "content": text}',
    '{"messages": [{"role": "user", "content": null}]}': "line 2: message 1 is no",
    '{"messages": ["x"]}': "line 2: message 1 is no",
    '{"messages": [{"role": "user", "content": "x", "content": "y"}]}': "line 2: a key is repeated",
    '{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}': "line 2: message 1 has 'weight', which",
    '{"messages": [{"role": "assistant", "content": "\\ud800"}]}': "line 2: message 1 holds half a character",
    '{"messages": [{"role": "assistant", "content": "", "calls": [5]}]}': "line 2: the calls of message 1 are no list",
    '{"messages": [{"role": "assistant", "content": "", "calls": [{"error": 1}]}]}': "line 2: the calls of message 1",
    '{"messages": [{"role": "assistant", "content": "x", "end": "now"}]}': "line 2: a message ends with",
    '{"x": NaN}': "line 2: NaN is no number of JSON",
    "[" * 100_000: "line 2: nested too deeply",
    b'{"x": "\xff"}': "line 2: not UTF-8 at byte 7",
    "x" * (jsonl.MAX_LINE_BYTES + 9): "line 2: longer than 1,000,000 bytes",
}
GOOD = (
    json.dumps(
        {"messages": [said("user", "Hallo, wie geht’s? 🦙"), said("assistant", "Gut.")], "id": 7}
    )
    + "\n"
)


def as_pair(value):
    return answers(toy("llama3"), dialog(value))


@pytest.mark.parametrize("line", BAD, ids=lambda line: str(line)[:60])
def test_a_bad_line_is_named_and_may_be_left_out(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        GOOD.encode() + (line if isinstance(line, bytes) else line.encode()) + b"\n" + GOOD.encode()
    )
    with pytest.raises(ValueError, match=rf"^{re.escape(f'{path}: {BAD[line]}')}[^\n]*$"):
        jsonl.read_jsonl(path, as_pair)
    values, complaints = jsonl.read_jsonl(path, as_pair, skip_bad=True)
    assert len(values) == 2 and len(complaints) == 1


def test_what_is_no_fault(tmp_path):
    """A byte order mark, Windows' line ends, empty lines, no newline at the end, letters that are
    not ASCII.
    """
    path, plain = tmp_path / "data.jsonl", json.dumps(json.loads(GOOD), ensure_ascii=False)
    path.write_bytes(
        b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode() + b"\r\n \n" + plain.encode()
    )
    values, complaints = jsonl.read_jsonl(path, dialog)
    assert values == [json.loads(GOOD)["messages"]] * 2 and complaints == []


def test_many_bad_lines_are_counted(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(GOOD + "x\n" * 50, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"line 2: .*; line 3: .*; line 4: .*; and 47 more bad lines$"
    ):
        jsonl.read_jsonl(path, dialog)
    path.write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is empty$"):
        jsonl.read_jsonl(path, dialog)
    path.write_text("x\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1"):
        jsonl.read_jsonl(path, dialog, skip_bad=True)


# The command, from a file to an answer.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_model(root / "plain", ["<end>"])
    for name, specials in {"chat": CHATML, "llama": LLAMA3}.items():
        model, tokenizer = minillama.load(write_model(root / f"weak_{name}", specials))
        with torch.no_grad():
            # so small a model has too short vectors to be sure of anything
            model.head.weight.mul_(8)
        minillama.save(model, tokenizer, root / name)
    return root


@pytest.fixture
def data(tmp_path):
    """Twenty times the same short question, with one answer."""
    path = tmp_path / "data.jsonl"
    line = json.dumps(
        {"messages": [said("system", "s"), said("user", "What?"), said("assistant", "This.")]}
    )
    path.write_text(f"{line}\n" * 20, encoding="utf-8")
    return path


def run(capsys, *args):
    code = cli.main([*map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def words(models, data):
    return [
        "finetune",
        data,
        "--model",
        models / "chat",
        "--length",
        64,
        "--dtype",
        "float32",
        "--epochs",
        2,
    ]


@pytest.mark.parametrize("form", ["chat", "llama"])
def test_from_a_file_to_an_answer(models, data, tmp_path, capsys, form):
    """A tiny random model learns one answer by heart, ends it, and says it; peft reads the adapter,
    convert adds it.
    """
    out, model = tmp_path / "out", models / form
    words = ["--epochs", 20, "--lr", 0.05, "--length", 64, "--dtype", "float32", "--rank", 16]
    code, printed, err = run(capsys, "finetune", data, "--model", model, "--out", out, *words)
    assert (
        (code, printed) == (0, "")
        and "new parameters" in err
        and f"minillama chat --adapter {out}" in err
    )
    assert {path.name for path in out.iterdir()} == {
        "state.pt", "metrics.csv", "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    assert read_metrics(out / "metrics.csv")[-1]["validation_loss"] < 0.1
    ours, tokenizer = minillama.load(model)
    ids = encode_dialog(tokenizer, [said("system", "s"), said("user", "What?")])
    base = ours(torch.tensor([ids]))
    changed = load_adapter(ours, out)
    answer = list(minillama.generate(changed, ids, 20, stop_ids=tokenizer.specials.values()))
    assert tokenizer.decode(answer) == "This."
    theirs = peft.PeftModel.from_pretrained(
        transformers.LlamaForCausalLM.from_pretrained(model), out
    ).eval()
    with torch.no_grad():
        want, got = theirs(torch.tensor([ids])).logits, changed(torch.tensor([ids]))
    assert (got - want).abs().max() < 1e-4 < (base - want).abs().max()
    assert run(capsys, "convert", model, tmp_path / "fused", "--adapter", out)[0] == 0
    fused, _ = minillama.load(tmp_path / "fused")
    assert (fused(torch.tensor([ids])) - want).abs().max() < 1e-4


def test_generate_takes_an_adapter(words, models, tmp_path, capsys):
    assert run(capsys, *words, "--out", tmp_path / "out", "--epochs", 12, "--lr", 0.05)[0] == 0
    common = ["--model", models / "chat", "--max-new-tokens", 6]
    adapter = ["--adapter", tmp_path / "out"]
    plain, changed = (
        run(capsys, "generate", "--raw", "x", *common, *more) for more in ([], adapter)
    )
    assert plain[0] == changed[0] == 0 and plain[1] != changed[1]
    code, _, err = run(capsys, "generate", "x", *common, *adapter, "--compiled", "block")
    assert code == 2 and "--adapter goes without --compiled" in err and err.count("\n") == 1
    for name in ("", models / "chat"):
        code, _, err = run(capsys, "generate", "x", *common, "--adapter", name)
        assert code == 2 and "adapter_config.json" in err and err.count("\n") == 1


def test_it_goes_on_where_it_was_killed(words, tmp_path, capsys, monkeypatch):
    """Killed without warning after the first state; the second start ends with the numbers of a run
    that was not.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = [*map(str, words), "--batch", "1", "--epochs", "3"]
    assert run(capsys, *words, "--out", whole)[0] == 0
    code = f"""import os
from minillama import cli
from minillama.training import runs
save = runs.Run.save
def once(self, *rest):
    save(self, *rest)
    os._exit(9)
runs.Run.save = once
cli.main({[*words, "--out", str(cut)]!r})"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode == 9
    )
    assert not (cut / "adapter_config.json").exists() and (cut / "state.pt").exists()
    assert run(capsys, *words, "--out", cut)[0] == 0
    losses = [
        [row["loss"] for row in read_metrics(folder / "metrics.csv")] for folder in (whole, cut)
    ]
    assert losses[0] == losses[1] and len(losses[0]) > 50
    same = [(folder / "adapter_model.safetensors").read_bytes() for folder in (whole, cut)]
    assert same[0] == same[1]


def test_other_data_another_model_or_another_alpha_is_noticed(
    words, data, models, tmp_path, capsys
):
    out = ["--out", tmp_path / "out"]
    assert run(capsys, *words, *out)[0] == 0 and run(capsys, *words, *out)[0] == 0
    for change in (
        ["--alpha", 4],
        ["--rank", 2],
        ["--epochs", 3],
        ["--lr", 0.5],
        ["--seed", 1],
        ["--batch", 1],
    ):
        code, _, err = run(capsys, *words, *out, *change)
        assert code == 2 and err.count("\n") == 1, change
    data.write_text(data.read_text(encoding="utf-8").replace("This", "That"), encoding="utf-8")
    code, _, err = run(capsys, *words, *out)
    assert code == 2 and "holds a run with data" in err and err.count("\n") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "adapter_config.json",
        "state.pt",
    }


MISTAKES = {
    "no file": (["no.jsonl"], "No such file"),
    "not for chat": (["--model", "plain"], "was not made for chat"),
    "rank": (["--rank", 0], "--rank must be at least 1, not 0"),
    "length": (["--length", 301], "--length must be at most the model's 300, not 301"),
    "held": (["--held", 1], "--held must be between 0 and 1"),
    "rate": (["--lr", -1], "peak_lr"),
    "short rows": (["--length", 5], "has 0 conversations of at most 6 tokens"),
    "all held": (
        ["--held", 0.99],
        "has 20 conversations of at most 65 tokens, and 20 would be held back",
    ),
    "seed": (["--seed", -1], "--seed must be between 0"),
    "large seed": (["--seed", 2**64], "--seed must be between 0"),
}


@pytest.mark.parametrize("change, says", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(words, models, tmp_path, capsys, change, says):
    if change[0] == "--model":
        change = ["--model", models / change[1]]
    words = ["finetune", change[0], *words[2:]] if len(change) == 1 else [*words, *change]
    code, out, err = run(capsys, *words, "--out", tmp_path / "out")
    assert (
        (code, out) == (2, "")
        and says in err
        and err.count("\n") == 1
        and not (tmp_path / "out").exists()
    )


def test_folders_that_hold_something_else_are_left_alone(words, data, tmp_path, capsys):
    for name in ("notes.txt", "adapter_config.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine", encoding="utf-8")
        code, _, err = run(capsys, *words, "--out", folder)
        assert code == 2 and f"holds '{name}'" in err and err.count("\n") == 1
        assert [path.name for path in folder.iterdir()] == [name]
    code, _, err = run(capsys, *words, "--out", data)
    assert code == 2 and "is a file" in err


def test_bad_lines_stop_or_are_left_out(words, data, tmp_path, capsys):
    data.write_text(data.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    code, _, err = run(capsys, *words, "--out", tmp_path / "out")
    assert (
        code == 2
        and "line 21: no object" in err
        and err.count("\n") == 1
        and not (tmp_path / "out").exists()
    )
    code, _, err = run(capsys, *words, "--out", tmp_path / "out", "--skip-bad")
    assert code == 0 and "left out 1 bad lines: line 21" in err


def test_batches_that_are_accumulated_count_by_their_tokens(tmp_path):
    """Two batches of a step, one of which asks for far more: the step's loss is that of all tokens
    alike.
    """
    _, model = tiny_pair(tmp_path)
    pairs = [([5] + [7] * 18, [False] + [True] * 18), ([3, 9, 4], [False, False, True])]
    rows = Dialogs(pairs, 18, batch=1)
    assert [count_targets(rows(i)) for i in range(2)] in ([18, 1], [1, 18])
    want = mean_answer_loss(add_lora(model), rows)
    (step,) = finetune(
        model, rows, rows, Settings(steps=1, gradient_accumulation_steps=2), progress=False
    )
    each = [answer_loss(model, rows(i)).item() for i in range(2)]
    assert step["loss"] == pytest.approx(want, abs=1e-5) and abs(sum(each) / 2 - want) > 0.1


def test_the_seed_draws_the_adapter(words, tmp_path, capsys):
    drawn = []
    for seed in (0, 1):
        assert (
            run(
                capsys,
                *words,
                "--out",
                tmp_path / str(seed),
                "--epochs",
                1,
                "--lr",
                1e-9,
                "--seed",
                seed,
            )[0]
            == 0
        )
        drawn.append(load_file(tmp_path / str(seed) / "adapter_model.safetensors"))
    assert not any(
        torch.allclose(part, drawn[1][name], atol=1e-3)
        for name, part in drawn[0].items()
        if "_A" in name
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_conversation_that_is_too_long_is_never_the_one_held_back(seed, capsys):
    pairs = [([1] * 90, [True] * 90), ([1, 2], [False, True]), ([1, 3], [False, True])]
    rows, held = command.split(
        pairs, SimpleNamespace(held=0.1, length=64, batch=1, seed=seed, data="data.jsonl")
    )
    assert len(rows.ids) == len(held.ids) == 1 and rows.ids[0, 1] + held.ids[0, 1] == 5
    assert capsys.readouterr().err == "[left out 1 conversations longer than 65 tokens]\n"


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\n", b"step,loss\n0,1\n", b"", b"step,loss,lr\nx,y,z\n"]
)
def test_a_metrics_file_that_no_run_has_written_is_named(words, tmp_path, capsys, content):
    assert run(capsys, *words, "--out", tmp_path / "out")[0] == 0
    (tmp_path / "out" / "metrics.csv").write_bytes(content)
    code, _, err = run(capsys, *words, "--out", tmp_path / "out")
    if content:
        assert (
            code == 2
            and "metrics.csv is not what a run has written" in err
            and err.count("\n") == 1
        )
        assert (tmp_path / "out" / "metrics.csv").read_bytes() == content
    else:  # emptied or removed: the run had ended, and its adapter is there
        assert code == 0 and re.search(r"validation loss [\d.]+, then [\d.]+; minillama chat", err)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    _, model = tiny_pair(tmp_path / "model")
    rows = Dialogs(some(), 20, batch=2)
    add_lora(model)
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="step 0: the loss is nan"):
        finetune(model, rows, rows, Settings(steps=3), tmp_path / "run", progress=False)


@pytest.mark.weights
def test_the_committed_adapter_is_what_the_study_says(smollm2_path, capsys):
    """The first held-back order of each kind, greedily, is what the study noted; int8 through the
    command, too.
    """
    study = json.loads(
        (ROOT / "data" / "studies" / "instructions.json").read_text(encoding="utf-8")
    )
    noted = study["rank 4, wq and wv, general mixed in"]
    test, _ = jsonl.read_jsonl(ROOT / "data" / "studies" / "orders_test.jsonl", dialog)
    model, tokenizer = minillama.load(smollm2_path)
    load_adapter(model, ROOT / "data" / "studies" / "adapter")
    assert sum(p.numel() for p in trainable(model).values()) == noted["parameters"]
    for kind, messages in (("pairs", test[0]), ("new", test[20])):
        ids = encode_dialog(tokenizer, messages[:1])
        text = tokenizer.decode(
            list(minillama.generate(model, ids, 48, stop_ids=tokenizer.stop_ids))
        )
        assert text == noted["after"][kind]["first"][0] == messages[1]["content"]
    assert not any(study["rank 8"]["before"][kind]["json"] for kind in ("pairs", "new"))
    words = [
        "--adapter",
        ROOT / "data" / "studies" / "adapter",
        "--max-new-tokens",
        6,
        "--quantize",
        "int8",
    ]
    code, out, _ = run(capsys, "generate", "--model", smollm2_path, *words, test[20][0]["content"])
    assert code == 0 and out.startswith('{"item": "')


def test_chat_takes_an_adapter(words, models, tmp_path, capsys, monkeypatch):
    assert (
        run(capsys, *words, "--out", tmp_path / "out", "--epochs", 20, "--lr", 0.05, "--rank", 16)[
            0
        ]
        == 0
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\n"))
    chat = [
        "chat",
        "--model",
        models / "chat",
        "--system",
        "s",
        "--adapter",
        tmp_path / "out",
        "--max-new-tokens",
        20,
    ]
    code, out, _ = run(capsys, *chat)
    assert code == 0 and out.startswith("This.")


def test_the_committed_orders_come_from_their_script():
    """Both files again, and what was promised of them: pairs held back, and things never seen."""
    sys.path.insert(0, str(ROOT / "data" / "studies"))
    try:
        import make_instructions as study
    finally:
        sys.path.pop(0)
    for name, dialogs in study.orders().items():
        text = (ROOT / "data" / "studies" / name).read_text(encoding="utf-8")
        assert [json.loads(line)["messages"] for line in text.splitlines()] == dialogs
    train, test = (
        [json.loads(messages[1]["content"]) for messages in dialogs]
        for dialogs in study.orders().values()
    )
    seen = {(each["item"], each["colour"]) for each in train}
    assert not seen & {(each["item"], each["colour"]) for each in test}
    assert not {each["item"] for each in train} & {each["item"] for each in test[20:]}

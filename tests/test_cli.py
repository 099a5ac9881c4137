"""The command line: the answer alone on stdout, every mistake one line and exit code 2, prompts
arrive untouched.
"""

import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import minillama
from minillama import chat, cli, commands
from minillama.checkpoints import hub
from minillama.checkpoints.names import HUGGING_FACE
from minillama.inference import loading
from minillama.tokenizer import gpt2_bytes


ROOT = Path(__file__).resolve().parent.parent


CHATML = ["<|im_start|>", "<|im_end|>"]
LLAMA3 = [
    f"<|{name}|>"
    for name in "begin_of_text start_header_id end_header_id eom_id eot_id python_tag".split()
]


def write_model(folder: Path, specials=CHATML, tokenizer=True) -> Path:
    """A tiny random model with a byte tokenizer, as a Hugging Face folder."""
    folder.mkdir()
    sizes = dict(
        dim=16,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        ffn_dim=24,
        vocab_size=256 + len(specials),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = minillama.Llama(minillama.LlamaConfig(**sizes, max_seq_len=300))
    spelled = {
        ours.replace(".N.", ".0."): theirs.replace(".N.", ".0.")
        for theirs, ours in HUGGING_FACE.items()
    }
    save_file(
        {spelled[name]: tensor for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
    )
    config = dict(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    config |= dict(
        intermediate_size=24, vocab_size=sizes["vocab_size"], max_position_embeddings=300
    )
    config |= dict(
        eos_token_id=[
            256 + i for i, name in enumerate(specials) if name in ("<|eom_id|>", "<|eot_id|>")
        ]
    )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tokenizer:
        vocab = {char: byte for char, byte in gpt2_bytes().items()}
        added = [
            {"id": 256 + i, "content": name, "special": True} for i, name in enumerate(specials)
        ]
        cut = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        content = {
            "model": {"vocab": vocab, "merges": []},
            "pre_tokenizer": cut,
            "added_tokens": added,
        }
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with a model for chat, one for plain text, one without a tokenizer, and things that
    are no model.
    """
    root = tmp_path_factory.mktemp("models")
    write_model(root / "chat")
    write_model(root / "llama", LLAMA3)
    write_model(root / "plain", ["<end>"])
    write_model(root / "r1", ["<s>", *LLAMA3[1:4], "<｜User｜>", "<｜Assistant｜>"])
    (root / "r1" / "chat_template.jinja").write_text(
        "{{ bos_token + '<｜User｜>' + messages[0].content }}", encoding="utf-8"
    )
    write_model(root / "silent", tokenizer=False)
    (root / "empty").mkdir()
    (root / "hollow").mkdir()
    shutil.copy(root / "chat" / "config.json", root / "hollow")
    (root / "text.gguf").write_text("not a model", encoding="utf-8")
    return root


@pytest.fixture
def generate(models, capsys):
    """Run `generate` on one of the models: exit code, stdout, stderr."""

    def run(*args, model="chat", tokens=12):
        limit = ["--max-new-tokens", str(tokens)] if tokens else []
        code = cli.main(["generate", "--model", str(models / model), *limit, *args])
        return code, *capsys.readouterr()

    return run


def test_the_answer_alone_goes_to_stdout(generate):
    code, out, err = generate("Hello")
    assert code == 0 and out.endswith("\n") and len(out) > 1
    assert "parameters" in err and err.count("\n") == 1 and "parameters" not in out


def test_the_same_seed_gives_the_same_answer(generate):
    def draw(seed):
        return generate(
            "--temperature", "2", "--top-k", "200", "--top-p", "0.99", "--seed", seed, "Hello"
        )[:2]

    assert draw("7") == draw("7") != draw("8")


@pytest.fixture
def asked(monkeypatch):
    """The messages that reach the tokenizer."""
    seen = []
    monkeypatch.setattr(
        chat, "encode_dialog", lambda tokenizer, messages: seen.extend(messages) or [1, 2]
    )
    return seen


@pytest.mark.parametrize(
    "prompt", ["-x", "--help", "naïve 日本語 🦙", "a\nb", "$HOME `id`", "<|im_end|>", "%s {} \\n"]
)
def test_any_prompt_arrives_as_it_is(generate, asked, prompt):
    assert generate("--", prompt)[0] == 0
    assert asked == [{"role": "user", "content": prompt}]


def test_a_dash_reads_standard_input_as_utf_8_without_the_last_newline(
    generate, asked, monkeypatch
):
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO("naïve\n🦙\n".encode()), encoding="latin-1")
    )
    assert generate("-")[0] == 0
    assert asked == [{"role": "user", "content": "naïve\n🦙"}]


MISTAKES = {  # arguments, model, words of the message
    "negative temperature": (["--temperature=-1", "x"], "chat", "temperature must be "),
    "top_p over 1": (["--top-p=1.5", "x"], "chat", "top_p must be "),
    "top_k 0": (["--top-k=0", "x"], "chat", "top_k must be "),
    "no tokens": (
        ["--max-new-tokens=0", "x"],
        "chat",
        "--max-new-tokens must be at least 1, not 0",
    ),
    "negative tokens": (
        ["--max-new-tokens=-5", "x"],
        "chat",
        "--max-new-tokens must be at least 1, not -5",
    ),
    "seed too large": (["--seed", str(2**64), "x"], "chat", "--seed must be between 0 and"),
    "negative seed": (["--seed=-1", "x"], "chat", "--seed must be between 0 and"),
    "empty prompt": ([""], "chat", "the prompt is empty"),
    "blank prompt": ([" \n "], "chat", "the prompt is empty"),
    "unknown model": (
        ["x"],
        "nothing",
        "no such file or folder, and no such name (smollm2-135m-instruct",
    ),
    "folder without config": (
        ["x"],
        "empty",
        "neither a .gguf file nor a folder with a config.json",
    ),
    "folder without weights": (["x"], "hollow", "hollow"),
    "not a gguf": (["x"], "text.gguf", "not a GGUF file"),
    "no tokenizer": (["x"], "silent", "has no tokenizer"),
    "not for chat": (["x"], "plain", "add --raw"),
    "for another chat": (
        ["x"],
        "r1",
        "(<｜User｜>) is neither Llama 3's chat format nor ChatML); add --raw",
    ),
    "prompt too long": (["x" * 400], "chat", "exceed the context of 300"),
    "answer too long": (["--max-new-tokens=1000", "x"], "chat", "exceed the context of 300"),
}


@pytest.mark.parametrize("args, model, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(generate, args, model, words):
    code, out, err = generate(*args, model=model, tokens=None)
    assert (
        (code, out) == (2, "")
        and err.count("\n") == 1
        and err.startswith("minillama: ")
        and words in err
    )


@pytest.mark.parametrize(
    "args", [["--temperature=-1", "x"], ["--top-p=2", "x"], ["--max-new-tokens=0", "x"], [""]]
)
def test_a_wrong_setting_is_found_before_anything_is_fetched_or_loaded(generate, monkeypatch, args):
    monkeypatch.setattr(loading, "load", None)
    assert generate(*args, tokens=None)[0] == 2


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "required: COMMAND; see minillama --help"),
        (["generrate"], "invalid choice"),
        (
            ["generate", "--temperature", "warm", "x"],
            "invalid float value: 'warm'; see minillama generate --help",
        ),
        (["generate", "--max-new-tokens", "1.5", "x"], "invalid int value"),
        (["generate", "two", "prompts"], "unrecognized arguments: prompts"),
        (["fetch"], "required: name"),
    ],
)
def test_a_misspelled_command_is_one_line(capsys, argv, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and err.count("\n") == 1 and words in err


@pytest.mark.parametrize(
    "device, words", [("gpu", "must be cpu, cuda"), ("cuda:7", "no cuda:7 here")]
)
def test_a_device_that_there_is_not_is_one_line(capsys, device, words):
    assert cli.main(["generate", "--device", device, "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err


@pytest.mark.parametrize(
    "argv, words", [(["--help"], "usage"), (["--version"], "minillama"), (["sing"], "invalid")]
)
def test_of_several_ranks_only_the_first_explains_itself(capsys, monkeypatch, argv, words):
    """The others end well, or torchrun would take one of them for the first that failed."""
    said = {}
    for count, rank in (("1", "0"), ("2", "0"), ("2", "1")):
        monkeypatch.setenv("WORLD_SIZE", count)
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        said[count, rank] = stop.value.code or 0, *capsys.readouterr()
    assert said["1", "0"] == said["2", "0"] and words in "".join(said["2", "0"][1:])
    assert said["2", "1"] == (0, "", "")


@pytest.mark.parametrize(
    "argv", [["--help"], *([name, "--help"] for name in ("generate", "chat", "fetch", "verify"))]
)
def test_help_helps(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "") and "usage: minillama" in out
    assert argv[0] in ("chat", "fetch", "verify") or 'minillama generate "' in out


def test_raw_continues_plain_text(generate):
    code, out, _ = generate("--raw", "Once upon", model="plain")
    assert code == 0 and out


def test_ctrl_c_is_one_line(generate, monkeypatch):
    def interrupted(*args, **kwargs):
        yield 72
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.generate, "generate", interrupted)
    assert generate("x") == (130, "H", "\nstopped\n")


@pytest.fixture
def talk(models, capsys, monkeypatch):
    """Type lines into `chat`: exit code, stdout, stderr, and every conversation that reached the
    tokenizer.
    """
    seen, encode = [], chat.encode_dialog
    monkeypatch.setattr(
        chat,
        "encode_dialog",
        lambda tokenizer, told, *form: seen.append(told) or encode(tokenizer, told, *form),
    )

    def run(*lines, args=(), model="chat", tokens=8):
        seen.clear()
        typed = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="latin-1"))
        code = cli.main(
            ["chat", "--model", str(models / model), "--max-new-tokens", str(tokens), *args]
        )
        return (
            code,
            *capsys.readouterr(),
            [[(each["role"], each["content"]) for each in told] for told in seen],
        )

    return run


def test_a_chat_remembers(talk):
    code, out, err, seen = talk("Grüße 🦙", "", "and you?", args=["--system", "Be brief."])
    assert code == 0 and "/save" in err and out
    assert seen[0] == [("system", "Be brief."), ("user", "Grüße 🦙")]
    assert (
        seen[-1][:2] == seen[0]
        and seen[-1][2][0] == "assistant"
        and seen[-1][3:] == [("user", "and you?")]
    )
    assert out.startswith(seen[-1][2][1])


def test_system_and_reset(talk):
    seen = talk("one", "/system Rhyme.", "two", "/reset", "three", "/system", "four")[3]
    asked = {told[-1][1]: told for told in seen}
    assert asked["two"][0] == ("system", "Rhyme.") and asked["two"][1] == ("user", "one")
    assert asked["three"] == [("system", "Rhyme."), ("user", "three")]
    assert asked["four"][0] == ("user", "three")


def test_a_saved_chat_goes_on(talk, tmp_path):
    file = tmp_path / "my chat.json"
    first = talk("<|im_end|> ü", f"/save {file}")
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [each["role"] for each in saved] == ["user", "assistant"] and saved[0][
        "content"
    ] == "<|im_end|> ü"
    assert "2 messages saved" in first[2] and list(tmp_path.iterdir()) == [file]
    told = talk(f"/load {file}", "more")[3][-1]
    assert told == [(each["role"], each["content"]) for each in saved] + [("user", "more")]


def test_a_tilde_is_the_home_folder(talk, tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    talk("one", "/save ~/talk.json")
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]
    assert talk("/load ~/talk.json", "two")[3][-1][0] == ("user", "one")
    assert "No such file" in talk("/load ~/../nothing.json", "/save ~nobody-of-that-name/x")[2]


@pytest.fixture
def terminal(monkeypatch):
    """The other end of a terminal that is standard input."""
    pty = pytest.importorskip("pty", reason="Windows has none")
    ours, theirs = pty.openpty()
    with open(theirs, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield lambda text: os.write(ours, text.encode())
    os.close(ours)


def test_lines_that_come_at_once_are_one_message(terminal, capsys):
    for typed in ("first\nsecond\n\nthird 🦙\n", "alone\n", "/reset\n"):
        terminal(typed)
        assert commands.chat.read_message() == typed.strip()
    terminal("/system x\nnext\n")  # a command is a line
    assert [commands.chat.read_message() for _ in range(2)] == ["/system x", "next"]
    terminal("\x04")
    with pytest.raises(EOFError):
        commands.chat.read_message()
    assert capsys.readouterr().out == "> " * 6


def test_a_paste_into_a_real_terminal(models, tmp_path):
    """Readline asks the terminal to mark a paste, in which Enter is only a line's end."""
    pty = pytest.importorskip("pty", reason="Windows has none")
    if "GNU" not in pytest.importorskip("readline").__doc__:
        pytest.skip("libedit marks no paste")
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "HOME": str(tmp_path), "INPUTRC": os.devnull}
    ask = command("chat", "--model", models / "chat", "--max-new-tokens", 1)
    lines = [b"\x1b[200~one\rtwo\r\x1b[201~\r", b"/save ~/talk.json\r", b"\x04"]
    with subprocess.Popen(
        ask, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # as Linux says that the other end is closed
            while select.select([ours], [], [], 120)[0] and (data := os.read(ours, 1000)):
                said += data
                if said.endswith(b"\x1b[?2004h> ") and lines:
                    os.write(ours, lines.pop(0))
        process.kill()
    os.close(ours)
    assert not lines, said
    assert (
        json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))[0]["content"] == "one\ntwo"
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}x",
        "[[]]",
        "5",
        '[{"role": "user"}]',
        '[{"role": "boss", "content": "x"}]',
        "[" * 100_000,
        '[{"role": "user", "content": 5}]',
        '[{"role": "user", "content": "\\ud800"}]',
    ],
    ids=range(9),
)
def test_what_is_no_conversation_is_one_line_and_the_chat_goes_on(talk, tmp_path, content):
    (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    code, _, err, seen = talk(
        "one", f"/load {tmp_path / 'bad.json'}", f"/save {tmp_path}/no/x", "/sing", "/load", "two"
    )
    assert (
        code == 0
        and err.count("minillama: ") == 4
        and "is no conversation" in err
        and "Traceback" not in err
    )
    assert seen[-1][0] == ("user", "one") and seen[-1][-1] == ("user", "two")


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(talk, monkeypatch):
    def interrupted(*args, **kwargs):
        yield 72
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.chat, "generate", interrupted)
    code, out, _, seen = talk("one", "two")
    assert code == 0 and out == "H\n[stopped]\n" * 2
    assert seen[-1] == [("user", "one"), ("assistant", "H"), ("user", "two")]


def test_ctrl_c_before_the_first_word_takes_the_question_back(talk, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(commands.chat, "generate", interrupted)
    code, out, _, seen = talk("one", "two")
    assert code == 0 and out == "\n[stopped]\n" * 2 and seen[-1] == [("user", "two")]


def test_ctrl_c_at_the_prompt_keeps_the_chat(talk, monkeypatch):
    typed = iter(["one", KeyboardInterrupt, "two", EOFError])

    def type_it(prompt):
        if isinstance(line := next(typed), str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", type_it)
    code, _, err, seen = talk()
    assert code == 0 and "[Ctrl-D ends the chat]" in err
    assert [text for who, text in seen[-1] if who == "user"] == ["one", "two"]


@pytest.fixture
def calling(monkeypatch):
    """A model that calls the interpreter, and says what it got; `.prompts` are the texts that it
    was shown.
    """

    def generate(model, ids, **settings):
        calling.prompts.append(bytes(id for id in ids if id < 256).decode())
        eom, eot, tag = (
            256 + LLAMA3.index(f"<|{name}|>") for name in ("eom_id", "eot_id", "python_tag")
        )
        yield from (
            [b"So it is.", eot] if len(calling.prompts) % 2 == 0 else [tag, b"print(6 * 7)", eom]
        )

    def one_by_one(*args, **settings):
        for each in generate(*args, **settings):
            yield from each if isinstance(each, bytes) else [each]

    calling.prompts = []
    monkeypatch.setattr(commands.chat, "generate", one_by_one)
    return calling


@pytest.mark.parametrize(
    "agree, result", [("y", "42"), ("n", "error: the user did not let this run")]
)
def test_python_runs_only_if_asked_for_and_agreed_to(talk, calling, tmp_path, agree, result):
    lines = [
        "6 times 7?",
        agree,
        f"/save {tmp_path}/chat.json",
        "/reset",
        f"/load {tmp_path}/chat.json",
    ]
    code, out, err, _ = talk(
        *lines, "and?", agree, args=["--tools", "python", "--system", "Be brief."], model="llama"
    )
    assert code == 0 and "minillama: " not in err, err
    assert (
        out.startswith(
            "<|python_tag|>print(6 * 7)\nrun this on your computer, without a sandbox? [y/N] "
        )
        and "So it is." in out
    )
    assert (
        "Environment: ipython\n\nBe brief." in calling.prompts[0]
        and calling.prompts[1].count(result) == 1
    )
    # loaded with its calls
    assert calling.prompts[2].startswith(calling.prompts[1].removesuffix("assistant\n\n"))
    assert calling.prompts[3].count(result) == 2


def test_without_tools_code_is_only_text(talk, calling):
    code, out, _, _ = talk("6 times 7?", model="llama")
    assert (code, out, len(calling.prompts)) == (0, "<|python_tag|>print(6 * 7)\nSo it is.\n", 2)
    assert "ipython" not in calling.prompts[0] and "there is no tool" in calling.prompts[1]


def test_tools_want_a_model_that_knows_them(talk):
    code, out, err, _ = talk("x", args=["--tools", "python"])
    assert (
        (code, out) == (2, "") and err.count("\n") == 1 and "was not trained to call tools" in err
    )


def test_a_chat_that_grows_too_long_loses_its_oldest_turns_and_says_so(talk):
    code, _, err, seen = talk("a" * 130, "b" * 130, "c" * 400, "d")
    assert (
        code == 0
        and "[dropped the 2 oldest messages, from 'aaaa" in err
        and "holds 300 tokens" in err
    )
    # the message of 400 is refused, and is not kept
    assert "the system prompt and the last turn take" in err
    assert seen[-1][-1] == ("user", "d") and not any("c" * 400 in text for _, text in seen[-1])


@pytest.mark.parametrize(
    "model, words",
    [
        ("plain", "was not made for chat"),
        ("silent", "was not made for chat"),
        ("r1", "(<｜User｜>)"),
    ],
)
def test_a_model_that_cannot_chat(talk, model, words):
    code, out, err, _ = talk("x", model=model)
    assert (code, out) == (2, "") and err.count("\n") == 1 and words in err


def command(*args) -> list[str]:
    return [sys.executable, "-m", "minillama", *map(str, args)]


def test_the_command_as_people_run_it(models):
    run = dict(
        capture_output=True,
        encoding="utf-8",
        cwd=models,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    done = subprocess.run(command("generate", "--model", "chat", "-"), input="Grüße", **run)
    assert done.returncode == 0 and done.stdout.endswith("\n") and done.stderr.startswith("["), (
        done.stderr
    )
    assert (
        subprocess.run(command("--version"), **run).stdout == f"minillama {minillama.__version__}\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no broken pipes")
def test_a_reader_who_has_enough_ends_it_quietly(models):
    """As in `minillama generate ... | head -c 1`."""
    ask = command("generate", "--model", models / "chat", "--max-new-tokens", 150, "x")
    with subprocess.Popen(ask, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("stream", [None, "closed"])
def test_without_standard_error_it_goes_on(models, generate, monkeypatch, tmp_path, stream):
    """A program without a console has None. No bar and no message, for commands and for the
    library.
    """
    said = generate("Hello")
    if stream:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    model, tokenizer = minillama.load(models / "chat")
    minillama.save(model, tokenizer, tmp_path / "again")
    with loading.waiting("waiting"), hub.progress(3, "fetching") as bar:
        bar.update()
    assert generate("Hello")[:2] == said[:2] and not sys.stderr.closed
    monkeypatch.setattr(sys, "stderr", stream)
    assert generate("")[0] == 2


def test_without_standard_input_and_output(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "the prompt is empty" in generate("-")[2]
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["plan", "llama-3.1-8b"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows closes no standard stream")
def test_standard_error_closed_by_a_shell(models):
    """No file that is opened later may get its number, or messages would land there."""
    shell = [
        "sh",
        "-c",
        'exec "$@" 2>&-',
        "sh",
        *command("generate", "--model", models / "chat", "x"),
    ]
    done = subprocess.run(shell, capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and done.stdout.endswith("\n") and done.stderr == ""


FULL = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="only Linux has a device that is always full"
)
PRINTING = {
    "help": ["--help"],
    "help of a command": ["plan", "--help"],
    "version": ["--version"],
    "plan": ["plan", "llama-3.1-8b"],
    "plan, for programs": ["plan", "llama-3.1-8b", "--json"],
    "verify": ["verify", "chat"],
    "convert": ["convert", "chat", "converted"],
    "generate": ["generate", "--model", "chat", "x"],
    "chat": ["chat", "--model", "chat"],
}


@FULL
@pytest.mark.parametrize("argv", PRINTING.values(), ids=PRINTING)
def test_standard_output_that_is_full_is_one_line(models, capsys, monkeypatch, argv):
    monkeypatch.chdir(models)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(argv) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert last == "minillama: [Errno 28] No space left on device"
    assert before in ([], [commands.chat.CHAT_HELP])


@FULL
def test_standard_error_that_is_full_too_ends_quietly(generate, monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        assert cli.main(["plan", "llama-3.1-8b"]) == cli.main(["plan", "llama-9"]) == 2


@FULL
def test_standard_output_that_is_full_ends_python_quietly():
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w", encoding="utf-8") as full:
        how = dict(stdout=full, stderr=subprocess.PIPE, encoding="utf-8", env=env)
        done = subprocess.run(command("plan", "llama-3.1-8b"), **how)
    assert (done.returncode, done.stderr) == (2, "minillama: [Errno 28] No space left on device\n")


PROMPTS = [
    "",
    "-n",
    "--help",
    'it\'s "quoted"',
    "$HOME ${HOME} $(HOME) $$",
    "`touch x`; touch y",
    "$(shell touch z)",
    "naïve 日本語 🦙",
    "a  b\tc",
    "50% #1 \\ /",
    "first\nsecond",
    "@echo off & | > w",
]


@pytest.mark.skipif(not shutil.which("make") or sys.platform == "win32", reason="needs make")
@pytest.mark.parametrize("place", ["argument", "environment"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=ascii)
def test_make_demo_passes_any_prompt_and_executes_nothing(tmp_path, prompt, place):
    """The Makefile with a stand-in for python that prints its arguments, each ended by a zero
    byte.
    """
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt", ".venv/core", "bin/python"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n", encoding="utf-8")
    (tmp_path / "bin" / "python").chmod(0o755)
    before = sorted(tmp_path.rglob("*"))
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "MFLAGS", "PROMPT"))
    }
    given = [f"PROMPT={prompt}"] if place == "argument" else []
    env |= {} if given else {"PROMPT": prompt}
    done = subprocess.run(
        ["make", "demo", f"BIN={tmp_path / 'bin'}", *given],
        cwd=tmp_path,
        env=env,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(b"\0")[:-1] == [
        b"-m",
        b"minillama",
        b"generate",
        b"--",
        prompt.encode(),
    ]
    assert sorted(tmp_path.rglob("*")) == before

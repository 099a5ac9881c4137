"""The templates that we write beside a tokenizer, run by transformers: the ids of chapter 10, for
hundreds of conversations with and without tools.
"""

import json
import random

import pytest
import transformers
from test_gguf_writer import tiny, tokenizer_of

from minillama import Tokenizer
from minillama.chat import encode_dialog, parse_assistant, system_prompt
from minillama.chat_formats import CHAT_TEMPLATES, chat_format, set_chat_format
from minillama.checkpoints.hugging_face_writer import save_hugging_face


WORDS = (
    "The lamp was lit. | 2+2? | naïve 灯台 🦙 |  two  spaces | line\nline\n\n | {'a': 1} | "
    '{"b": [1, 2]} | "quoted" \\n | {{ messages }} | {% raw %} | <b>&amp;</b> | a\tb | 1850 31x'
).split(" | ")
KEYS = "city n query code text".split()


def words(rng) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(1, 4)))


def value(rng, depth=0):
    """Something that JSON can say."""
    kinds = [words(rng), rng.randrange(-99, 99), 0.5, True, None]
    if depth < 2:
        kinds += [[value(rng, depth + 1), 1], {"x": value(rng, depth + 1)}, {}, []]
    return rng.choice(kinds)


def function(rng, n) -> dict:
    """A tool as JSON Schema describes it."""
    about = {name: {"type": "string", "description": words(rng)} for name in KEYS[:n]}
    parameters = {"type": "object", "properties": about, "required": KEYS[:n]}
    return {"name": f"tool_{n}", "description": words(rng), "parameters": parameters}


def call(rng) -> dict:
    kind = rng.randrange(4)
    if kind == 0:
        return {"name": "brave_search", "arguments": {"query": "naïve lamps, 1850"}}
    if kind == 1:
        return {"name": "code_interpreter", "arguments": {"code": "x = 2\nprint(x)"}}
    chosen = rng.sample(KEYS, rng.randrange(3))
    return {"name": f"tool_{kind}", "arguments": {key: value(rng) for key in chosen}}


def dialog(rng) -> tuple[list[dict], list[dict], list[dict], list[str]]:
    """(ours, the same as transformers has it, functions, built-in tools)"""
    functions = [function(rng, n) for n in range(rng.choice([0, 0, 1, 2]))]
    builtin = rng.choice([[], [], ["brave_search"], ["brave_search", "wolfram_alpha"]])
    text = rng.choice(["", words(rng)])
    ours, theirs = [], []
    if text:
        theirs.append({"role": "system", "content": text})
    if prompt := system_prompt(text, builtin, functions):
        ours.append({"role": "system", "content": prompt})
    for _ in range(rng.randrange(1, 4)):
        both = [{"role": "user", "content": words(rng)}]
        if rng.random() < 0.5:
            made, tag = call(rng), rng.choice([False, True])
            content = words(rng) if tag else ""
            # as a program that calls transformers writes it, and as `parse_assistant` does
            end = rng.choice(["eot", "eom"]) if tag else "eot"
            more = {"tag": tag, "end": end}
            ours += both + [{"role": "assistant", "content": content, "calls": [made]} | more]
            their_call = {"type": "function", "function": made}
            if rng.random() < 0.3:
                more["calls"] = [made]
            else:
                more["tool_calls"] = [their_call]
            theirs += both + [{"role": "assistant", "content": content or None} | more]
            both = [{"role": rng.choice(["tool", "ipython"]), "content": words(rng)}]
        ours += both
        theirs += both
        if rng.random() < 0.7:
            answer = {"role": "assistant", "content": words(rng)}
            ours, theirs = ours + [answer], theirs + [answer]
    return ours, theirs, functions, builtin


def with_control(name: str) -> Tokenizer:
    """A small tokenizer with the control tokens of one format."""
    tokenizer = tokenizer_of(plain=())
    if name == "chatml":
        first = len(tokenizer.vocab)
        specials = {"<|endoftext|>": first, "<|im_start|>": first + 1, "<|im_end|>": first + 2}
        end = [first + 2]
        tokenizer = Tokenizer(tokenizer.vocab, specials, eos_id=first + 2, stop_ids=end)
    return set_chat_format(tokenizer)


@pytest.fixture(scope="module", params=CHAT_TEMPLATES)
def pair(request, tmp_path_factory):
    """(ours, transformers' from the folder that we write)"""
    folder, ours = tmp_path_factory.mktemp("model") / request.param, with_control(request.param)
    save_hugging_face(tiny(), ours, folder)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


def test_400_conversations(pair):
    ours, theirs = pair
    rng, called, offered = random.Random(0), 0, 0
    for number in range(400):
        mine, messages, functions, builtin = dialog(rng)
        tools = [{"type": "function", "function": each} for each in functions]
        how = dict(tools=tools or None, builtin_tools=builtin, add_generation_prompt=True)
        text = theirs.apply_chat_template(messages, tokenize=False, **how)
        ids = encode_dialog(ours, mine)
        assert text == ours.decode(ids), number
        assert theirs.apply_chat_template(messages, return_dict=False, **how) == ids, number
        called += any("calls" in message for message in mine)
        offered += bool(functions)
    assert called > 100 and offered > 100


def test_what_a_model_said_is_written_back(pair):
    """Parsed from ids, put into the template as it is: the same ids."""
    ours, theirs = pair
    if "<|eom_id|>" not in ours.specials:
        return
    said = 'Let me look.<|python_tag|>brave_search.call(query="lamps")<|eom_id|>'
    message = parse_assistant(ours, ours.encode(said, allowed_special="all"))
    messages = [{"role": "user", "content": "x"}, message, {"role": "tool", "content": "y"}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_dialog(ours, messages)


def test_several_calls_and_arguments_as_text(pair):
    """The words are chapter 10's; at the seam between two calls the template's ids may differ,
    since it is one text there.
    """
    ours, theirs = pair
    calls = [{"name": f"f{n}", "arguments": {"n": n}} for n in range(2)]
    mine = [{"role": "user", "content": "x"}, {"role": "assistant", "calls": calls}]
    wanted = ours.decode(encode_dialog(ours, mine))
    for form in (
        lambda each: each,
        lambda each: each | {"arguments": json.dumps(each["arguments"])},
    ):
        given = [{"type": "function", "function": form(each)} for each in calls]
        messages = [mine[0], {"role": "assistant", "content": None, "tool_calls": given}]
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == wanted


@pytest.mark.parametrize(
    "message, match",
    [
        ({"role": "robot", "content": "x"}, "robot is not known"),
        ({"role": "user", "content": "x", "calls": [{"name": "f", "arguments": {}}]}, "not user"),
    ],
)
def test_what_chapter_10_refuses_the_template_refuses(pair, message, match):
    ours, theirs = pair
    with pytest.raises(Exception, match=match):
        theirs.apply_chat_template([message])
    with pytest.raises(ValueError):
        encode_dialog(ours, [message])


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_our_reader_knows_our_templates(name):
    tokenizer = with_control(name)
    plain, read = tokenizer.chat_format, chat_format(tokenizer, CHAT_TEMPLATES[name])
    assert (read.name, read.first, read.system) == (plain.name, plain.first, "")

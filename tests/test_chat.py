"""Conversations as ids, as Meta writes them; text that tries to be a control token; calls;
tools.
"""

import json
import sys
import time

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minillama import Tokenizer, chat
from minillama.chat_formats import chat_format
from minillama.tokenizer import llama3_special_names, train_bpe


@pytest.fixture(scope="module")
def llama3(llama3_vocabulary):
    return Tokenizer.from_file(llama3_vocabulary)


@pytest.fixture(scope="module", params=["llama3", "smollm2"])
def either(request):
    return (
        request.getfixturevalue("llama3")
        if request.param == "llama3"
        else request.getfixturevalue("ours")[1]
    )


@pytest.fixture(scope="module")
def toy():
    """Llama 3.1's layout around a vocabulary of bytes."""
    return Tokenizer.llama3(train_bpe("", 256))


def ids_of(tokenizer, text: str) -> list[int]:
    """What a model would emit: here, and only here, names of control tokens become their ids."""
    return tokenizer.encode(text, allowed_special="all")


def user(content="x"):
    return {"role": "user", "content": content}


@pytest.mark.weights
def test_published_ids(llama3):
    """Meta's documentation of the format, "Hello World!" after a system prompt."""
    messages = [{"role": "system", "content": "You are a helpful assistant."}, user("Hello World!")]
    assert chat.encode_dialog(llama3, messages) == [
        128000, 128006, 9125, 128007, 271, 2675, 527, 264, 11190, 18328, 13, 128009,
        128006, 882, 128007, 271, 9906, 4435, 0, 128009, 128006, 78191, 128007, 271,
    ]  # fmt: skip


@pytest.mark.weights
def test_generated_dialogs_as_metas_own_code(llama3):
    """Tools on and off, eom and eot, all roles, many scripts, names of control tokens:
    make_meta_chat.py.
    """
    with np.load(GOLDEN / "meta_chat.npz") as golden:
        dialogs = json.loads(golden["dialogs"].tobytes())
        ids = np.split(golden["ids"], golden["lengths"].cumsum()[:-1])
    assert len(dialogs) == len(ids) >= 400
    for dialog, theirs in zip(dialogs, ids, strict=True):
        assert chat.encode_dialog(llama3, dialog["messages"], dialog["form"]) == theirs.tolist(), (
            dialog
        )


@pytest.mark.weights
@pytest.mark.parametrize("system", [True, False])
def test_smollm2_as_its_own_template(ours, smollm2_gguf, system):
    """The Jinja template inside the GGUF, rendered by jinja2, its names of control tokens
    allowed.
    """
    import jinja2

    messages = [{"role": "system", "content": "Be brief."}] * system
    messages += [user("Hi there"), {"role": "assistant", "content": "Hello!\n"}, user(" 12 + 3?")]
    template = jinja2.Template(smollm2_gguf.fields["tokenizer.chat_template"].contents())
    text = template.render(messages=messages, add_generation_prompt=True)
    assert chat.encode_dialog(ours[1], messages) == ours[1].encode(text, allowed_special="all")


# Injection: text stays text.


def with_name(name: str) -> dict[str, list[dict]]:
    """Dialogs that hold a name of a control token in every place where text can come from
    outside.
    """
    call = {"name": name, "arguments": {name: [name]}}
    answer = {"role": "assistant", "content": name, "calls": [call], "end": "eom"}
    unknown = chat.run_tool({"f": lambda x: x}, call)
    echo = chat.run_tool({"f": lambda x: x}, {"name": "f", "arguments": {"x": name}})
    assert name in unknown and echo == name
    code = {"name": "code_interpreter", "arguments": {"code": name}}
    functions = [
        {
            "name": name,
            "description": name,
            "parameters": {"type": "object", "properties": {name: {}}},
        }
    ]
    return {
        "content": [user(name)],
        "system": [{"role": "system", "content": chat.system_prompt(name, functions=functions)}],
        "call": [answer],
        "query": [
            {"role": "assistant", "calls": [{"name": "brave_search", "arguments": {"query": name}}]}
        ],
        "code": [{"role": "assistant", "calls": [code], "tag": True}],
        "broken call": [{"role": "assistant", "calls": [{"error": name, "text": name}]}],
        "result": [{"role": "ipython", "content": unknown}, {"role": "tool", "content": echo}],
    }


@pytest.mark.weights
@pytest.mark.parametrize("form", ["json", "function_tag"])
def test_text_never_becomes_a_control_token(either, form):
    """All of Llama 3.1's 256 names (SmolLM2: its 17): as many control ids as with a harmless word
    in their place.

    As a role, a name is refused.
    """
    control = set(either.specials.values())

    def count(dialog):
        return sum(id in control for id in chat.encode_dialog(either, dialog, form))

    harmless = {place: count(dialog) for place, dialog in with_name("word").items()}
    for name in either.specials:
        assert {place: count(dialog) for place, dialog in with_name(name).items()} == harmless, name
        assert not control & set(either.encode(name)), name
        for role in (name, name.strip("<|>"), f"user{name}"):
            with pytest.raises(ValueError, match="role"):
                chat.encode_dialog(either, [{"role": role, "content": "x"}])
    everything = "".join(either.specials)
    assert {place: count(dialog) for place, dialog in with_name(everything).items()} == harmless


@pytest.mark.parametrize(
    "name", [*llama3_special_names()[:12], "sytem", "", "User", "user\n", None, 5, ["user"]]
)
def test_a_role_is_one_of_the_known_ones(toy, name):
    with pytest.raises(ValueError, match="role"):
        chat.encode_dialog(toy, [{"role": name, "content": "x"}])
    with pytest.raises(ValueError, match="role"):
        chat.encode_dialog(toy, [{"content": "x"}])


def test_what_else_is_refused(toy):
    call = {"name": "f", "arguments": {}}
    with pytest.raises(ValueError, match="only the assistant calls tools"):
        chat.encode_dialog(toy, [user() | {"calls": [call]}])
    with pytest.raises(ValueError, match='ends with "eot" or "eom"'):
        chat.encode_dialog(toy, [{"role": "assistant", "content": "x", "end": "<|eom_id|>"}])
    with pytest.raises(ValueError, match="form of a call"):
        chat.encode_dialog(toy, [{"role": "assistant", "calls": [call]}], form="xml")
    with pytest.raises(ValueError, match="surrogate"):
        chat.encode_dialog(toy, [user("\ud800")])
    with pytest.raises(TypeError, match="takes a str"):
        chat.encode_dialog(toy, [user(None)])
    with pytest.raises(ValueError, match="no built-in tool"):
        chat.system_prompt(builtin=["google"])


@pytest.mark.weights
def test_a_dialog_ends_with_the_assistants_header(either):
    one, two = ([user()] * n for n in (1, 2))
    header = chat.encode_dialog(either, one)[-3:]
    assert chat.encode_dialog(either, two)[-3:] == header
    assert "assistant" in either.decode(header)


def test_a_tokenizer_without_chat_tokens():
    with pytest.raises(ValueError, match="no chat tokens"):
        chat.encode_dialog(Tokenizer({bytes([byte]): byte for byte in range(256)}, {}), [])


def test_a_control_token_that_is_not_there_is_a_mistake_of_the_conversation():
    """Llama 3, before 3.1, had neither eom nor the tag of its calls."""
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    old = Tokenizer(
        {bytes([byte]): byte for byte in range(256)},
        {name: 256 + i for i, name in enumerate(names)},
    )
    for more in ({"end": "eom"}, {"tag": True}):
        with pytest.raises(
            ValueError, match="needs '<.(eom_id|python_tag).>', which this tokenizer does not have"
        ):
            chat.encode_dialog(old, [{"role": "assistant", "content": "x"} | more])


# Calls.

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["weather", "f.g-1", "brave_search", "code_interpreter"]) | st.text()
calls = st.fixed_dictionaries(
    {"name": names, "arguments": st.dictionaries(st.text(), json_values, max_size=4)}
)
queries = st.fixed_dictionaries(
    {
        "name": st.sampled_from(chat.BUILTIN),
        "arguments": st.fixed_dictionaries({"query": st.text()}),
    }
)
programs = st.fixed_dictionaries(
    {"name": st.just("code_interpreter"), "arguments": st.fixed_dictionaries({"code": st.text()})}
)


@given(calls | queries | programs, st.sampled_from(["json", "function_tag"]))
@example({"name": "brave_search", "arguments": {"query": '"); brave_search.call(query="'}}, "json")
@example({"name": "brave_search", "arguments": {"query": "\ud800"}}, "json")
@example({"name": "code_interpreter", "arguments": {"code": '{"name": "f"}'}}, "json")
@example({"name": "code_interpreter", "arguments": {"code": ""}}, "json")
@example({"name": "a>{b", "arguments": {}}, "function_tag")
@example(
    {"name": "code_interpreter", "arguments": {"code": 'code_interpreter.call(code="1")'}}, "json"
)
@example({"name": "code_interpreter", "arguments": {"code": '{"arguments": 1}'}}, "json")
@settings(deadline=None)
def test_parse_is_the_inverse_of_render(call, form):
    text = chat.render(call, form)
    assert chat.parse(text) == [call]
    assert text.encode().decode() == text


@given(st.lists(calls, min_size=1, max_size=4), st.sampled_from(["", " ", "\n", "; "]))
@settings(deadline=None)
def test_several_calls_in_one_turn(several, between):
    texts = [chat.render(call) for call in several]
    assert chat.parse(between.join(texts)) == several or not all(
        text.startswith("{") for text in texts
    )


@given(st.text() | st.text(alphabet='{}[]":,<>=/; \nabfunctiontypemrs'))
@settings(deadline=None)
def test_any_text_is_calls_code_or_a_reported_error(text):
    for call in (
        chat.parse(text) + chat.parse('{"name": ' + text) + chat.parse("<function=f>" + text)
    ):
        assert call.keys() in ({"name", "arguments"}, {"error", "text"})
        if "error" not in call:
            assert chat.parse(chat.render(call)) == [call]


MALFORMED = {
    "cut off": ('{"name": "f", "parameters": {"city": "Par', "Unterminated string"),
    "single quotes": ("{\"name\": 'f'}", "Expecting value"),
    "no parameters": ('{"name": "f"}', '"parameters"'),
    "parameters as a list": ('{"name": "f", "parameters": [1]}', '"parameters"'),
    "no name": ('{"type": "function", "parameters": {}}', '"name"'),
    "name as a number": ('{"name": 5, "parameters": {}}', '"name"'),
    "a key twice": ('{"name": "f", "parameters": {"a": 1, "a": 2}}', "repeated"),
    "not a number": ('{"name": "f", "parameters": {"a": NaN}}', "not JSON compliant"),
    "infinite": ('{"name": "f", "parameters": {"a": 1e999}}', "not JSON compliant"),
    "too deep": ('{"name": ' + "[" * 100_000, "recursion"),
    "words behind it": ('{"name": "f", "parameters": {}} Done!', "expected"),
    "words for an end tag": ('<function=f>{"a": 1} Done!', "</function> is missing"),
    "half an end tag": ('<function=f>{"a": 1}</func', "</function> is missing"),
    "parameters and arguments": (
        '{"name": "f", "parameters": {"a": 1}, "arguments": {"a": 2}}',
        '"parameters"',
    ),
    "arguments in a string": ('{"name": "f", "arguments": "{}"}', '"parameters"'),
    "arguments first, and no name": ('{"arguments": {}}', '"name"'),
    "code without quotes": ("code_interpreter.call(code=print(1))", "expected"),
    "no object": ("<function=f>5</function>", "expected"),
    "query without quotes": ("brave_search.call(query=gold)", "expected"),
    "query not closed": ('brave_search.call(query="gold', "expected"),
}


@pytest.mark.parametrize("text, words", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_call_is_reported_and_kept(toy, text, words):
    *good, last = chat.parse(text)
    assert words in last["error"] and text.endswith(last["text"]) and len(last["error"]) < 200
    assert all("error" not in call for call in good)
    assert chat.render(last) == last["text"]
    assert chat.run_tool({"f": print}, last).startswith("error: malformed call")


@pytest.mark.parametrize(
    "text", [text for name, (text, _) in MALFORMED.items() if name != "words behind it"]
)
def test_a_malformed_call_stays_readable(toy, text):
    """Without <|python_tag|> it is content, as at vLLM; it is reported as well, and written back
    once.
    """
    ids = ids_of(toy, f"{text}<|eot_id|>")
    message = chat.parse_assistant(toy, ids)
    (call,) = message["calls"]
    assert message["content"] == text and "malformed" in chat.run_tool({"f": print}, call)
    header = chat.encode_dialog(toy, [])[1:]
    assert chat.encode_dialog(toy, [message]) == [
        chat.encode_dialog(toy, [])[0],
        *header,
        *ids,
        *header,
    ]


@pytest.mark.parametrize(
    "call",
    [
        {"name": "f", "arguments": {"x": float("nan")}},
        {"name": "f", "arguments": {"x": (1, 2)}},
        {"name": "f", "arguments": {1: 2}},
        {"name": "f", "arguments": {"x": object}},
        {"name": "f", "arguments": None},
        {"name": "f"},
        {"name": None, "arguments": {}},
        {},
    ],
    ids=str,
)
def test_a_call_that_json_cannot_say_is_refused(call):
    with pytest.raises(ValueError, match="no text reads back as this call"):
        chat.render(call)


CODE = {"name": "code_interpreter", "arguments": {"code": "print(1)\n"}}
SEARCH = {"name": "brave_search", "arguments": {"query": 'price of "gold"'}}
SONGS = {"name": "songs", "arguments": {"n": 10}}
REPLIES = {  # what the model emits -> content, calls, tag, end
    "Paris.<|eot_id|>": ("Paris.", [], False, "eot"),
    "Paris": ("Paris", [], False, None),
    "": ("", [], False, None),
    "Bye<|end_of_text|>": ("Bye", [], False, "eot"),
    "One<|eot_id|>two<|eom_id|>": ("One", [], False, "eot"),
    "<|python_tag|>print(1)\n<|eom_id|>": ("", [CODE], True, "eom"),
    "Let me see.<|python_tag|>print(1)\n<|eom_id|>": ("Let me see.", [CODE], True, "eom"),
    '<|python_tag|>brave_search.call(query="price of "gold"")<|eom_id|>': (
        "",
        [SEARCH],
        True,
        "eom",
    ),
    '<|python_tag|>{\n  "type": "function", "name": "songs",\n  "parameters": {"n": 10}}<|eom_id|>': (
        "",
        [SONGS],
        True,
        "eom",
    ),
    '{"name": "songs", "parameters": {"n": 10}}<|eot_id|>': ("", [SONGS], False, "eot"),
    '<function=songs>{"n": 10}</function><|eot_id|>': ("", [SONGS], False, "eot"),
    'Sure:\n<function=songs>{"n": 10}</function><|eot_id|>': ("Sure:\n", [SONGS], False, "eot"),
    'I would write <function=songs>{"n": 10}</function><|eot_id|>': (
        'I would write <function=songs>{"n": 10}</function>',
        [],
        False,
        "eot",
    ),
    '{"city": "Paris"}<|eot_id|>': ('{"city": "Paris"}', [], False, "eot"),
}
# as others take them: Meta's reader (no end tag), the template in its repository (code), vLLM (the
# rest)
SPELLINGS = {
    '<function=songs>{"n": 10}<|eot_id|>': ("", [SONGS], False, "eot"),
    '<|python_tag|><function=songs>{"n": 10}\n<|eom_id|>': ("", [SONGS], True, "eom"),
    '<|python_tag|>code_interpreter.call(code="print(1)\n")<|eom_id|>': ("", [CODE], True, "eom"),
    'code_interpreter.call(code="print(1)\n"); code_interpreter.call(code="print(1)\n")': (
        "",
        [CODE, CODE],
        False,
        None,
    ),
    '{"name": "songs", "arguments": {"n": 10}}<|eot_id|>': ("", [SONGS], False, "eot"),
    '{"arguments": {"n": 10}, "name": "songs"}\n<|eot_id|>': ("", [SONGS], False, "eot"),
    'Here: {"name": "songs", "parameters": {"n": 10}} More?<|eot_id|>': (
        "Here:  More?",
        [SONGS],
        False,
        "eot",
    ),
    'Both: {"name": "songs", "parameters": {"n": 10}} ; {"name": "songs", "arguments": {"n": 10}} More?<|eot_id|>': (
        "Both:  More?",
        [SONGS, SONGS],
        False,
        "eot",
    ),
    'One {"name": "songs", "parameters": {"n": 10}} or two {"name": "songs", "parameters": {"n": 10}}<|eot_id|>': (
        "One  or two ",
        [SONGS, SONGS],
        False,
        "eot",
    ),
    '{"name": "songs", "parameters": {"n": 10}} Done!<|eot_id|>': (" Done!", [SONGS], False, "eot"),
    'Say {"name": "songs", "parameters": {n}} so<|eot_id|>': (
        'Say {"name": "songs", "parameters": {n}} so',
        [],
        False,
        "eot",
    ),
    'He is {"name": "Bob"}.<|eot_id|>': ('He is {"name": "Bob"}.', [], False, "eot"),
    'As in {"call": {"name": "songs", "parameters": {}}}<|eot_id|>': (
        'As in {"call": {"name": "songs", "parameters": {}}}',
        [],
        False,
        "eot",
    ),
}


@pytest.mark.parametrize("text, want", (REPLIES | SPELLINGS).items(), ids=REPLIES | SPELLINGS)
def test_replies_are_read_from_ids(toy, text, want):
    message = chat.parse_assistant(toy, ids_of(toy, text))
    assert (
        tuple(message[key] for key in ("content", "calls", "tag", "end")) == want
        and message["role"] == "assistant"
    )


@pytest.mark.parametrize("text", ["x<|python_tag|>print(1)<|eot_id|>y", "<|eom_id|>", "<|im_end|>"])
def test_a_control_tokens_name_spelled_out_is_only_text(toy, text):
    message = chat.parse_assistant(toy, toy.encode(text))
    assert message == {"role": "assistant", "content": text, "calls": [], "tag": False, "end": None}


def test_without_tools_nothing_is_a_call(toy):
    text = '{"name": "Bob", "parameters": {}}'
    assert chat.parse_assistant(toy, toy.encode(text), tools=False)["content"] == text


@pytest.mark.parametrize(
    "text", [each for each in REPLIES if each.count("_id|>") == 1 and "\n  " not in each]
)
def test_what_was_read_is_written_back_as_it_came(toy, text):
    """The prompt of the next round repeats the model's own ids (calls in the form they came in)."""
    ids = ids_of(toy, text)
    form = "function_tag" if "<function=" in text else "json"
    header = chat.encode_dialog(toy, [])[1:]
    back = chat.encode_dialog(toy, [chat.parse_assistant(toy, ids)], form)[
        1 + len(header) : -len(header)
    ]
    assert back == ids or text.startswith('{"name"')  # Meta's spelling says "type" first


def test_chatml_replies(ours_or_toy_chatml):
    message = chat.parse_assistant(ours_or_toy_chatml, ids_of(ours_or_toy_chatml, "Hi<|im_end|>\n"))
    assert (message["content"], message["end"]) == ("Hi", "eot")


def test_every_id_at_which_an_answer_stops_ends_its_message():
    """A base model's end, which its configs name, is no part of what was said."""
    names = {"<|im_start|>": 256, "<|im_end|>": 257, "<|endoftext|>": 258}
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, names, stop_ids=[258])
    for end in (257, 258):
        message = chat.parse_assistant(tokenizer, [*b"Hi", end, *b"x"])
        assert (message["content"], message["end"]) == ("Hi", "eot")


def test_a_long_template_takes_no_long_time():
    """Repetitions that an expression could try in many ways."""
    tokenizer = Tokenizer(
        {bytes([byte]): byte for byte in range(256)}, {"<|im_start|>": 256, "<|im_end|>": 257}
    )
    for part in (
        "<|im_start|>system\n",
        "set system",
        "system",
        "set system = '",
        "\\",
        "<|",
        "'<|im_start|>system\n\\'",
    ):
        start = time.process_time()
        chat_format(tokenizer, "<|im_start|>" + part * (99_000 // len(part)))
        assert time.process_time() - start < 1, part


@pytest.fixture
def ours_or_toy_chatml():
    return Tokenizer(
        {bytes([byte]): byte for byte in range(256)}, {"<|im_start|>": 256, "<|im_end|>": 257}
    )


# Replies as Meta's own reader takes them: make_meta_chat.py wrote replies of 27 kinds, 25 of each,
# what each one means,
# and what Meta's decode_assistant_message makes of it. Ours reads every one as it was meant, or
# reports it.

AS_META = ["answer", "built-in", "code", "JSON", "JSON on several lines", "function tag"]
# kind -> what Meta's reader does with it, as (content, calls) beside what was meant
UNLIKE_META = {
    "space in front": "strips it",
    "name of a control token": "takes the spelled name at the end of a text that was cut off for the token",
    "python_tag spelled out": "takes the spelled name for the token, and the text for code",
    "a call in running text": "calls what was only mentioned, and drops the rest",
    "words before the tag": "leaves the tag's name in the text, and calls nothing",
    "words before a call": "drops the words",
    "several calls": "reads no call, or with the tag code, since all of it together is no JSON",
    "several queries": "reads the first",
    "quotes in a query": "takes the call for code",
    "braces within braces": "cuts the arguments at the first brace that closes, which is no JSON",
    "an apostrophe": "makes it a quotation mark, which is no JSON",
    "code that calls": "takes a method named call for a tool, and drops the code",
}
MALFORMED_AT_META = {  # kind -> what Meta's reader makes of it with <|python_tag|>, and without
    "cut off": ("code", "text"),
    "single quotes": ("code", "text"),
    "no parameters": ("KeyError", "KeyError"),
    "parameters in a string": ("call", "call"),
    "a key twice": ("call", "call"),
    "not a number": ("call", "call"),
    "no end of the function": ("call", "call"),
    "a query without quotes": ("code", "text"),
    "a query without an end": ("code", "text"),
}


@pytest.fixture(scope="module")
def replies():
    """kind -> [(ids, reply), ...]"""
    with np.load(GOLDEN / "meta_chat.npz") as golden:
        read = json.loads(golden["replies"].tobytes())
        ids = np.split(golden["reply_ids"], golden["reply_lengths"].cumsum()[:-1])
    found = {}
    for reply, each in zip(read, ids, strict=True):
        found.setdefault(reply["kind"], []).append((each.tolist(), reply))
    assert {len(each) for each in found.values()} == {25}
    return found


@pytest.mark.weights
def test_every_well_formed_reply_is_read_as_it_was_meant(llama3, replies):
    for kind in [*AS_META, *UNLIKE_META]:
        for ids, reply in replies[kind]:
            message = chat.parse_assistant(llama3, ids)
            assert {key: message[key] for key in ("content", "calls", "end")} == reply["meant"], (
                kind
            )
            assert message["tag"] == reply["tag"], kind


def test_where_metas_reader_differs(replies):
    """The lists above are complete and not too long: Meta's reader misreads these kinds and no
    other.
    """
    assert [*AS_META, *UNLIKE_META, *MALFORMED_AT_META] == [*replies]
    misread = {
        kind: sum(reply["meta"] != reply["meant"] for _, reply in replies[kind]) for kind in replies
    }
    assert not any(misread[kind] for kind in AS_META)
    assert misread.pop("name of a control token") == 7  # the 7 without an end
    assert all(misread[kind] == 25 for kind in misread if kind in UNLIKE_META)


def made_of_it(read: dict) -> str:
    if "raises" in read:
        return read["raises"]
    names = [call["name"] for call in read["calls"]]
    return "code" if names == ["code_interpreter"] else "call" if names else "text"


@pytest.mark.weights
def test_malformed_replies_are_reported_where_metas_reader_guesses(llama3, replies):
    for kind, guess in MALFORMED_AT_META.items():
        for ids, reply in replies[kind]:
            assert made_of_it(reply["meta"]) == guess[not reply["tag"]], kind
            message = chat.parse_assistant(llama3, ids)
            (call,) = message["calls"]
            if kind == "no end of the function":  # nothing is guessed: the arguments are whole
                assert [call] == reply["meta"]["calls"]
            else:
                assert call.keys() == {"error", "text"} and (call["text"] or message["content"]), (
                    kind,
                    call,
                )


TOOLS = {
    "name": "погода",
    "description": "Погода в городе Zürich 🦙",
    "parameters": {"город": {"type": "string"}},
}


def test_definitions_and_results_keep_their_letters():
    """As transformers' chat templates write them (`tojson`)."""
    from transformers.utils.chat_template_utils import render_jinja_template

    tools = [{"type": "function", "function": TOOLS}]
    template = "{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}"
    rendered, _ = render_jinja_template([[user()]], tools=tools, chat_template=template)
    assert rendered[0] in chat.system_prompt(functions=[TOOLS]) and "погода" in rendered[0]
    template = "{{ messages[0].content | tojson }}"
    rendered, _ = render_jinja_template(
        [[user({"небо": "снег", "°C": -3})]], chat_template=template
    )
    call = {"name": "f", "arguments": {}}
    assert chat.run_tool({"f": lambda: {"небо": "снег", "°C": -3}}, call) == rendered[0]


# The loop.


def scripted(tokenizer, *texts):
    """A model that says these texts, one a round; what it was shown is kept in `.seen`."""
    replies = iter(texts)

    def reply(ids):
        reply.seen.append(tokenizer.decode(ids))
        return ids_of(tokenizer, next(replies))

    reply.seen = []
    return reply


def test_the_loop_calls_answers_and_ends(toy):
    call = '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 2, "b": 3}}<|eom_id|>'
    reply = scripted(toy, call, "It is 5.<|eot_id|>")
    before = [user("2 + 3?")]
    after = chat.run_dialog(reply, toy, before, {"add": lambda a, b: a + b})
    assert [message["role"] for message in after] == ["user", "assistant", "ipython", "assistant"]
    assert (after[2]["content"], after[3]["content"]) == ("5", "It is 5.") and before == [
        user("2 + 3?")
    ]
    shown = call + "<|start_header_id|>ipython<|end_header_id|>\n\n5<|eot_id|>"
    assert (
        reply.seen[1] == reply.seen[0] + shown + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_several_calls_get_a_result_each_and_mistakes_are_results(toy):
    def broken():
        raise KeyError("no such song")

    def odd():
        return "\ud800"

    calls = [
        '{"name": "broken", "parameters": {}}',
        '{"name": "broken", "parameters": {"x": 1}}',
        '{"name": "missing", "parameters": {}}',
        '{"name": "odd", "parameters": {}}',
        '{"name": "',
    ]
    reply = scripted(toy, "<|python_tag|>" + "; ".join(calls) + "<|eom_id|>", "Sorry.<|eot_id|>")
    results = [
        message["content"]
        for message in chat.run_dialog(reply, toy, [user()], {"broken": broken, "odd": odd})
    ]
    assert results[2:7] == [
        "error: KeyError: 'no such song'",
        results[3],
        "error: there is no tool 'missing'; there are: broken, odd",
        "?",
        results[6],
    ]
    assert results[3].startswith("error: TypeError") and results[6].startswith(
        "error: malformed call: Unterminated"
    )


def test_the_loop_has_a_limit(toy):
    reply = scripted(toy, *['<|python_tag|>{"name": "f", "parameters": {}}<|eom_id|>'] * 9)
    after = chat.run_dialog(reply, toy, [user()], {"f": lambda: "again"}, rounds=3)
    assert len(reply.seen) == 3 and after[-1] == {"role": "ipython", "content": "again"}


def test_code_is_not_run_unless_the_interpreter_is_given(toy):
    reply = scripted(toy, "<|python_tag|>print(6 * 7)<|eom_id|>", "So be it.<|eot_id|>")
    after = chat.run_dialog(reply, toy, [user()], {"f": print})
    assert after[2]["content"] == "error: there is no tool 'code_interpreter'; there are: f"


def test_the_oldest_turns_are_dropped_first(toy):
    system, first = (
        {"role": "system", "content": "Be brief."},
        [user("one"), {"role": "assistant", "content": "1"}],
    )
    second, last = [user("two"), {"role": "assistant", "content": "2"}], [user("three")]
    whole = [system, *first, *second, *last]
    size = len(chat.encode_dialog(toy, whole))
    assert chat.fit(toy, whole, size) == (whole, [])
    assert chat.fit(toy, whole, size - 1) == ([system, *second, *last], first)
    assert chat.fit(toy, whole, len(chat.encode_dialog(toy, [system, *last]))) == (
        [system, *last],
        first + second,
    )
    with pytest.raises(ValueError, match="the system prompt and the last turn take"):
        chat.fit(toy, whole, 20)
    assert chat.fit(toy, [], 20)[1] == []


# The interpreter.


def test_the_interpreter_runs_code_elsewhere():
    python = chat.PythonInterpreter()
    assert python("print('naïve 🦙', 6 * 7)") == "naïve 🦙 42"
    assert python("import os; print(os.environ.get('HOME'), __name__)") == "None __main__"
    assert python("") == "" and python("'\ud800'") == ""
    assert python("import sys; sys.exit(3)") == "[exit status 3]"
    failed = python("print('before')\n1 / 0")
    assert (
        failed.startswith("before\n")
        and "ZeroDivisionError" in failed
        and failed.endswith("[exit status 1]")
    )
    assert "EOFError" in python("input()")
    assert (
        python(
            "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'while True: "
            "print(1)'])"
        )
        != "1"
    )


@pytest.mark.parametrize(
    "code, note",
    [
        ("while True: pass", "[stopped after 0.5 s]"),
        ("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(20)", "[stopped after 0.5 s]"),
        ("print('half', flush=True)\nimport time\ntime.sleep(20)", "half\n[stopped after 0.5 s]"),
    ],
    ids=["loop", "closed output", "says something first"],
)
def test_time_is_limited(code, note):
    assert chat.PythonInterpreter(seconds=0.5)(code) == note


def test_output_is_limited():
    python = chat.PythonInterpreter(characters=100)
    assert (
        python("while True: print('spam')")
        == ("spam\n" * 20).rstrip() + "\n[stopped: too much output]"
    )
    assert python("print('é' * 101)") == "é" * 100 + "\n[the rest of the output was cut]"


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux keeps a process's memory limit"
)
def test_memory_is_limited():
    said = chat.PythonInterpreter(megabytes=300)("x = bytearray(1_000_000_000)")
    assert "MemoryError" in said and said.endswith("[exit status 1]")


# The box in the notebook, without a browser: what its buttons and the Enter key do.


@pytest.fixture
def box(monkeypatch):
    """A chat box whose model says one piece after another for as long as it is let."""
    pytest.importorskip("ipywidgets")
    monkeypatch.syspath_prepend(GOLDEN.parent.parent / "notebooks")
    from figures.chat_box import ChatBox

    def answer(messages):
        if messages[-1]["content"] == "too long":
            raise ValueError("no room")
        kept = messages[2 * (len(messages) > 1 and messages[0]["content"] == "old") :]
        return kept, messages[: len(messages) - len(kept)], gate(kept)

    def gate(messages):
        yield f"<{len(messages)}>"
        while messages[-1]["content"] == "forever" and not box.stop.is_set():
            yield "."

    box = ChatBox(answer)
    return box


def enter(box, text):
    box.line.value = text
    box.line._handle_custom_msg({"event": "submit"}, [])  # what the browser sends


def test_the_box_keeps_the_conversation_and_shows_text_as_text(box):
    for text in ["<b>", "two", "  "]:
        enter(box, text)
        box.thread.join(5)
    assert [message["content"] for message in box.messages] == ["<b>", "<1>", "two", "<3>"]
    assert [message["role"] for message in box.messages] == ["user", "assistant"] * 2
    assert (
        "&lt;b&gt;" in box.said.value
        and "<b>" not in box.said.value
        and "&lt;3&gt;" in box.said.value
    )
    assert (box.line.value, box.button.description, box.saying.value) == ("  ", "Send", "")
    box.anew.click()
    assert (box.messages, box.said.value) == ([], "")


def test_the_box_stops_an_answer_and_keeps_what_was_said(box):
    enter(box, "forever")
    enter(box, "meanwhile")  # is not sent, and not lost
    assert box.line.value == "meanwhile" and box.button.description == "Stop"
    box.button.click()
    box.thread.join(5)
    assert box.button.description == "Send" and "stopped" in box.said.value
    assert [message["content"].strip(".") for message in box.messages] == ["forever", "<1>"]
    enter(box, "forever")
    box.anew.click()  # ends the answer as well
    assert not box.thread.is_alive() and box.messages == [] and box.said.value == ""


def test_the_box_says_what_it_drops_and_what_does_not_fit(box):
    for text in ["old", "too long", "new"]:
        enter(box, text)
        box.thread.join(5)
    assert "no room" in box.said.value and "the 2 oldest messages no longer fit" in box.said.value
    assert [message["content"] for message in box.messages] == ["new", "<1>"]

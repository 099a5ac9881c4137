"""Constrained decoding: what is allowed fits (jsonschema and re are the judges), masks are those of
a plain loop, and generating in batches, with drafts and with sampling keeps to them.
"""

import json
import random
import re

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minillama
from minillama import chat, cli, generate, generate_batch, speculate
from minillama.inference import automata
from minillama.inference.automata import DEAD, MAX_DEPTH, Automaton, Byte, OneOf, Repeat
from minillama.inference.json_schema import JsonSchema, ToolCalls, dumps
from minillama.inference.patterns import Choice, Regex
from minillama.inference.token_masks import TokenMasks, Trie


DRAFT = jsonschema.Draft202012Validator


def walk(automaton, seed, most=400):
    """A random text that the automaton allows, or None if it became too long."""
    dice, state, data = random.Random(seed), automaton.start, b""
    while not (automaton.accepts(state) and (automaton.ends(state) or dice.random() < 0.3)):
        allowed = [byte for byte, after in enumerate(automaton.row(state)) if after]
        assert allowed, f"a dead end after {data!r}"
        # brackets and quotation marks end things
        close = [byte for byte in allowed if byte in b'"]}']
        byte = dice.choice(close if close and dice.random() < 0.4 else allowed)
        data, state = data + bytes([byte]), automaton.row(state)[byte]
        if len(data) > most:
            return None
    return data.decode()


# Regular expressions

atoms = st.sampled_from(["a", "b", "é", "🦙", "[ab]", "[^a]", "[a-é]", ".", r"\n", r"\.", r"\w"])


def larger(inner):
    marks = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format),
        st.tuples(inner, marks).map("({0[0]}){0[1]}".format),
    )


patterns = st.recursive(atoms, larger, max_leaves=8)


@settings(max_examples=80, deadline=None)
@given(patterns, st.lists(st.text("abé🦙\n.c", max_size=6), max_size=10), st.integers(0, 9))
def test_regex_is_pythons(pattern, texts, seed):
    machine, judge = Regex(pattern), re.compile(pattern, re.ASCII)
    for text in [*texts, *filter(None, [walk(machine, seed, 60)])]:
        if not set(text) & set("\r\u2028\u2029"):  # JavaScript's dot leaves these out as well
            assert machine.matches(text) == bool(judge.fullmatch(text)), text


@pytest.mark.parametrize(
    "pattern", [r"a(?=b)", r"(a)\1", "a{2,1}", "*a", "(a", "a)", "[b-a]", "[a", "\\", r"\b", "a{x}",
                "a{20000}", "a++", "(?P<x>a)", r"\u12", "a$b", "(^a)", "[\\d-z]"],
)  # fmt: skip
def test_what_a_regex_does_not_know_is_one_line(pattern):
    with pytest.raises(ValueError, match="regular expression") as error:
        Regex(pattern)
    assert "\n" not in str(error.value)


def test_every_character_and_no_other_bytes():
    every = Regex(r"[\x00-\uffff]|[^\x00-\uffff]")
    for point in [*range(0x900), *range(0x900, 0x110000, 97), 0xD7FF, 0xE000, 0xFFFF, 0x10FFFF]:
        if not 0xD800 <= point <= 0xDFFF:
            assert every.matches(chr(point)), hex(point)
    for data in (b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80", b"\xff"):
        assert not every.matches(data)


def test_repeats_of_what_may_be_empty_end():
    for pattern in ("(a*)*", "(a*){3,}", "(a?){100}", "((a|b*)*c?)*", "(|a)+"):
        assert Regex(pattern).matches("aaa") and Regex(pattern).matches("")


def test_too_many_readings_are_refused_and_not_computed():
    with pytest.raises(ValueError, match="more than 10000 ways"):
        Regex("((a?){3000}){3000}")


def test_nothing_and_choices():
    with pytest.raises(ValueError, match="nothing can satisfy"):
        Automaton(OneOf((Byte(frozenset()),)))
    assert Automaton(Repeat(Byte(frozenset()))).matches("")
    assert Choice(["a", "ab"]).matches("ab") and not Choice(["a", "ab"]).matches("b")
    for wrong in ([], [1], ["a", None]):
        with pytest.raises(ValueError, match="Choice takes"):
            Choice(wrong)


# JSON Schema

names = st.sampled_from(["name", "a", "größe", 'q"', "x y", "", "\n"])
bounds = st.integers(-2000, 2000).map(lambda n: n / 8 if n % 3 else n // 8)


def number(draw):
    type, low = draw(st.sampled_from(["integer", "number"])), draw(bounds)
    keys = [
        draw(st.sampled_from([f"{e}imum", f"exclusive{e.title()}imum"])) for e in ("min", "max")
    ]
    schema = {"type": type, keys[0]: low, keys[1]: low + draw(st.integers(2, 300))}
    return {key: schema[key] for key in schema if key == "type" or draw(st.booleans())}


def text(draw):
    schema, least = {"type": "string"}, draw(st.integers(0, 3))
    if draw(st.booleans()):
        schema["pattern"] = draw(
            st.sampled_from(["^[a-c]{2,6}$", "b.", "^x|y$", r"^[0-9]+$", '"', "é"])
        )
    if draw(st.booleans()):
        schema |= {"minLength": least, "maxLength": least + draw(st.integers(2, 8))}
    return schema


def array(draw, inner):
    least = draw(st.integers(0, 2))
    schema = {
        "type": "array",
        "items": draw(inner),
        "minItems": least,
        "maxItems": least + draw(st.integers(0, 2)),
    }
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    return schema


def mapping(draw, inner):
    properties = draw(st.dictionaries(names, inner, max_size=4))
    schema = {"type": "object", "properties": properties}
    schema["required"] = [name for name in properties if draw(st.booleans())]
    if draw(st.booleans()):
        schema["additionalProperties"] = draw(st.one_of(st.booleans(), inner))
    return schema


values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=3,
)
leaves = st.one_of(
    st.composite(number)(), st.composite(text)(), st.sampled_from([{"type": "null"}, {"type": "boolean"}]),
    st.lists(values, min_size=1, max_size=3).map(lambda options: {"enum": options}),
    values.map(lambda value: {"const": value}),
)  # fmt: skip


def nest(inner):
    return st.one_of(
        st.composite(array)(inner),
        st.composite(mapping)(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    )


schemas = st.recursive(leaves, nest, max_leaves=6)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas, st.integers(0, 99), st.sampled_from([None, 0, 2]))
def test_everything_that_a_schema_allows_fits(schema, seed, whitespace):
    try:
        machine = JsonSchema(schema, whitespace)
    except ValueError as error:  # a range without a whole number in it, say
        assert str(error) == "nothing can satisfy this constraint"
        return
    for more in range(3):
        if (found := walk(machine, seed + more)) is not None:
            DRAFT(schema).validate(json.loads(found))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas, st.lists(values, max_size=8))
def test_a_value_written_as_we_write_it_is_never_allowed_if_it_does_not_fit(schema, candidates):
    try:
        machine = JsonSchema(schema)
    except ValueError:
        return
    for value in candidates:
        if machine.matches(dumps(value)):
            DRAFT(schema).validate(json.loads(dumps(value)))


ALLOWED = [
    ({"type": "integer", "minimum": -37, "maximum": 1205}, range(-37, 1206), range(-1300, 1300)),
    ({"type": "integer", "exclusiveMinimum": 8.5, "exclusiveMaximum": 12}, range(9, 12), range(30)),
    ({"type": "integer", "minimum": 10**17}, [10**17, 10**18 - 1], [0, 10**17 - 1, 10**17, 10**18 - 1]),
    ({"type": "number", "minimum": 0.5, "maximum": 1}, [0.5, 0.75, 1], [0, 0.49, 0.5, 0.75, 1, 1.01]),
    ({"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 0}, [-0.5], [-1, -0.5, 0, 1]),
    ({"type": ["null", "boolean"]}, [None, True, False], [None, True, False, 0, "", []]),
    ({"enum": [1, 2, 3, "a"], "minimum": 2, "type": "number"}, [2, 3], [1, 2, 3, "a"]),
    ({"enum": [1, 1.5], "const": 1.0}, [1], [1, 1.5]),
    ({"minLength": 1, "maxLength": 1}, ["é", "🦙", '"', "\n"], ["", "é", "🦙", '"', "\n", "ab"]),
    ({"type": "string", "pattern": "b", "maxLength": 2}, ["b", "ab", "b\n"], ["", "a", "b", "ab", "b\n", "aab"]),
    ({"type": "string", "format": "date"}, ["2024-02-28"], ["2024-02-28", "2023-02-30", "2024-1-1"]),
    ({"items": {"type": "null"}, "minItems": 1}, [[None], [None] * 9], [[], [None], [None] * 9, [1]]),
    ({"prefixItems": [{"const": 1}, {"const": 2}], "maxItems": 3}, [[], [1], [1, 2]], [[], [1], [1, 2], [2], [1, 2, 3]]),
    ({"prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 2}, [[1, 2], [1, 2, 2]], [[1], [1, 2], [1, 2, 2]]),
    ({"properties": {"a": True, "b": False}, "required": ["a"]}, [{"a": [{}]}], [{}, {"a": [{}]}, {"a": 1, "b": 1}]),
    ({"properties": {"ab": {"const": 1}}, "additionalProperties": {"const": 2}},
     [{}, {"ab": 1}, {"ab": 1, "a": 2, "abc": 2}, {"é": 2}], [{}, {"ab": 1}, {"ab": 2}, {"ab": 1, "a": 2, "abc": 2}, {"é": 2}]),
    ({"required": ["z"], "additionalProperties": {"const": 0}}, [{"z": 0}, {"z": 0, "a": 0}], [{}, {"z": 0}, {"z": 1}, {"z": 0, "a": 0}]),
    ({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
     [{"a": 1}, {"b": 2}, {"a": 1, "b": 2}], [{}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}]),
    ({"allOf": [{"type": ["string", "integer"]}, {"type": ["integer", "null"], "minimum": 3}]}, [3], [2, 3, None, "a"]),
    (True, [None, [{}], {"a": [1, "x", {"b": False}]}], [None, [{}], {"a": [1, "x", {"b": False}]}]),
    ({"$defs": {"n/m": {"const": 7}}, "properties": {"p": {"$ref": "#/$defs/n~1m"}}}, [{"p": 7}, {}], [{"p": 7}, {}, {"p": 8}]),
    ({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
     [{"next": None}, {"next": {"next": None}}], [{}, {"next": None}, {"next": {"next": None}}, {"next": {}}]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "allowed", "tried"), ALLOWED)
def test_which_values_a_schema_allows(schema, allowed, tried):
    machine = JsonSchema(schema)
    assert [value for value in tried if machine.matches(dumps(value))] == list(allowed)


REFUSED = [
    ({"oneOf": [{}]}, "'oneOf' is not supported"),
    ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a: the keyword 'not'"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"multipleOf": 3}, "multipleOf"),
    ({"minProperties": 1}, "minProperties"),
    ({"type": "strin"}, "type is one or more of"),
    ({"type": []}, "nothing can satisfy"),
    ([], "a schema is an object"),
    ("string", "a schema is an object"),
    ({"properties": {"a": 1}}, "a schema is an object"),
    ({"properties": []}, "properties is an object"),
    ({"required": "a"}, "properties is an object"),
    ({"required": [1]}, "required is a list of names"),
    ({"minLength": -1}, "minLength is a whole number"),
    ({"maxItems": 1.5}, "maxItems is a whole number"),
    ({"maxItems": True}, "maxItems is a whole number"),
    ({"minimum": "1"}, "minimum is a number"),
    ({"minimum": float("nan")}, "minimum is a number"),
    ({"type": "integer", "maximum": 10**500}, "400 digits"),
    ({"enum": 3}, "enum takes a list"),
    ({"enum": [float("inf")]}, "JSON cannot hold"),
    ({"const": "\ud800"}, "JSON cannot hold"),
    ({"enum": []}, "nothing can satisfy"),
    (False, "nothing can satisfy"),
    ({"$ref": "#"}, "nothing can satisfy"),
    ({"$ref": "http://example.org/s"}, "leads to a place in the schema"),
    ({"$ref": "#/$defs/x"}, "which is not there"),
    ({"$ref": "#/$defs/x", "type": "null"}, "beside other keywords"),
    ({"anyOf": []}, "anyOf takes a list"),
    ({"minimum": 1, "anyOf": [{"minimum": 2}]}, "'minimum' from several schemas"),
    ({"properties": {"a": {}}, "anyOf": [{"additionalProperties": False}]}, "from several schemas"),
    ({"type": "string", "pattern": "(?=a)"}, "regular expression"),
    ({"type": "string", "pattern": 3}, "pattern is a string"),
    ({"type": "string", "format": "email"}, "format is one of"),
    ({"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}, "nothing can satisfy"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "words"), REFUSED)
def test_what_a_schema_cannot_have_is_refused_by_name(schema, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        JsonSchema(schema)
    assert "\n" not in str(error.value)


def test_a_schema_that_is_nested_too_deep_is_refused():
    schema = {"type": "null"}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(ValueError, match="nested too deep"):
        JsonSchema(schema)


def test_nesting_ends_at_a_depth_and_everything_begun_can_be_ended():
    free, state = JsonSchema({}), None
    deepest = max(n for n in range(1, 2 * MAX_DEPTH) if free.matches("[" * n + "]" * n))
    assert MAX_DEPTH // 2 <= deepest <= MAX_DEPTH + 1
    state = free.step(free.start, b"[" * deepest)
    assert state and not free.step(state, b"[") and free.step(state, b"]")
    link = {"$ref": "#"}
    pair = JsonSchema(
        {
            "anyOf": [
                {"type": "null"},
                {"prefixItems": [link, link], "minItems": 2, "items": False, "type": "array"},
            ]
        }
    )
    for seed in range(20):
        walk(pair, seed, 2000)  # asserts that there is no dead end


def test_large_counts_cost_nothing():
    machine = JsonSchema({"type": "string", "minLength": 10**9, "maxLength": 10**12})
    assert machine.step(machine.start, b'"abc') and not machine.matches('"abc"')
    assert len(machine.states) < 100


def test_forgetting_keeps_states_that_someone_holds(monkeypatch):
    machine = JsonSchema({})
    state = machine.step(machine.start, b'{"a": [1, ')
    machine.forget()
    assert machine.accepts(machine.step(state, b'{"b": null}]}'))
    assert not machine.step(state, b"}")


# Masks


class Small:
    """A tokenizer of a few tokens; the last is a stop id."""

    def __init__(self, texts):
        self.token_bytes = dict(enumerate([*texts, b"<stop>"]))
        self.specials, self.stop_ids = {"<stop>": len(texts)}, frozenset([len(texts)])
        self.vocab_size = len(texts) + 1

    def encode(self, text):
        ids = {data: id for id, data in self.token_bytes.items()}
        pieces = (bytes([byte]) for byte in text.encode())
        return [ids[piece] for piece in pieces if piece in ids]


tokens = st.lists(
    st.binary(min_size=1, max_size=5) | st.text('ab{1"é', min_size=1).map(str.encode),
    min_size=1,
    unique=True,
)


@settings(max_examples=60, deadline=None)
@given(tokens, patterns, st.integers(0, 9))
def test_a_mask_is_what_a_plain_loop_says(texts, pattern, seed):
    machine = Regex(pattern)
    masks = TokenMasks(Small(texts), machine, canonical=False)
    whole = walk(machine, seed, 60)
    for n in range(0 if whole is None else 4):
        state = machine.step(machine.start, whole.encode()[:n])
        want = [bool(machine.step(state, text)) for text in texts] + [machine.accepts(state)]
        for _ in range(2):  # computed, then looked up
            assert masks.mask(state).tolist() == want


def test_special_tokens_are_no_text():
    masks = TokenMasks(Small([b"<", b"stop>", b"x"]), Choice(["<stop>"]), canonical=False)
    assert masks.mask(masks.start).tolist() == [True, False, False, False]
    assert masks.step(masks.start, 3) == DEAD
    with pytest.raises(ValueError, match="needs stop ids"):
        TokenMasks(Small([b"x"]), Choice(["x"]), stop_ids=[])


def test_forced_text_comes_in_the_tokenizers_tokens():
    texts = [b"a", b"b", b"ab", b"c"]  # this tokenizer never joins
    masks = TokenMasks(Small(texts), Choice(["aba", "abc"]))
    assert masks.mask(masks.start).tolist() == [True, False, False, False, False]
    free = TokenMasks(Small(texts), Choice(["aba", "abc"]), canonical=False)
    assert free.mask(free.start).tolist() == [True, False, True, False, False]


def test_logits_may_be_wider_than_the_vocabulary_and_an_empty_mask_is_an_error():
    masks = TokenMasks(Small([b"a", b"b"]), Choice(["a", "c"]))
    row = masks.rule_out(torch.zeros(1, 5), masks.start)
    assert row.isfinite().tolist() == [[True, False, False, False, False]]
    with pytest.raises(ValueError, match="no token of the vocabulary"):
        TokenMasks(Small([b"a"]), Choice(["c"])).rule_out(torch.zeros(2), Choice(["c"]).start)


def test_memory_of_masks_and_states_is_bounded(monkeypatch):
    monkeypatch.setattr(automata, "MAX_STATES", 10)
    monkeypatch.setattr("minillama.inference.token_masks.MAX_STATES", 10)
    monkeypatch.setattr("minillama.inference.token_masks.MAX_MASKS", 3)
    machine = Regex("a{0,200}b")
    masks, state = TokenMasks(Small([b"a", b"b"]), machine), machine.start
    for _ in range(100):
        assert masks.mask(state).tolist() == [True, True, False]
        state = masks.step(state, 0)
        assert len(masks.masks) <= 3 and len(machine.states) < 20


def test_a_trie_has_a_node_for_every_beginning():
    texts = [b"a", b"ab", b"abc", b"b", b"bc", b"\xff"]
    trie = Trie(dict(enumerate(texts)), 6)
    beginnings = {text[:n] for text in texts for n in range(len(text) + 1)}
    assert trie.count == len(beginnings) and len(set(trie.nodes.tolist())) == 6


# Generation


@pytest.fixture(scope="module")
def small():
    """A random model over bytes, and its tokenizer."""
    torch.manual_seed(0)
    texts = [bytes([n]) for n in range(256)] + [b"ab", b'": ', b'{"', b"12", b" a"]
    tokenizer = Small(texts)
    model = minillama.Llama(minillama.LlamaConfig(32, 1, 4, 2, 8, 48, tokenizer.vocab_size)).eval()
    for matrix in (each for each in model.parameters() if each.ndim == 2):
        torch.nn.init.normal_(matrix, std=0.3)
    return model, tokenizer


SHAPES = [
    Choice(["ab", "abba", "c"]),
    Regex(r"(ab|c){1,4}, [0-9]{2}"),
    JsonSchema({"type": "object", "properties": {"ab": {"type": "integer", "minimum": 1, "maximum": 99}, "c": {"enum": ["x", "yy"]}}, "required": ["ab"]}),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("canonical", [True, False])
def test_batches_drafts_and_samples_keep_to_a_constraint(small, shape, canonical):
    model, tokenizer = small
    masks = TokenMasks(tokenizer, shape, canonical=canonical)

    def text(ids):
        return b"".join(tokenizer.token_bytes[id] for id in ids).decode()

    for seed, prompt in enumerate(([1, 2, 3], [7], [40, 41, 40, 41])):
        greedy = list(generate(model, prompt, 40, constraint=masks))
        assert shape.matches(text(greedy))
        assert list(speculate(model, prompt, 40, constraint=masks)) == greedy
        for n in range(len(greedy)):
            assert list(speculate(model, prompt, n, constraint=masks)) == greedy[:n]
        drawn = list(generate(model, prompt, 40, 2.0, 3, 0.9, seed=seed, constraint=masks))
        assert shape.matches(text(drawn))
        rows = generate_batch(model, [prompt, [5, 6]], 40, 2.0, 3, 0.9, seed=seed, constraint=masks)
        assert rows[0] == drawn and shape.matches(text(rows[1]))


def test_without_a_constraint_nothing_changes(small):
    model, _ = small
    plain = list(generate(model, [1, 2, 3], 20))
    assert (
        list(speculate(model, [1, 2, 3], 20)) == plain == generate_batch(model, [[1, 2, 3]], 20)[0]
    )


FUNCTIONS = [
    {"name": "get_weather", "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}}, "required": ["city", "unit"]}},
    {"name": 'say "hi"', "parameters": {"properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}},
    {"name": "stop"},
]  # fmt: skip


@pytest.mark.parametrize("form", ["json", "function_tag"])
def test_tool_calls_are_read_back_as_calls_of_declared_functions(form):
    functions = FUNCTIONS[:2]
    machine, found = ToolCalls(functions, form), set()
    parameters = {function["name"]: function["parameters"] for function in functions}
    for seed in range(60):
        if (text := walk(machine, seed)) is not None:
            (call,) = chat.parse(text)
            DRAFT(parameters[call["name"]]).validate(call["arguments"])
            assert machine.matches(chat.render(call, form))
            found.add(call["name"])
    assert found == set(parameters)
    assert ToolCalls(FUNCTIONS).matches('{"type": "function", "name": "stop", "parameters": {}}')


def test_real_weights_and_the_command_line(ours, tmp_path, capsys, monkeypatch):
    """A call that parses and fits; `--schema` and `--regex`; what they cannot take is one line."""
    model, tokenizer = ours
    monkeypatch.setattr("minillama.commands.generate.load", lambda args: ours)
    prompt = chat.encode_dialog(tokenizer, [{"role": "user", "content": "Weather in Rome?"}])
    masks = TokenMasks(tokenizer, ToolCalls(FUNCTIONS[:1]))
    ids = list(generate(model, prompt, 60, constraint=masks))
    (call,) = chat.parse_assistant(tokenizer, ids)["calls"]
    DRAFT(FUNCTIONS[0]["parameters"]).validate(call["arguments"])
    assert list(speculate(model, prompt, 60, constraint=masks)) == ids
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["n"],
    }
    (tmp_path / "s.json").write_text(json.dumps(schema), encoding="utf-8")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    (tmp_path / "not.json").write_text('{"not": {}}', encoding="utf-8")
    assert cli.main(["generate", "--schema", str(tmp_path / "s.json"), "A number"]) == 0
    DRAFT(schema).validate(json.loads(capsys.readouterr().out))
    for args, words in (
        (["--schema", str(tmp_path / "bad.json")], "is not JSON"),
        (["--schema", str(tmp_path / "not.json")], "'not' is not supported"),
        (["--schema", str(tmp_path / "none.json")], "none.json"),
        (["--regex", "(?=a)"], "regular expression"),
        (["--regex", "[a-z]{60}", "--max-new-tokens", "2"], "cut off after 2 tokens"),
    ):
        assert cli.main(["generate", *args, "A number"]) == 2
        error = capsys.readouterr().err
        assert words in error and error.strip().count("\n") == 0


def test_masks_of_llamas_vocabulary_are_a_plain_loops(llama3_vocabulary):
    llama_tokenizer = minillama.Tokenizer.from_file(llama3_vocabulary)
    machine = JsonSchema(
        {
            "type": "object",
            "properties": {
                "größe": {"type": "number", "minimum": 0.5, "maximum": 20},
                "s": {"type": "string", "maxLength": 3},
            },
        }
    )
    masks = TokenMasks(llama_tokenizer, machine, canonical=False)
    ids = np.arange(0, 128_000, 37)
    for text in ("", '{"gr', '{"größe": 1', '{"größe": 1.5, "s": "', '{"größe": 2}'):
        state = machine.step(machine.start, text.encode())
        want = [bool(machine.step(state, llama_tokenizer.token_bytes[id])) for id in ids.tolist()]
        assert masks.mask(state)[ids].tolist() == want
        assert masks.mask(state)[128_000:].any() == machine.accepts(state)

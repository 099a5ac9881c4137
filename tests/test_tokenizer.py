"""Both real vocabularies against tiktoken, Hugging Face's tokenizers and published ids; BPE on toy
text by hand.
"""

import sys
import sysconfig
import unicodedata
from itertools import groupby
from pathlib import Path

import pytest
import regex
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

from minillama import Tokenizer
from minillama.tokenizer import (
    GPT2_SPLIT,
    LLAMA3_PATTERN,
    cut_long,
    gpt2_bytes,
    llama3_special_names,
    train_bpe,
)


TEXTS = [
    "",
    " ",
    "This is a test sentence.",
    "Grüße, ça va? Señor, naïve façade Ærøskøbing ŁÓDŹ ǅ ﬁ",
    "Привет, мир! Γειά σου Κόσμε. Ողջույն",
    "你好，世界。日本語のテキスト、カタカナ ｶﾀｶﾅ 한국어 ภาษาไทย",
    "שלום עולם  مرحبا بالعالم ١٢٣ हिन्दी में १२३ বাংলা",
    " Việt Nam, por ejemplo: por \u00a0 no-break, e\u0301 against é",
    "0 1 12 123 1234 12345 3.14159 1,000,000 0x1F ½ ² Ⅷ 12a34 a1b2 1 2  3   4",
    "I'm you're it's WE'LL I'D don't 'tis ''s 's",
    "def f(x):\n    return x**2  # square\n\n\n\tif x != 0 and y:\r\n\t\tpass\r\n   \r\n",
    '{"key": [1, 2.5e-10, null], "b": "\\n"}\n<div class="x">&amp;</div>',
    "👍🏽 👨‍👩‍👧‍👦 🇩🇪 ♥️ ✈ \u200b\ufeff𝔘𝔫𝔦 𒀀",
    "     leading, trailing     \n \n  \t \n",
    "a" * 300 + " " * 50 + "!?" * 60 + "\n" * 20 + "=" * 80,
    "<|begin_of_text|><|im_start|>user<|eot_id|> <|endoftext|>",
    "\x00\x01\x1f\x7f\x85\u2028\u3000",
]
# Text without lone surrogates, which UTF-8 cannot hold, nor characters that only the newest Unicode
# edition knows
# (test_unicode_editions); half of it from characters that decide where chunks end.
TRICKY = st.text(" \t\r\n\u00a0\u3000aZéß中١7½'’s.,!_-<|>\u0301👍\x00", max_size=40)
ANY = st.one_of(TRICKY, st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40))
MANY = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="module")
def engines(llama3_vocabulary):
    """One tokenizer per engine."""
    return {
        engine: Tokenizer.from_file(llama3_vocabulary, engine) for engine in ("python", "tiktoken")
    }


@pytest.fixture(scope="module", params=["python", "tiktoken"])
def llama3(engines, request):
    return engines[request.param]


@pytest.fixture(scope="module")
def openai(llama3_vocabulary):
    """tiktoken with Meta's vocabulary, set up as in Meta's own tokenizer.py."""
    ranks = load_tiktoken_bpe(str(llama3_vocabulary))
    return tiktoken.Encoding(
        "llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )


@pytest.fixture(scope="module")
def smollm2(ours):
    return ours[1]


@pytest.fixture(scope="module")
def hugging_face(smollm2_gguf):
    """SmolLM2's published tokenizer.json, rebuilt with the tokenizers package from the GGUF's
    vocabulary and merges.

    transformers' own conversion of a GGUF ignores the pre-tokenizer kind "smollm" and does not
    split digits one by one. The published file does (Digits, then ByteLevel), and the model was
    trained so: the published file is right.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    fields = smollm2_gguf.fields
    vocab = {token: id for id, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def test_split_pattern_is_metas():
    """FACTS: the published pattern, letter for letter."""
    assert LLAMA3_PATTERN == (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
        r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )


@pytest.mark.weights
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_llama3_as_tiktoken(llama3, openai, text):
    assert llama3.encode(text) == openai.encode_ordinary(text)
    assert llama3.decode(llama3.encode(text)) == text


@pytest.mark.weights
@MANY
@given(text=ANY)
def test_llama3_as_tiktoken_on_made_up_text(llama3, openai, text):
    assert llama3.encode(text) == openai.encode_ordinary(text)
    assert llama3.decode(llama3.encode(text)) == text


@pytest.mark.weights
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_smollm2_as_hugging_face(smollm2, hugging_face, text):
    assert smollm2.encode(text) == hugging_face.encode(text).ids


@pytest.mark.weights
@MANY
@example(text="a\x00b")
@given(text=ANY)
def test_smollm2_as_hugging_face_on_made_up_text(smollm2, hugging_face, text):
    assert smollm2.encode(text) == hugging_face.encode(text).ids


@pytest.mark.weights
def test_what_transformers_makes_of_it(smollm2, their_tokenizer):
    """transformers' conversion of the GGUF gives our ids except near digits, which it does not
    split off.
    """
    theirs = {text: their_tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS}
    differ = [text for text in TEXTS if smollm2.encode(text) != theirs[text]]
    assert differ and all(regex.search(r"\p{N}|<\|im_start", text) for text in differ)


@pytest.mark.weights
def test_published_ids(llama3):
    """From Meta's test_tokenizer.py and the model card's examples."""
    sentence = [128000, 2028, 374, 264, 1296, 11914, 13, 128001]
    assert llama3.encode("This is a test sentence.", bos=True, eos=True) == sentence
    assert llama3.decode(sentence) == "<|begin_of_text|>This is a test sentence.<|end_of_text|>"
    names = {
        "<|begin_of_text|>": 128000,
        "<|end_of_text|>": 128001,
        "<|finetune_right_pad_id|>": 128004,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eom_id|>": 128008,
        "<|eot_id|>": 128009,
        "<|python_tag|>": 128010,
    }
    assert names.items() <= llama3.specials.items()
    assert (
        sorted(llama3.specials.values()) == list(range(128_000, 128_256))
        and llama3.vocab_size == 128_256
    )
    assert llama3.stop_ids == {128001, 128008, 128009}


@pytest.mark.weights
@pytest.mark.parametrize("text, count", [(" например", 1), (" Việt", 1)])
def test_whole_chunks_before_merging(llama3, text, count):
    """These are tokens that no sequence of merges reaches."""
    assert len(llama3.encode(text)) == count


@pytest.mark.weights
def test_special_names_are_plain_text_unless_allowed(llama3):
    text = "<|eot_id|>x<|python_tag|>"
    assert max(llama3.encode(text)) < 128_000
    x = llama3.encode("x")
    assert llama3.encode(text, allowed_special="all") == [128009, *x, 128010]
    assert llama3.encode(text, allowed_special={"<|eot_id|>"}) == [
        128009,
        *llama3.encode("x<|python_tag|>"),
    ]


@pytest.mark.weights
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_streamed_text_is_whole_characters(llama3, text):
    pieces = list(llama3.decode_stream(llama3.encode(text)))
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)


@pytest.mark.weights
def test_streaming_holds_back_half_a_character(llama3):
    ids = [llama3.vocab[bytes([byte])] for byte in "é👍".encode()]
    assert list(llama3.decode_stream(ids)) == ["", "é", "", "", "", "👍", ""]
    assert "".join(llama3.decode_stream(ids[:3])) == llama3.decode(ids[:3]) == "é\ufffd"


LONG = {
    "a million spaces": " " * 1_000_000,
    "a megabyte of one letter": "a" * 1_000_000,
    "a megabyte of digits": "7" * 1_000_000,
    "line ends": "\n" * 60_000,
    "words": "sea and ships " * 70_000,
    "runs of all lengths": "".join(
        char * n for n in (24_999, 25_000, 25_001, 49_999, 50_000, 50_001) for char in "a \n"
    ),
    "a run across the border": "ab " * 133_000 + "x" * 60_000 + "\x1f\x85\u3000 " * 12_501 + "é",
    "Chinese": "面包还是热的，" * 10_000,
}


def metas_pieces(text: str, length=400_000, run=25_000):
    """Character by character: the text as Meta's tokenizer cuts it."""
    for start in range(0, len(text), length):
        piece = []
        for _, same in groupby(text[start : start + length], str.isspace):
            for i, char in enumerate(same):
                if i and i % run == 0:
                    yield "".join(piece)
                    piece.clear()
                piece.append(char)
        yield "".join(piece)


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_text_is_cut_as_by_meta(text):
    assert list(cut_long(text)) == list(metas_pieces(text))


@given(
    text=st.text("aé \n\x1c\u00a0.", max_size=60), length=st.integers(1, 30), run=st.integers(1, 8)
)
def test_cuts_anywhere(text, length, run):
    assert list(cut_long(text, length, run)) == list(metas_pieces(text, length, run))


@pytest.mark.weights
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_text_as_meta(llama3, openai, text):
    """A million spaces make tiktoken itself raise. With quadratic work this would take days."""
    ids = llama3.encode(text)
    assert ids == [id for piece in metas_pieces(text) for id in openai.encode_ordinary(piece)]
    assert llama3.decode(ids) == text


@pytest.mark.weights
def test_special_names_in_long_text(engines):
    """Meta cuts first and looks for the names then, so a name across a cut is plain text."""
    text = "<|eot_id|>" + "x" * 24_985 + "<|eot_id|> " + "<|eot_id|>" * 3
    ids = engines["python"].encode(text, allowed_special="all")
    assert (
        ids == engines["tiktoken"].encode(text, allowed_special="all") and ids.count(128_009) == 4
    )


@pytest.mark.weights
def test_engines_agree_on_megabytes(engines):
    """Programs, and chapters of this course: prose, mathematics, fourteen languages, pictures in
    base64.
    """
    programs = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]
    chapters = sorted((Path(__file__).parent.parent / "notebooks").glob("0[0-2]*.ipynb"))
    texts = [path.read_text(encoding="utf-8") for path in [*programs, *chapters]]
    assert sum(map(len, texts)) > 1_000_000 and any(char in "".join(texts) for char in "面한ไ🙂")
    for text in texts:
        assert engines["python"].encode(text) == engines["tiktoken"].encode(text)


@pytest.mark.weights
def test_choice_of_the_engine(llama3_vocabulary, monkeypatch):
    assert Tokenizer.from_file(llama3_vocabulary).engine == "tiktoken"
    monkeypatch.setitem(sys.modules, "tiktoken", None)  # as if it were not installed
    tokenizer = Tokenizer.from_file(llama3_vocabulary)
    assert tokenizer.engine == "python" and tokenizer.encode("test") == [1985]
    for engine in ("tiktoken", "rust", None):
        with pytest.raises(ValueError, match="engine"):
            Tokenizer.from_file(llama3_vocabulary, engine)


def test_only_vocabularies_of_metas_kind_go_to_tiktoken():
    vocab = train_bpe("the cat sat on the mat", 270)
    assert Tokenizer(vocab, {}).engine == "python" and Tokenizer.llama3(vocab).engine == "tiktoken"


def test_unicode_editions():
    """Where regex and tiktoken see different letters, numbers or spaces, one of them does not know
    the character yet.

    Llama 3.1 cannot have met such characters: they are younger than the model. No token depends on
    them.
    """
    everything = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    young = set()
    for kind in (r"\p{L}", r"\p{N}", r"\s"):
        theirs = tiktoken.Encoding(
            kind,
            pat_str=kind,
            mergeable_ranks={bytes([i]): i for i in range(256)},
            special_tokens={},
        )
        seen = bytes(theirs.encode_ordinary(everything)).decode()  # what does not match is left out
        young |= set(seen) ^ set(regex.findall(kind, everything))
    assert len(young) < 20_000
    if unicodedata.unidata_version < "17":  # a later Python may know them too
        assert {unicodedata.category(char) for char in young} <= {"Cn"}


BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)}, {})


@given(ids=st.lists(st.integers(0, 255)))
@example(ids=[0xF0, 0x9F, 0x41, 0xC0, 0x80, 0xED, 0xA0, 0x80, 0xFF, 0xE4, 0xBD])
def test_streaming_invalid_utf8_never_raises(ids):
    """What the model says need not be text; streamed and whole it is shown in the same way."""
    pieces = list(BYTES.decode_stream(ids))
    assert len(pieces) == len(ids) + 1
    assert "".join(pieces) == BYTES.decode(ids) == bytes(ids).decode(errors="replace")


@pytest.mark.weights
@MANY
@given(ids=st.lists(st.integers(0, 128_255), max_size=30))
def test_streaming_any_ids(engines, ids):
    tokenizer = engines["python"]
    assert "".join(tokenizer.decode_stream(ids)) == tokenizer.decode(ids)


def their_bytes(plain: dict, specials=()):
    """Hugging Face's tokenizer of bytes and one pair, with added tokens that belong to text and
    others; and ours.
    """
    char = {byte: char for char, byte in gpt2_bytes().items()}
    vocab = {char[byte]: byte for byte in range(256)} | {"ab": 256}
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b")]))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    theirs.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False) for name in specials]
    )
    for name, late in plain.items():
        theirs.add_tokens([tokenizers.AddedToken(name, special=False, normalized=late)])
    added = {name: theirs.token_to_id(name) for name in [*specials, *plain]}
    ids = {**{bytes([byte]): byte for byte in range(256)}, b"ab": 256}
    ours = Tokenizer(ids, added, GPT2_SPLIT, {(b"a", b"b"): 0}, whole_chunks=False, plain=plain)
    return theirs, ours


@MANY
@given(
    plain=st.dictionaries(st.text("ab <>é", min_size=2, max_size=5), st.booleans(), max_size=4),
    text=st.text("ab <>é", max_size=30),
)
@example(plain={"ab": True, "b<": False, "b<b": False}, text="ab<b ab<a")
def test_added_tokens_that_belong_to_text(plain, text):
    """Found in any text, the longest first, and those that are "normalized" only in what the others
    leave.

    "ab" is an ordinary token as well, and keeps its id.
    """
    theirs, ours = their_bytes(plain)
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert ours.decode(ids) == "".join(ours.decode_stream(ids)) == text


def test_control_tokens_beside_tokens_that_belong_to_text():
    theirs, ours = their_bytes({"<think>": False, "|>x": True}, ["<|eot|>"])
    text = "<think>a<|eot|>x"
    assert (
        ours.encode(text, allowed_special="all") == theirs.encode(text).ids == [258, 97, 257, 120]
    )
    plain = ours.encode(text)
    assert plain[0] == 258 and 257 not in plain and plain[-1] == 259 and ours.decode(plain) == text


def test_an_added_token_without_a_name_is_found_nowhere():
    nameless = Tokenizer({bytes([byte]): byte for byte in range(256)}, {"": 256}, plain={"": False})
    assert nameless.encode("ab", allowed_special="all") == [97, 98]


def test_special_names_at_meta_and_at_hugging_face():
    """The full table. Hugging Face calls the two unused names reserved, which moves the numbers of
    all that follow.
    """
    purpose = {
        128000: "begin_of_text",
        128001: "end_of_text",
        128004: "finetune_right_pad_id",
        128006: "start_header_id",
        128007: "end_header_id",
        128008: "eom_id",
        128009: "eot_id",
        128010: "python_tag",
    }
    only_meta = {128005: "step_id", 128011: "image"}
    tables = []
    for named in (purpose | only_meta, purpose):
        rest = iter(range(256))
        tables.append(
            [
                f"<|{named.get(id) or f'reserved_special_token_{next(rest)}'}|>"
                for id in range(128_000, 128_256)
            ]
        )
    metas, hugging_faces = tables
    assert llama3_special_names() == metas
    assert (
        metas[-1] == "<|reserved_special_token_245|>"
        and hugging_faces[-1] == "<|reserved_special_token_247|>"
    )
    assert (metas[31], hugging_faces[31]) == (
        "<|reserved_special_token_21|>",
        "<|reserved_special_token_23|>",
    )
    differ = [128_000 + i for i in range(256) if metas[i] != hugging_faces[i]]
    assert differ == [128_005, *range(128_011, 128_256)]


@pytest.mark.weights
@pytest.mark.parametrize("id", [-1, 128_256, 10**9])
def test_ids_outside_the_vocabulary(llama3, id):
    with pytest.raises(ValueError, match="outside"):
        llama3.decode([id])


@pytest.mark.weights
@pytest.mark.parametrize(
    "text, error", [("\ud800", ValueError), (b"bytes", TypeError), (None, TypeError)]
)
def test_what_is_no_text(llama3, text, error):
    with pytest.raises(error):
        llama3.encode(text)


@pytest.mark.parametrize(
    "content", [b"", b"not a vocabulary", b"!!! 0\n", b"YQ== x\n", b"YQ==\n", b"\xff\xfe"]
)
def test_broken_vocabulary_files(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer.model|ranks"):
        Tokenizer.from_file(tmp_path / "tokenizer.model")


def test_bpe_by_hand():
    """aab aab ab: the pair (a, b) comes three times, then (a, ab) twice."""
    vocab = train_bpe("aab aab ab", 258, pattern=r"\S+|\s+")
    assert list(vocab)[256:] == [b"ab", b"aab"]
    tokenizer = Tokenizer(vocab, {}, whole_chunks=False)
    assert tokenizer.encode("aab ab b") == [257, 32, 256, 32, 98]
    assert tokenizer.decode([257, 32, 256]) == "aab ab"


def test_trained_vocabulary_as_tiktoken():
    """tiktoken with our learned ranks cuts the text as we do."""
    text = "the cat sat on the mat; the hat is that cat's. " * 3
    vocab = train_bpe(text, 300)
    reference = tiktoken.Encoding(
        "toy", pat_str=LLAMA3_PATTERN, mergeable_ranks=vocab, special_tokens={}
    )
    for sample in [text, "that rat", "cathat 12", *TEXTS]:
        assert Tokenizer(vocab, {}).encode(sample) == reference.encode_ordinary(sample)


def test_gpt2_pattern_as_tiktoken():
    """The split of GPT-2's own encoding."""
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    for text in TEXTS:
        assert regex.findall(GPT2_SPLIT, text) == regex.findall(pattern, text)

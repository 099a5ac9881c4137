"""GGUF files written by others are read exactly; broken ones give one clear line."""

import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import jinja2
import numpy as np
import pytest
import tokenizers
import torch
from helpers import PLAIN, SCALED, all_refused, random_ids, refused, tiny_hugging_face
from tiktoken.load import load_tiktoken_bpe

from minillama import Llama, LlamaConfig, RopeScaling, Tokenizer
from minillama.chat import encode_dialog
from minillama.checkpoints import tensors as checkpoints
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.gguf import GGML_TYPES, GGUFHeader, open_gguf
from minillama.checkpoints.names import GGUF, HUGGING_FACE
from minillama.inference.loading import load
from minillama.tokenizer import LLAMA3_PATTERN, gpt2_bytes


Q, T = gguf.GGMLQuantizationType, gguf.GGUFValueType
QUANTIZED = [Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.IQ4_NL, Q.Q4_K, Q.Q5_K, Q.Q6_K]
KEYS = {  # of a model of one block
    "llama.embedding_length": (T.UINT32, 64),
    "llama.block_count": (T.UINT32, 1),
    "llama.attention.head_count": (T.UINT32, 4),
    "llama.attention.head_count_kv": (T.UINT32, 2),
    "llama.rope.dimension_count": (T.UINT32, 16),
    "llama.feed_forward_length": (T.UINT32, 96),
    "llama.vocab_size": (T.UINT32, 128),
    "llama.context_length": (T.UINT32, 99),
    "llama.attention.layer_norm_rms_epsilon": (T.FLOAT32, 1e-5),
    "llama.rope.freq_base": (T.FLOAT32, 10_000.0),
}


def write_gguf(path, tensors, changes=()):
    """A file by the gguf package: tensors {GGUF name: (array, type or None)}; changes {key: (type,
    value) or None}.
    """
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (KEYS | dict(changes)).items():
        if value is not None:
            writer.add_key_value(key, value[1], value[0])
    for name, (array, kind) in tensors.items():
        raw = array if kind is None or array.dtype == np.uint8 else gguf.quantize(array, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    return path


def tiny_tensors(kind=None):
    """One block's random tensors under GGUF's names; matrices of the type asked for."""
    rng, cfg = np.random.default_rng(0), LlamaConfig(64, 1, 4, 2, 16, 96, 128)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Llama(cfg).named_parameters()}
    arrays = {}
    for theirs, mine in GGUF.items():
        shape = shapes[mine.replace("N", "0")]
        array = rng.standard_normal(shape).astype(np.float32)
        arrays[theirs.replace("N", "0")] = (array, kind if len(shape) == 2 else None)
    return arrays


# Numbers


@pytest.mark.parametrize(
    "kind",
    [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1],
    ids=lambda kind: kind.name,
)
def test_a_model_dequantized_as_gguf_does(tmp_path, kind):
    tensors = tiny_tensors(kind)
    model, tokenizer = load(write_gguf(tmp_path / "tiny.gguf", tensors))
    assert tokenizer is None
    state = model.state_dict()
    for name, (array, quantized) in tensors.items():
        mine = state[GGUF[name.replace("blk.0", "blk.N")].replace("N", "0")].numpy()
        exact = array if quantized is None else gguf.dequantize(gguf.quantize(array, kind), kind)
        np.testing.assert_array_equal(mine, exact, err_msg=name)


def blocks(kind, count=600):
    """Blocks of random bytes; among them scales that are infinite, not a number, tiny, or zero."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(kind).integers(0, 256, (count, size), dtype=np.uint8)
    # of scales
    places = {Q.Q6_K: [208], Q.Q4_1: [0, 2], Q.Q5_1: [0, 2], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2]}.get(
        kind, [0]
    )
    special = np.array(
        [0x7C00, 0xFC00, 0x7E01, 0xFE02, 0x0001, 0x8001, 0x0000, 0x8000, 0x7BFF], dtype="<u2"
    )
    for i, value in enumerate(special):
        raw[i, places[0] : places[0] + 2] = raw[i + 9, places[-1] : places[-1] + 2] = value[
            None
        ].view(np.uint8)
    return raw


def same_bits(mine: torch.Tensor, theirs: np.ndarray):
    """Equal to the last bit, the sign of zero too; NaN where they have NaN."""
    mine, nan = mine.numpy().ravel(), np.isnan(theirs).ravel()
    np.testing.assert_array_equal(np.isnan(mine), nan)
    np.testing.assert_array_equal(mine.view(np.uint32)[~nan], theirs.ravel().view(np.uint32)[~nan])


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_random_bytes_dequantized_as_gguf_does(tmp_path, monkeypatch, kind):
    """Through a file, in several slices; and the bytes themselves, for those who want to compute
    with them.
    """
    monkeypatch.setattr(checkpoints, "SLICE", 7 * 256)
    raw = blocks(kind).reshape(10, -1)
    write_gguf(tmp_path / "tiny.gguf", tiny_tensors() | {"output.weight": (raw, kind)})
    tensor = open_gguf(tmp_path / "tiny.gguf").tensors["head.weight"]
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(raw, kind)
    assert tensor.shape == theirs.shape and tensor.kind == kind.name
    assert np.isinf(theirs).any() and np.isnan(theirs).any()
    same_bits(tensor.read(), theirs)
    np.testing.assert_array_equal(tensor.raw().numpy(), raw.ravel())


READ_ALL = """
import sys
from pathlib import Path
from open_all import memory
from minillama.checkpoints.gguf import open_gguf
tensors = open_gguf(Path(sys.argv[1])).tensors
tensors["norm.weight"].read()
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
print(tensors["head.weight"].read().nbytes, memory("VmHWM") - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux does"
)
def test_a_large_tensor_needs_little_more_than_its_elements(tmp_path):
    """Q6_K, 105 MB on disk (a file with a hole: nothing but zeros), 512 MB as float32."""
    path, rows = tmp_path / "large.gguf", 32_768
    write_gguf(
        path,
        tiny_tensors() | {"output.weight": (np.zeros((1, 4096 // 256 * 210), np.uint8), Q.Q6_K)},
    )
    data = path.read_bytes()
    at = data.index(string(b"output.weight")) + 8 + 13 + 4 + 8  # behind the number of columns
    path.write_bytes(data[:at] + struct.pack("<Q", rows) + data[at + 8 :])
    with open(path, "ab") as file:
        file.truncate(len(data) + (rows - 1) * 4096 // 256 * 210)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(path)],
        capture_output=True,
        encoding="utf-8",
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    size, peak = map(int, done.stdout.split())
    assert size == 4 * rows * 4096 and peak < size + 60e6


def test_the_sizes_of_blocks():
    for name, (elements, size, _) in GGML_TYPES.items():
        assert (elements, size) == gguf.GGML_QUANT_SIZES[Q[name]], name


def test_the_names_of_types():
    """All that the format has, so that a file can be refused by name."""
    known = {kind.value: kind.name for kind in Q if kind < len(GGUFHeader.TYPES)}
    assert len(known) > 30 and all(
        GGUFHeader.TYPES[number] == name for number, name in known.items()
    )


@torch.inference_mode()
@pytest.mark.parametrize("factor", [None, 8.0, 32.0])
def test_logits_as_transformers(tmp_path, factor):
    """A GGUF as llama.cpp's converter writes it: q and k interleaved, scaling as divisors."""
    reference = tiny_hugging_face(
        num_hidden_layers=1, rope=PLAIN if factor is None else SCALED | {"factor": factor}
    )
    state = reference.state_dict()
    theirs = {mine: name for name, mine in HUGGING_FACE.items()}
    tensors = {}
    for name, mine in GGUF.items():
        array = state[theirs[mine].replace("N", "0")].numpy()
        # as convert_hf_to_gguf.py
        if heads := {"blk.N.attn_q.weight": 4, "blk.N.attn_k.weight": 2}.get(name):
            array = array.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(array.shape)
        tensors[name.replace("N", "0")] = (np.ascontiguousarray(array), None)
    if factor is not None:
        plain = 500_000.0 ** -(np.arange(0, 16, 2) / 16)
        tensors["rope_freqs.weight"] = (
            (plain / reference.model.rotary_emb.inv_freq.numpy()).astype(np.float32),
            None,
        )
    theta = 10_000.0 if factor is None else 500_000.0
    model, _ = load(
        write_gguf(tmp_path / "tiny.gguf", tensors, {"llama.rope.freq_base": (T.FLOAT32, theta)})
    )
    assert model.cfg.rope_scaling == (None if factor is None else RopeScaling(factor))
    tokens = random_ids(40)
    torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-5, rtol=0)


def test_head_count_of_old_files(tmp_path):
    """Where there are as many kv heads as heads, the key may be missing; so may theta, vocabulary
    and head width.
    """
    tensors = tiny_tensors()
    for name in ("blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        tensors[name] = (np.ones((64, 64), np.float32), None)
    drop = ("llama.attention.head_count_kv", "llama.rope.freq_base", "llama.rope.dimension_count")
    cfg = load(write_gguf(tmp_path / "old.gguf", tensors, dict.fromkeys(drop)))[0].cfg
    assert (cfg.n_kv_heads, cfg.head_dim, cfg.rope_theta) == (4, 16, 10_000.0)


@pytest.mark.weights
def test_config_of_the_real_file(ours):
    cfg = ours[0].cfg
    assert cfg.norm_eps == pytest.approx(1e-5, rel=1e-7)  # the file has it in float32
    assert dataclasses.replace(cfg, norm_eps=1e-5) == LlamaConfig.named("smollm2-135m")


# Tokenizers

TEXT = (
    "The lamp of the lighthouse, the keeper's lamp; it was lit in 1850, 31 years after the 2nd "
    "storm. " * 3
)
BYTES = {byte: char for char, byte in gpt2_bytes().items()}


def tokenizer_keys(tokens, merges, pre, specials=(), **more):
    """The keys with which llama.cpp's converter stores a byte-level BPE."""
    keys = {
        "tokenizer.ggml.model": (T.STRING, "gpt2"),
        "tokenizer.ggml.pre": (T.STRING, pre),
        "tokenizer.ggml.tokens": (T.ARRAY, [*tokens, *specials]),
        "tokenizer.ggml.token_type": (
            T.ARRAY,
            [1] * len(tokens) + [3 + i % 2 for i in range(len(specials))],
        ),
        "tokenizer.ggml.merges": (T.ARRAY, [" ".join(pair) for pair in merges]),
    }
    return keys | {f"tokenizer.ggml.{name}": value for name, value in more.items()}


@pytest.fixture(scope="module")
def bpe():
    """A small byte-level BPE that Hugging Face's package has trained: (that tokenizer, its tokens,
    its merges).
    """
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([TEXT], trainer)
    vocab = theirs.get_vocab()
    merges = [tuple(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]
    return theirs, sorted(vocab, key=vocab.get), merges


def open_tokenizer(path, keys):
    n_tokens = len(keys["tokenizer.ggml.tokens"][1])
    embedding = {"token_embd.weight": (np.zeros((n_tokens, 1), np.float16), None)}
    return open_gguf(write_gguf(path, embedding, keys | {"llama.vocab_size": None})).tokenizer


@pytest.mark.parametrize("pre", ["llama-bpe", "llama-v3", "llama3"])
def test_llama_3_tokenizer_under_its_three_names(tmp_path, bpe, pre):
    theirs, tokens, merges = bpe
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|other|>"]
    first = len(tokens)
    keys = tokenizer_keys(
        tokens,
        merges,
        pre,
        specials,
        bos_token_id=(T.UINT32, first),
        eos_token_id=(T.UINT32, first + 3),
    )
    tokenizer = open_tokenizer(tmp_path / "t.gguf", keys)
    for text in (TEXT, "1850 31x  \n\n lighthouse's ÄÖ 灯台", "<|eot_id|> <|other|>"):
        assert tokenizer.encode(text) == theirs.encode(text).ids
    # though no key says that it begins a text
    assert tokenizer.encode("lamp", bos=True)[0] == first
    assert tokenizer.stop_ids == {first + 1, first + 2, first + 3} and tokenizer.eos_id == first + 3
    assert tokenizer.encode("<|other|>", allowed_special="all") == [first + 4]


def test_end_tokens_by_key(tmp_path, bpe):
    _, tokens, merges = bpe
    more = dict(eos_token_id=(T.UINT32, 3), eot_token_id=(T.UINT32, 4), eom_token_id=(T.UINT32, 5))
    keys = tokenizer_keys(tokens, merges, "gpt-2", **more, bos_token_id=(T.UINT32, 6))
    tokenizer = open_tokenizer(tmp_path / "t.gguf", keys)
    assert tokenizer.stop_ids == {3, 4, 5} and tokenizer.bos_id is None
    keys |= {"tokenizer.ggml.add_bos_token": (T.BOOL, True)}
    assert open_tokenizer(tmp_path / "t.gguf", keys).bos_id == 6


def test_user_defined_tokens_belong_to_text(tmp_path, bpe):
    """Type 4, as the converter writes for added tokens that are not special; and types 3 and 5,
    which are not.
    """
    theirs, tokens, merges = bpe
    names = ["<think>", "[ECHR-5A]", "<|other|>", "[PAD1]"]
    keys = tokenizer_keys(tokens, merges, "llama-bpe", names)
    keys["tokenizer.ggml.token_type"] = (T.ARRAY, [1] * len(tokens) + [4, 4, 3, 5])
    ours = open_tokenizer(tmp_path / "t.gguf", keys)
    again = tokenizers.Tokenizer.from_str(theirs.to_str())
    again.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in names[:2]])
    text = "the [ECHR-5A]<think> light<|other|>[PAD1]"
    assert ours.encode(text) == again.encode(text).ids and ours.decode(ours.encode(text)) == text
    assert {*range(len(tokens), len(tokens) + 2)} < {*ours.encode(text)}


CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
SYSTEM = """{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"""


@pytest.mark.parametrize("before", ["", "{{ bos_token }}", SYSTEM], ids=["plain", "BOS", "system"])
@pytest.mark.parametrize("kind", [3, 4], ids=["control", "user-defined"])
def test_the_chat_template_of_the_file(tmp_path, bpe, before, kind):
    """ChatML on Llama 3's vocabulary, as Hermes; jinja2 runs the template and we do not.

    Some files give the marks type 4; whether text may open a turn is not for a file to decide.
    """
    _, tokens, merges = bpe
    names = [
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    more = dict(bos_token_id=(T.UINT32, len(tokens)), add_bos_token=(T.BOOL, False))
    keys = tokenizer_keys(tokens, merges, "llama-bpe", names, **more)
    keys["tokenizer.ggml.token_type"] = (T.ARRAY, [1] * len(tokens) + [3] * 4 + [kind] * 2)
    ours = open_tokenizer(
        tmp_path / "t.gguf", keys | {"tokenizer.chat_template": (T.STRING, before + CHATML)}
    )
    messages = [
        {"role": role, "content": f"light {role}"} for role in ("user", "assistant", "user")
    ]
    template = jinja2.Template(before + CHATML, keep_trailing_newline=True)
    text = template.render(messages=messages, bos_token=names[0], add_generation_prompt=True)
    assert encode_dialog(ours, messages) == ours.encode(text, allowed_special="all")
    assert ours.bos_id is None and ours.specials["<|im_end|>"] in ours.stop_ids
    assert not {ours.specials[name] for name in names} & {*ours.encode("".join(names))}


@pytest.mark.parametrize(
    "bos", [(T.UINT32, 2**31), (T.FLOAT32, 5.0), (T.ARRAY, [1]), (T.BOOL, True), None], ids=str
)
def test_a_first_token_that_is_none_comes_before_no_conversation(tmp_path, bpe, bos):
    _, tokens, merges = bpe
    more = {"add_bos_token": (T.BOOL, False)} | ({"bos_token_id": bos} if bos else {})
    keys = tokenizer_keys(tokens, merges, "gpt-2", ["<|im_start|>", "<|im_end|>"], **more)
    ours = open_tokenizer(
        tmp_path / "t.gguf",
        keys | {"tokenizer.chat_template": (T.STRING, "{{ bos_token }}" + CHATML)},
    )
    assert (
        encode_dialog(ours, [{"role": "user", "content": "x"}])[0] == ours.specials["<|im_start|>"]
    )


@pytest.mark.parametrize(
    "template, why", [(None, "marks of Llama 3's"), ("{{ '<|user|>' }}", "<.user.>.*neither")]
)
def test_a_chat_format_that_is_not_known(tmp_path, bpe, template, why):
    _, tokens, merges = bpe
    keys = tokenizer_keys(tokens, merges, "llama-bpe", ["<|start_header_id|>", "<|im_start|>"])
    keys |= {"tokenizer.chat_template": (T.STRING, template)} if template else {}
    with pytest.raises(ValueError, match=why):
        encode_dialog(open_tokenizer(tmp_path / "t.gguf", keys), [])


UNREAD = {
    "sentencepiece, as in Llama 2": {
        "tokenizer.ggml.model": (T.STRING, "llama"),
        "tokenizer.ggml.pre": None,
    },
    "another way of cutting": {"tokenizer.ggml.pre": (T.STRING, "qwen2")},
    "not said how it cuts": {"tokenizer.ggml.pre": None},
    "a kind that is no text": {"tokenizer.ggml.pre": (T.UINT32, 3)},
}


@pytest.mark.parametrize("changes", UNREAD.values(), ids=UNREAD.keys())
def test_a_tokenizer_of_another_kind_leaves_the_weights_usable(tmp_path, changes):
    keys = tokenizer_keys(["a", "b", "ab"], [("a", "b")], "gpt-2") | changes
    with pytest.warns(UserWarning, match="tokenizer .* ids only"):
        model, tokenizer = load(write_gguf(tmp_path / "tiny.gguf", tiny_tensors(), keys))
    assert tokenizer is None and model(random_ids(5)).shape == (1, 5, 128)


def test_the_command_line_says_why_there_is_no_text(tmp_path):
    keys = tokenizer_keys(["a"], [("a", "a")], "qwen2")
    path = write_gguf(tmp_path / "tiny.gguf", tiny_tensors(), keys)
    done = subprocess.run(
        [sys.executable, "-m", "minillama", "generate", "--raw", "--model", str(path), "a"],
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "minillama: its tokenizer ('gpt2', 'qwen2') is of a kind not known here: it takes ids only",
        f"minillama: {path} has no tokenizer, so there is no text to continue",
    ]


@pytest.mark.weights
def test_llama_3_vocabulary_as_the_converter_stores_it(tmp_path, llama3_vocabulary):
    """128,256 tokens and the merges that follow from their ranks: the ids are those of Meta's
    file.
    """
    ranks = load_tiktoken_bpe(str(llama3_vocabulary))
    spelled = {token: "".join(BYTES[byte] for byte in token) for token in ranks}
    merges = []
    for token in ranks:
        pairs = [
            (token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks
        ]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    assert len(merges) == 280_147  # as many as in Llama 3's published tokenizer.json
    meta = Tokenizer.from_file(llama3_vocabulary)
    keys = tokenizer_keys(
        spelled.values(), [(spelled[a], spelled[b]) for a, b in merges], "llama-bpe", meta.specials,
        bos_token_id=(T.UINT32, 128_000), eos_token_id=(T.UINT32, 128_009),
    )  # fmt: skip
    tokenizer = open_tokenizer(tmp_path / "llama3.gguf", keys)
    assert tokenizer.specials == meta.specials and tokenizer.stop_ids == meta.stop_ids
    assert tokenizer.bos_id == meta.bos_id and tokenizer.vocab_size == 128_256
    golden = [128000, 2028, 374, 264, 1296, 11914, 13]
    assert tokenizer.encode("This is a test sentence.", bos=True) == golden
    for text in (TEXT, "Im März schneite es; маяк стоял у моря, например. 灯台 12345\n\n  x"):
        assert tokenizer.encode(text) == meta.encode(text)


# Files that do not fit, by the gguf package


def vector(*shape, value=1.0):
    return np.full(shape, value, np.float32), None


FIT = {
    "a tensor missing": (lambda t: t.pop("output_norm.weight"), {}, "missing"),
    "no embedding": (lambda t: t.pop("token_embd.weight"), {}, "embedding"),
    "a tensor too many": (lambda t: t.update(bias=vector(4)), {}, "bias"),
    "a bias": (lambda t: t.update({"blk.0.attn_q.bias": vector(64)}), {}, "bias"),
    "a block too many": (
        lambda t: t.update({"blk.1.attn_norm.weight": vector(64)}),
        {},
        "too many",
    ),
    "an expert": (lambda t: t.update({"blk.0.ffn_gate_exps.weight": vector(64)}), {}, "exps"),
    "wrong shape": (lambda t: t.update({"output_norm.weight": vector(65)}), {}, "shape"),
    "transposed": (lambda t: t.update({"output.weight": vector(64, 128)}), {}, "shape"),
    "three dimensions": (lambda t: t.update({"output.weight": vector(2, 64, 64)}), {}, "shape"),
    "a head of 0 rows": (lambda t: t.update({"output.weight": vector(0, 64)}), {}, "shape"),
    "unsupported type": (
        lambda t: t.update({"output.weight": (np.ones((128, 110), np.uint8), Q.Q3_K)}),
        {},
        "'output.weight' has type Q3_K, which is not supported; F32, .*Q4_K, .*Q5_0, .* are$",
    ),
    "whole numbers": (
        lambda t: t.update({"output_norm.weight": (np.ones(64, np.int32), None)}),
        {},
        "type I32",
    ),
    "another scaling": (
        lambda t: t.update({"rope_freqs.weight": vector(8, value=3)}),
        {},
        "rope_freqs",
    ),
    "a scaling that is no number": (
        lambda t: t.update({"rope_freqs.weight": vector(8, value=np.nan)}),
        {},
        "rope_freqs",
    ),
    "a scaling for other heads": (
        lambda t: t.update({"rope_freqs.weight": vector(16)}),
        {},
        "rope_freqs",
    ),
    "a huge scaling": (
        lambda t: t.update({"rope_freqs.weight": vector(1000, 1000)}),
        {},
        "rope_freqs",
    ),
    "scaling by name": (None, {"llama.rope.scaling.type": (T.STRING, "yarn")}, "scaling"),
    "scaling by factor": (None, {"llama.rope.scaling.factor": (T.FLOAT32, 4.0)}, "scaling"),
    "a window": (None, {"llama.attention.sliding_window": (T.UINT32, 4096)}, "window"),
    "half of each head rotated": (
        None,
        {"llama.attention.key_length": (T.UINT32, 16), "llama.rope.dimension_count": (T.UINT32, 8)},
        "rope",
    ),
    "wider values": (None, {"llama.attention.value_length": (T.UINT32, 32)}, "value_length"),
    "uneven heads": (None, {"llama.attention.head_count_kv": (T.UINT32, 3)}, "evenly"),
    "heads per layer": (None, {"llama.attention.head_count_kv": (T.ARRAY, [2])}, "n_kv_heads"),
    "very many layers": (None, {"llama.block_count": (T.UINT32, 3_000)}, "layers"),
    "one of several files": (None, {"split.count": (T.UINT16, 3)}, "several files"),
    "alignment 0": (None, {"general.alignment": (T.UINT32, 0)}, "alignment"),
    "alignment 12": (None, {"general.alignment": (T.UINT32, 12)}, "alignment"),
    "alignment 2^63": (None, {"general.alignment": (T.UINT64, 2**63)}, "ends at"),
    "alignment of another type": (None, {"general.alignment": (T.FLOAT32, 32.0)}, "alignment"),
    "alignment as a list": (None, {"general.alignment": (T.ARRAY, [32])}, "alignment"),
    "alignment as a boolean": (None, {"general.alignment": (T.BOOL, True)}, "alignment"),
}
WRONG = {
    "missing": None,
    "zero": (T.UINT32, 0),
    "negative": (T.INT32, -1),
    "huge": (T.UINT32, 2**32 - 1),
    "2^63": (T.UINT64, 2**63),
    "a boolean": (T.BOOL, True),
    "a fraction": (T.FLOAT32, 1.5),
    "a text": (T.STRING, "64"),
    "a list": (T.ARRAY, [64]),
    "not a number": (T.FLOAT64, float("nan")),
    "infinite": (T.FLOAT64, float("inf")),
}
FINE = {  # what a missing value stands for, and numbers that mean something
    "llama.attention.head_count_kv missing",
    "llama.rope.dimension_count missing",
    "llama.rope.freq_base missing",
    "llama.context_length huge",
    "llama.context_length 2^63",
    "llama.rope.freq_base huge",
    "llama.rope.freq_base 2^63",
    "llama.rope.freq_base a fraction",
    "llama.attention.layer_norm_rms_epsilon huge",
    "llama.attention.layer_norm_rms_epsilon 2^63",
    "llama.attention.layer_norm_rms_epsilon a fraction",
}
FIT |= {f"{key} {how}": (None, {key: value}, "") for key in KEYS for how, value in WRONG.items()}
FIT = {name: case for name, case in FIT.items() if name not in FINE}


def write_case(path, change, changes):
    tensors = tiny_tensors()
    if change:
        change(tensors)
    return write_gguf(path, tensors, changes)


@pytest.mark.parametrize("name", sorted(FINE))
def test_sizes_that_mean_something(tmp_path, name):
    key, how = name.split(" ", 1)
    if how == "missing" and key == "llama.attention.head_count_kv":
        # one kv head per head
        return refused(write_case(tmp_path / "tiny.gguf", None, {key: None}), "shape")
    load(write_case(tmp_path / "tiny.gguf", None, {key: WRONG[how]}))


BASE = tokenizer_keys(
    ["a", "b", "c", "ab", "abc"], [("a", "b"), ("ab", "c")], "gpt-2", ["<s>", "</s>"]
)
NO_LIST = (T.STRING, "")  # the gguf package cannot write an empty list
TOKENIZERS = {  # changes to a good one
    "a token twice": ({"tokens": (T.ARRAY, ["a", "b", "c", "ab", "abc", "a", "</s>"])}, "twice"),
    "more tokens than rows": (
        {
            "tokens": (T.ARRAY, [f"ab{i}" for i in range(129)]),
            "token_type": (T.ARRAY, [3] * 129),
            "merges": NO_LIST,
        },
        "more tokens than",
    ),
    "tokens that are numbers": ({"tokens": (T.ARRAY, [1, 2, 3, 4, 5, 6, 7])}, ""),
    "tokens that are no list": ({"tokens": (T.STRING, "abc")}, ""),
    "tokens that are a number": ({"tokens": (T.UINT32, 7)}, ""),
    "tokens in no spelling": (
        {"tokens": (T.ARRAY, ["a", "b", "c", "ab", "abc d", "<s>", "</s>"])},
        "spelled",
    ),
    "no types": ({"token_type": None}, "token_type"),
    "too few types": ({"token_type": (T.ARRAY, [1, 1, 1])}, ""),
    "types that are no list": ({"token_type": (T.UINT32, 1)}, ""),
    "no merges": ({"merges": None}, "merges"),
    "merges that are no list": ({"merges": (T.BOOL, True)}, ""),
    "merges that are numbers": ({"merges": (T.ARRAY, [1, 2])}, ""),
    "a merge of three": ({"merges": (T.ARRAY, ["a b c"])}, ""),
    "a merge of one": ({"merges": (T.ARRAY, ["ab"])}, ""),
    "an empty merge": ({"merges": (T.ARRAY, [""])}, ""),
    "a merge into nothing": ({"merges": (T.ARRAY, ["b c"])}, "does not have"),
    "an end outside": ({"eos_token_id": (T.UINT32, 99)}, "control ids"),
    "an end below": ({"eos_token_id": (T.INT32, -1)}, "control ids"),
    "an end that is a text": ({"eos_token_id": (T.STRING, "</s>")}, "control ids"),
    "an end that is a list": ({"eos_token_id": (T.ARRAY, [6])}, ""),
    "an end that is true": ({"eos_token_id": (T.BOOL, True)}, "control ids"),
    "a beginning outside": (
        {"bos_token_id": (T.UINT32, 2**31), "add_bos_token": (T.BOOL, True)},
        "control ids",
    ),
    "a chat template that is a number": (
        {"chat_template": (T.UINT32, 7)},
        "chat template is no text",
    ),
    "a beginning that is a fraction": (
        {"bos_token_id": (T.FLOAT32, 5.0), "add_bos_token": (T.BOOL, True)},
        "control ids",
    ),
}


def tokenizer_changes(changes):
    return BASE | {
        f"tokenizer.{'' if name == 'chat_template' else 'ggml.'}{name}": v
        for name, v in changes.items()
    }


# Headers that nobody would write, byte by byte


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def info(name=b"t", dims=(32,), kind=0, offset=0, n_dims=None) -> bytes:
    n_dims = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", n_dims, *dims, kind, offset)


ARCHITECTURE = key(b"general.architecture", 8, string(b"llama"))


def header(
    *keys, infos=(), magic=b"GGUF", version=3, n_tensors=None, n_keys=None, data=bytes(256)
) -> bytes:
    counts = len(infos) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    start = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(infos)
    return start + bytes(-len(start) % 32) + data


def array(kind, count, items=b""):
    return key(b"a", 9, struct.pack("<IQ", kind, count) + items)


HUGE = (2**31, 2**62, 2**63, 2**64 - 1)  # the last two are negative where counts have a sign
BROKEN = {
    "empty": (b"", "empty"),
    "magic": (header(magic=b"GGML"), "not a GGUF"),
    "big endian": (header(version=3 << 24), "version"),
    "version 0": (header(version=0), "version"),
    "version 1": (header(version=1), "version"),
    "version 4": (header(version=4), "version"),
    "empty key": (header(key(b"", 4, bytes(4))), "key"),
    "repeated key": (header(key(b"k", 4, bytes(4)), key(b"k", 4, bytes(4))), "key"),
    "key that is not UTF-8": (header(key(b"\xff", 4, bytes(4))), "UTF-8"),
    "value that is not UTF-8": (header(key(b"k", 8, string(b"\xff"))), "UTF-8"),
    "name that is not UTF-8": (header(infos=[info(b"\xff")]), "UTF-8"),
    "key of many lines": (header(key(b"a\nb\x1b[31m" * 400, 13, bytes(8))), "type 13"),
    "name of many lines": (header(ARCHITECTURE, infos=[info(b"a\nb\r\n" * 400)]), "tensor"),
    "unknown value type": (header(key(b"k", 13, bytes(8))), "type 13"),
    "unknown item type": (header(array(13, 1, bytes(8))), "type 13"),
    "nested arrays": (header(array(9, 1, struct.pack("<IQ", 4, 0))), "array"),
    "alignment that is a text": (header(key(b"general.alignment", 8, string(b"32"))), "alignment"),
    "no dimensions": (header(infos=[info(dims=())]), "dimensions"),
    "five dimensions": (header(infos=[info(dims=(2,) * 5)]), "dimensions"),
    "2^31 dimensions": (header(infos=[info(n_dims=2**31)]), "dimensions"),
    "dimension 0": (header(infos=[info(dims=(32, 0))]), "shape"),
    "dimension 2^64 - 1": (header(infos=[info(dims=(2**64 - 1,))]), "ends at"),
    "product overflows to 0": (header(infos=[info(dims=(2**32, 2**32))]), "ends at"),
    "product of four overflows": (header(infos=[info(dims=(2**63,) * 4, kind=8)]), "ends at"),
    "unknown tensor type": (header(infos=[info(kind=99)]), "type 99,"),
    "tensor type 2^32 - 1": (header(infos=[info(kind=2**32 - 1)]), "type 4294967295,"),
    "tensor type that was given up": (header(infos=[info(kind=4)]), "type Q4_2,"),
    "part of a block": (header(infos=[info(dims=(33,), kind=8)]), "blocks"),
    "part of a super-block": (header(infos=[info(dims=(128, 2), kind=12)]), "blocks"),
    "offset outside": (header(infos=[info(offset=4096)]), "ends at"),
    "offset 2^63": (header(infos=[info(offset=2**63)]), "ends at"),
    "offset 2^64 - 1": (header(infos=[info(offset=2**64 - 1)]), "ends at"),
    "misaligned offset": (header(ARCHITECTURE, infos=[info(offset=4)]), "offset|align"),
    "a hole": (header(ARCHITECTURE, infos=[info(offset=32)]), "hole"),
    "overlapping tensors": (header(ARCHITECTURE, infos=[info(), info(b"u")]), "overlap"),
    "repeated tensor": (header(infos=[info(), info(offset=128)]), "twice"),
    "short data": (header(infos=[info()], data=bytes(100)), "ends at"),
    "no data": (header(infos=[info()], data=b""), "ends at"),
    "no architecture": (header(), "architecture"),
    "architecture of another type": (
        header(key(b"general.architecture", 4, bytes(4))),
        "architecture",
    ),
    "another architecture": (header(key(b"general.architecture", 8, string(b"gemma"))), "gemma"),
    "as many texts as are read": (header(array(8, 600_000, bytes(8 * 600_000))), "architecture"),
    "as much text as is read": (
        header(array(8, 600_000, string(b"0123456789abcdefg") * 600_000)),
        "architecture",
    ),
    "more text than is read": (
        header(array(8, 600_000, string(b"0123456789abcdefghi") * 600_000)),
        "can be read",
    ),
    "two lists that are too long together": (
        header(
            array(0, 500_000, bytes(500_000)),
            key(b"b", 9, struct.pack("<IQ", 0, 500_000) + bytes(500_000)),
        ),
        "at most 100000",
    ),
    "as many tensors as are read": (
        header(
            ARCHITECTURE,
            infos=[info(b"%04d" % i, offset=128 * i) for i in range(2000)],
            data=bytes(256_000),
        ),
        "not part",
    ),
    "as many keys as are read": (
        header(*[key(b"%04d" % i, 4, bytes(4)) for i in range(1000)]),
        "architecture",
    ),
    **{f"{n} tensors": (header(n_tensors=n), "at most") for n in HUGE},
    **{f"{n} keys": (header(n_keys=n), "at most") for n in HUGE},
    **{f"key of {n} bytes": (header(struct.pack("<Q", n), n_keys=1), "can be read") for n in HUGE},
    **{f"string of {n}": (header(key(b"k", 8, struct.pack("<Q", n))), "can be read") for n in HUGE},
    **{f"name of {n} bytes": (header(infos=[struct.pack("<Q", n)]), "can be read") for n in HUGE},
    **{f"array of {n} texts": (header(array(8, n)), "at most") for n in HUGE},
    **{f"array of {n} numbers": (header(array(4, n)), "at most") for n in HUGE},
    **{f"array of {n} bytes": (header(array(0, n)), "at most") for n in HUGE},
}


def test_files_that_do_not_fit(tmp_path):
    """All of the above, and some that are cut off."""
    good, broken = write_gguf(tmp_path / "good.gguf", tiny_tensors(Q.Q8_0), BASE), {}
    assert load(good)[1].encode("abcb") == [4, 1]

    def new(name, words) -> Path:
        broken[name] = tmp_path / f"{len(broken)}.gguf", words
        return broken[name][0]

    for name, (change, changes, words) in FIT.items():
        write_case(new(name, words), change, changes)
    for name, (changes, words) in TOKENIZERS.items():
        write_gguf(new(f"tokenizer, {name}", words), tiny_tensors(), tokenizer_changes(changes))
    for name, (content, words) in BROKEN.items():
        new(f"header, {name}", words).write_bytes(content)
    data = good.read_bytes()
    for size in range(0, 3000, 7):
        new(f"cut at {size}", "").write_bytes(data[:size])
    all_refused(good, broken)


def test_cut_off_anywhere(tmp_path):
    """Every byte of the header, then some of the data."""
    path = write_gguf(tmp_path / "tiny.gguf", tiny_tensors(Q.Q8_0), BASE)
    data = path.read_bytes()
    reader = gguf.GGUFReader(path)
    for size in [
        *range(min(t.data_offset for t in reader.tensors)),
        len(data) // 2,
        len(data) - 1024,
    ]:
        path.write_bytes(data[:size])
        refused(path)


def test_a_file_that_shrinks_or_changes_while_it_is_read(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_tensors(Q.Q8_0))
    checkpoint, data = open_gguf(path), path.read_bytes()
    path.write_bytes(data[:-1000])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        checkpoint.tensors["embedding.weight"].read()  # though its bytes are all there
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(CheckpointError, match="changed while it was read"):
        checkpoint.tensors["embedding.weight"].read()
    path.unlink()
    with pytest.raises(OSError):
        checkpoint.tensors["embedding.weight"].read()

"""GGUF files written by us are read by others, number for number; what cannot be written is one
line, and nothing half written.
"""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from helpers import random_ids, table
from test_adapters import made_by_peft
from test_atomic import killed_at

from minillama import CheckpointError, Llama, LlamaConfig, RopeScaling, Tokenizer, cli
from minillama.bpe import train_bpe
from minillama.chat_formats import CHAT_TEMPLATES
from minillama.checkpoints.assemble import Checkpoint
from minillama.checkpoints.gguf import GGUF_PRE_NAMES, open_gguf
from minillama.checkpoints.gguf_quantizers import QUANTIZERS
from minillama.checkpoints.gguf_writer import kind_of, save_gguf, write_gguf_file
from minillama.checkpoints.hugging_face_writer import save_hugging_face
from minillama.checkpoints.names import GGUF, rename
from minillama.checkpoints.tensors import StoredTensor
from minillama.inference.loading import load
from minillama.tokenizer import GPT2_SPLIT, LLAMA3_PATTERN, SMOLLM_SPLIT, llama3_special_names


Q = gguf.GGMLQuantizationType
THEIRS = {ours: name for name, ours in GGUF.items()}
TEXTS = [
    "The lamp of the lighthouse was lit in 1850, 31 years after the 2nd storm.",
    "1850 31x  \n\n lighthouse's ÄÖ 灯台 <|eot_id|> <tool>the</tool>\t\t  end ",
    "",
]


def tokenizer_of(pattern=LLAMA3_PATTERN, whole_chunks=True, merges=False, plain=("<tool>",)):
    """A small vocabulary with Llama 3's control tokens, and added ones that belong to text."""
    vocab = train_bpe(TEXTS[0] * 3 + TEXTS[1], 300)
    names = [*llama3_special_names()[:12], *plain]
    specials = {name: len(vocab) + i for i, name in enumerate(names)}
    pairs = None
    if merges:
        pairs = {}
        for token in sorted(vocab, key=vocab.get):
            for i in range(1, len(token)):
                if token[:i] in vocab and token[i:] in vocab:
                    pairs[token[:i], token[i:]] = len(pairs)
    stop = [specials[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    bos = specials["<|begin_of_text|>"]
    how = dict.fromkeys(plain, False)
    return Tokenizer(vocab, specials, pattern, pairs, whole_chunks, bos, stop[0], stop, how)


def tiny(tied=False, seed=0, **changes) -> Llama:
    """A model that no part is without effect in: widths of 256 divide into every block."""
    sizes = dict(
        dim=256, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, ffn_dim=288, vocab_size=320
    )
    torch.manual_seed(seed)
    model = Llama(LlamaConfig(**sizes | changes, tied_embeddings=tied))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean, std = (1.0, 0.2) if "norm" in name else (0.0, 0.1)
            torch.nn.init.normal_(weight, mean, std)
    return model


def theirs(path) -> tuple[dict, dict]:
    """(keys, tensors) as the gguf package reads them."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    for tensor in reader.tensors:
        assert tensor.data_offset % 32 == 0, tensor.name
    return keys, {tensor.name: tensor for tensor in reader.tensors}


# Blocks


def numbers(count=2048) -> torch.Tensor:
    """Rows of many sizes, of zeros, of equal numbers, and of numbers half way between levels."""
    x = torch.randn(count, 256) * torch.logspace(-5, 3, count)[:, None]
    x[0], x[1, :32], x[2] = 0, 1.5, torch.randint(-3, 4, (256,)).float()
    x[3] = torch.arange(256) / 2 - 64  # many halves
    x[3, ::32] = 127
    return x


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_blocks_are_those_of_the_gguf_package_bit_for_bit(kind):
    x, size = numbers(), gguf.GGML_QUANT_SIZES[Q[kind]][0]
    with np.errstate(all="ignore"):
        want = np.ascontiguousarray(gguf.quantize(x.numpy(), Q[kind])).view(np.uint8)
    got = QUANTIZERS[kind](x.view(-1, size)).numpy()
    np.testing.assert_array_equal(got.ravel(), want.ravel())


def test_q6_k_has_less_error_than_the_obvious_grid_and_is_read_as_meant():
    """The gguf package writes no Q6_K; it reads ours, and the search gains a twentieth or more."""
    x = torch.randn(500, 256)
    back = torch.from_numpy(gguf.dequantize(QUANTIZERS["Q6_K"](x).numpy(), Q.Q6_K))
    blocks = x.view(-1, 16, 16)
    step = blocks.gather(2, blocks.abs().argmax(2, keepdim=True)).squeeze(2) / -32
    d = (step.abs().amax(1, keepdim=True) / 127).half().float()
    steps = (d * (step / d).round())[:, :, None]
    plain = (steps * (blocks / steps).round().clamp(-32, 31)).view(x.shape)
    error, obvious = ((each - x).pow(2).mean().sqrt() for each in (back, plain))
    assert error < 0.95 * obvious and error < 0.02
    assert (QUANTIZERS["Q6_K"](torch.zeros(1, 256)) == torch.tensor(0)).sum() >= 18  # no NaN
    assert not gguf.dequantize(QUANTIZERS["Q6_K"](torch.zeros(1, 256)).numpy(), Q.Q6_K).any()


# Files


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_tensors_as_the_gguf_package_reads_them(tmp_path, kind, tied):
    model, path = tiny(tied), tmp_path / "a.gguf"
    counts = save_gguf(model, tokenizer_of(), path, kind.lower())
    keys, tensors = theirs(path)
    assert path.stat().st_size % 32 == 0 and os.listdir(tmp_path) == ["a.gguf"]
    assert ("output.weight" in tensors) is not tied and len(tensors) == sum(counts.values())
    head = "token_embd.weight" if tied else "output.weight"
    for name, weight in model.named_parameters():
        tensor = tensors[rename(name, THEIRS)]
        wanted = kind if weight.dim() == 2 else "F32"
        if kind.startswith("Q4") and tensor.name == head:
            wanted = "Q6_K"
        if wanted == "Q6_K" and weight.shape[-1] == 288:
            wanted = "Q8_0"
        assert tensor.tensor_type.name == wanted, tensor.name
        size = gguf.GGML_QUANT_SIZES[Q[wanted]][0]
        want = QUANTIZERS[wanted](weight.detach().view(-1, size)).numpy()
        np.testing.assert_array_equal(tensor.data.view(np.uint8).ravel(), want.ravel())
    again, _ = load(path)
    for name, weight in again.named_parameters():
        tensor = tensors[rename(name, THEIRS)]
        np.testing.assert_array_equal(
            weight.detach().numpy().ravel(),
            gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).ravel(),
        )


def test_tensors_whose_sizes_are_no_multiple_of_32_are_padded(tmp_path):
    model = tiny(dim=36, n_heads=2, n_kv_heads=1, head_dim=18, ffn_dim=50)
    save_gguf(model, tokenizer_of(), tmp_path / "a.gguf")
    _, tensors = theirs(tmp_path / "a.gguf")
    for name, weight in model.named_parameters():
        found = tensors[rename(name, THEIRS)].data
        np.testing.assert_array_equal(found, weight.detach().numpy())
    assert any(tensor.n_bytes % 32 for tensor in tensors.values())


def test_a_row_that_no_block_divides_is_in_float16():
    shapes = {
        (256, 256): ["Q6_K", "Q8_0", "Q4_0", "Q4_1"],
        (9, 576): ["Q8_0", "Q8_0", "Q4_0", "Q4_1"],
        (9, 100): ["F16", "F16", "F16", "F16"],
        (256,): ["F32"] * 4,
    }
    for shape, wanted in shapes.items():
        kinds = [
            kind_of("blocks.0.attention.wq.weight", shape, kind, True)
            for kind in ("Q6_K", "Q8_0", "Q4_0", "Q4_1")
        ]
        assert kinds == wanted
    assert kind_of("head.weight", (9, 576), "Q4_0", False) == "Q8_0"
    assert kind_of("embedding.weight", (9, 576), "Q4_0", False) == "Q4_0"


SCALINGS = [
    None,
    RopeScaling(),
    RopeScaling(32.0),
    RopeScaling(8.0, original_max_seq_len=256),
    RopeScaling(16.0, original_max_seq_len=1024),
]


@torch.inference_mode()
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_the_same_logits_after_a_file(tmp_path, scaling):
    theta = 10_000.0 if scaling is None else 500_000.0
    model = tiny(rope_scaling=scaling, rope_theta=theta, max_seq_len=4096)
    save_gguf(model, tokenizer_of(), tmp_path / "a.gguf")
    again, _ = load(tmp_path / "a.gguf")
    tokens = random_ids(600, vocab_size=320)
    assert again.cfg.rope_scaling == scaling
    torch.testing.assert_close(again(tokens), model(tokens), atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("scaling", SCALINGS[:2], ids=str)
def test_logits_as_transformers_reads_the_file(tmp_path, scaling):
    """transformers 5 leaves rope_freqs out, so it is told of the scaling."""
    model = tiny(tied=scaling is None, rope_scaling=scaling, rope_theta=500_000.0)
    save_gguf(model, tokenizer_of(merges=True), tmp_path / "a.gguf", "F32")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32
    )
    assert reference.config.max_position_embeddings == 8192
    if scaling:
        rope = reference.config.rope_parameters | {
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
        reference.config.rope_parameters = rope
        kind = type(reference.model.rotary_emb)
        reference.model.rotary_emb = kind(reference.config)
    tokens = random_ids(300, vocab_size=320)
    want = reference(tokens).logits
    assert (model(tokens) - want).abs().max() <= 2e-5 * want.abs().max()


# Tokenizers


WAYS = [(LLAMA3_PATTERN, True), (LLAMA3_PATTERN, False), (SMOLLM_SPLIT, False), (GPT2_SPLIT, False)]


@pytest.mark.parametrize("merges", [False, True], ids=["ranks", "merges"])
@pytest.mark.parametrize("how", WAYS, ids=["llama 3", "llama 3, merging", "smollm", "gpt-2"])
def test_the_tokenizer_comes_back(tmp_path, how, merges):
    ours, path = tokenizer_of(*how, merges=merges), tmp_path / "a.gguf"
    save_gguf(tiny(), ours, path)
    again = open_gguf(path).tokenizer
    for text in TEXTS:
        for allowed in ((), "all"):
            assert again.encode(text, True, allowed_special=allowed) == ours.encode(
                text, True, allowed_special=allowed
            )
    assert (again.bos_id, again.eos_id, again.stop_ids) == (ours.bos_id, ours.eos_id, ours.stop_ids)
    assert again.plain == ours.plain
    keys, _ = theirs(path)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 320 and tokens[-1] == "[PAD319]" and types[-1] == 5
    assert keys["tokenizer.ggml.pre"] == GGUF_PRE_NAMES[how]
    assert types[ours.specials["<tool>"]] == 4 and types[ours.bos_id] == 3 and types[0] == 1
    assert keys["tokenizer.ggml.bos_token_id"] == ours.bos_id
    assert keys["tokenizer.ggml.eos_token_id"] == ours.specials["<|end_of_text|>"]
    assert keys["tokenizer.ggml.eot_token_id"] == ours.specials["<|eot_id|>"]
    assert keys["tokenizer.ggml.eom_token_id"] == ours.specials["<|eom_id|>"]
    assert keys["tokenizer.chat_template"] == CHAT_TEMPLATES["llama3"]
    assert keys["tokenizer.ggml.add_bos_token"] is True and keys["general.architecture"] == "llama"


def test_transformers_reads_the_tokenizer(tmp_path):
    ours = tokenizer_of(merges=True, plain=())
    save_gguf(tiny(), ours, tmp_path / "a.gguf")
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    for text in (TEXTS[0], "1850 31x  \n\n lighthouse's ÄÖ 灯台"):
        assert reference.encode(text, add_special_tokens=False) == ours.encode(text)
    assert reference.chat_template == CHAT_TEMPLATES["llama3"]


@pytest.mark.weights
def test_llama_3_vocabulary(tmp_path, llama3_vocabulary):
    ours = Tokenizer.from_file(llama3_vocabulary)
    model = Llama(LlamaConfig(32, 1, 1, 1, 32, 32, 128_256, tied_embeddings=True))
    save_gguf(model, ours, tmp_path / "a.gguf", "Q8_0")
    again = open_gguf(tmp_path / "a.gguf").tokenizer
    assert again.specials == ours.specials and again.stop_ids == ours.stop_ids
    assert len(again.merges) == 280_147  # as many as in Llama 3's published tokenizer.json
    for text in (*TEXTS, "Im März schneite es; маяк стоял у моря. 12345"):
        assert again.encode(text, bos=True) == ours.encode(text, bos=True)


@pytest.mark.weights
def test_the_real_file_written_again(tmp_path, ours, smollm2_path, smollm2_gguf):
    """In its own types the tensors are the same bytes, copied or quantized anew."""
    before = {tensor.name: tensor for tensor in smollm2_gguf.tensors}
    write_gguf_file(open_gguf(smollm2_path), tmp_path / "copied.gguf", "Q4_1")
    save_gguf(*ours, tmp_path / "anew.gguf", "Q4_1")
    for name in ("copied", "anew"):
        keys, tensors = theirs(tmp_path / f"{name}.gguf")
        assert tensors.keys() == before.keys()
        same = 0
        for each, tensor in tensors.items():
            assert tensor.tensor_type == before[each].tensor_type
            same += np.array_equal(tensor.data, before[each].data)
        assert same == len(before) or (name == "anew" and same > 0.3 * len(before))
        for key, field in smollm2_gguf.fields.items():
            if key.startswith(("llama.", "tokenizer.")) and key in keys:
                want = field.contents()
                assert keys[key] == (want if isinstance(want, str | list) else pytest.approx(want))


# What cannot be written


def test_what_cannot_be_written_is_one_line(tmp_path):
    model, good = tiny(), tokenizer_of()
    huge, nan, wide = tiny(), tiny(), tiny()
    with torch.no_grad():
        huge.norm.weight[0], nan.blocks[0].attention.wq.weight[0, 0] = 1e30, torch.nan
        wide.blocks[0].attention.wq.weight[0, 0] = 1e6
    alike = tokenizer_of(plain=("a",))
    whole = Tokenizer(good.vocab, good.specials, r"[\s\S]+")
    odd = tiny(rope_scaling=RopeScaling(8.0, 2.0, 3.0))
    cases = {
        "no tokenizer": (model, None, "F32", "no tokenizer"),
        "a kind": (model, good, "Q5_0", "written as F32, .*, not Q5_0"),
        "no name for the cuts": (model, whole, "F32", "cuts text"),
        "spelled alike": (model, alike, "F32", "spelled alike"),
        "another scaling": (odd, good, "F32", "GGUF cannot say"),
        "not a number": (nan, good, "F32", "blk.0.attn_q.weight has numbers"),
        "too large": (wide, good, "Q8_0", "cannot hold: try bf16"),
        "more tokens than rows": (tiny(vocab_size=300), good, "F32", "the embedding"),
    }
    with table() as row:
        for name, (of, tokenizer, kind, match) in cases.items():
            with row(name):
                with pytest.raises(CheckpointError, match=match) as caught:
                    save_gguf(of, tokenizer, tmp_path / "a.gguf", kind)
                assert "\n" not in str(caught.value)
                assert os.listdir(tmp_path) == []
    save_gguf(huge, good, tmp_path / "a.gguf", "Q8_0")  # norms are in float32


def test_a_checkpoint_that_is_no_llama(tmp_path):
    model = tiny()
    found = {
        n: StoredTensor(tuple(w.shape), partial(torch.clone, w))
        for n, w in model.named_parameters()
    }
    cases = {
        "missing": found | {"norm.weight": None},
        "another shape": found | {"norm.weight": StoredTensor((9,), lambda: torch.ones(9))},
        "too many": found | {"bias": StoredTensor((9,), lambda: torch.ones(9))},
    }
    for tensors in cases.values():
        tensors = {name: tensor for name, tensor in tensors.items() if tensor}
        with pytest.raises(CheckpointError, match="missing, too many or of another shape"):
            write_gguf_file(Checkpoint(model.cfg, tensors, tokenizer_of()), tmp_path / "a", "F32")
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_hugging_face(tiny(), tokenizer_of(), folder / "model")
    save_hugging_face(tiny(), None, folder / "ids")
    return folder


def convert(folder, *argv, monkeypatch, capsys):
    """(exit code, standard output, standard error) of a convert in that folder."""
    monkeypatch.chdir(folder)
    code = cli.main(["convert", *map(str, argv)])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_the_command(models, tmp_path, monkeypatch, capsys):
    run = partial(convert, models, monkeypatch=monkeypatch, capsys=capsys)
    out = tmp_path / "out.gguf"
    code, printed, errors = run("model", out, "--format", "gguf", "--dtype", "q6_k")
    assert (code, errors) == (0, "") and printed == (
        f"{out}: {out.stat().st_size:,} bytes, 14 tensors in Q6_K, 5 tensors in F32, "
        "2 tensors in Q8_0, since not all rows divide into blocks\n"
    )
    code, printed, _ = run(out, tmp_path / "again.gguf", "--format", "gguf", "--dtype", "q6_k")
    assert code == 0 and out.read_bytes() == (tmp_path / "again.gguf").read_bytes()
    before = out.read_bytes()
    cases = {
        "exists": ("model", out, "--format", "gguf"),
        "overwrite its source": (out, out, "--format", "gguf", "--force"),
        "overwrite": ("model", "model/model.safetensors", "--format", "gguf", "--force"),
        "is a folder": ("model", tmp_path, "--format", "gguf"),
        "no tokenizer": ("ids", tmp_path / "new.gguf", "--format", "gguf"),
        "goes with --format gguf": ("model", tmp_path / "new", "--dtype", "q8_0"),
        "add --format gguf": ("model", tmp_path / "new.gguf"),
        "cannot be written": ("model", out / "in.gguf", "--format", "gguf"),
        "neither a .gguf file": (tmp_path, tmp_path / "new.gguf", "--format", "gguf"),
    }
    with table() as row:
        for match, argv in cases.items():
            with row(match):
                code, printed, errors = run(*argv)
                assert (code, printed, errors.count("\n")) == (2, "", 1) and match in errors
                assert sorted(os.listdir(tmp_path)) == ["again.gguf", "out.gguf"]
                assert out.read_bytes() == before
    assert run("model", out, "--format", "gguf", "--force")[0] == 0
    assert out.read_bytes() != before and sorted(os.listdir(tmp_path))[-1] == "out.gguf"


@torch.inference_mode()
def test_an_adapter_is_merged_first(tmp_path, monkeypatch, capsys):
    model = tiny(ffn_dim=256)
    save_hugging_face(model, tokenizer_of(), tmp_path / "model")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.enable_grad():
        changed = made_by_peft(reference, tmp_path / "adapter")
    argv = "model out.gguf --format gguf --dtype f32 --adapter adapter".split()
    assert convert(tmp_path, *argv, monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    tokens = random_ids(40, vocab_size=320)
    want = changed(tokens).logits
    got = load(tmp_path / "out.gguf")[0](tokens)
    assert (got - want).abs().max() <= 5e-5 * want.abs().max()
    assert (model(tokens) - want).abs().max() > 0.05 * want.abs().max()


# All or nothing


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits of file sizes are Unix's")
def test_a_full_disk_leaves_nothing(tmp_path):
    import resource

    save_gguf(tiny(), tokenizer_of(), tmp_path / "a.gguf")
    before = (tmp_path / "a.gguf").read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, old[1]))
        with pytest.raises(CheckpointError, match="cannot be written: File too large"):
            save_gguf(tiny(seed=1), tokenizer_of(), tmp_path / "a.gguf", force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert os.listdir(tmp_path) == ["a.gguf"] and (tmp_path / "a.gguf").read_bytes() == before


def test_a_disk_that_is_too_small_is_noticed_first(tmp_path, monkeypatch):
    usage = type("", (), {"free": 1000})
    monkeypatch.setattr("minillama.checkpoints.gguf_writer.shutil.disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="needs 4,.* bytes, and 1,000 are free"):
        save_gguf(tiny(), tokenizer_of(), tmp_path / "a.gguf")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot copy a process")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_killed_at_any_moment(tmp_path):
    """The name holds the old file or the new one, whole, whenever the writer is killed."""
    models = {name: tiny(seed=seed) for seed, name in enumerate(("old", "new"))}
    for name, model in models.items():
        save_gguf(model, tokenizer_of(), tmp_path / f"{name}.gguf")
    old, new = ((tmp_path / f"{name}.gguf").read_bytes() for name in models)
    target, seen, tokenizer = tmp_path / "x" / "a.gguf", set(), tokenizer_of()
    target.parent.mkdir()
    step, done = 0, False
    while not done:
        target.write_bytes(old)
        done = killed_at(step, partial(save_gguf, models["new"], tokenizer, target, force=True))
        assert target.read_bytes() in (old, new)
        seen.add((target.read_bytes() == new, done))
        step += 1
    assert seen == {(False, False), (True, False), (True, True)}


MEMORY = """
import sys
from pathlib import Path
from open_all import memory
from minillama.checkpoints.formats import open_checkpoint
from minillama.checkpoints.gguf_writer import write_gguf_file
from minillama.checkpoints.tensors import StoredTensor
import torch
checkpoint = open_checkpoint(Path(sys.argv[1]))
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
write_gguf_file(checkpoint, sys.argv[2], sys.argv[3])
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux does"
)
@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
def test_one_tensor_at_a_time_is_in_memory(tmp_path, kind):
    """A model of 172 MB, of which the largest tensor has 25 MB."""
    sizes = dict(dim=1024, n_layers=2, n_heads=8, n_kv_heads=2, head_dim=128, ffn_dim=4096)
    model = Llama(LlamaConfig(**sizes, vocab_size=6144))
    save_hugging_face(model, tokenizer_of(), tmp_path / "model")
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    del model
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "model"), str(tmp_path / "a.gguf"), kind],
        capture_output=True,
        encoding="utf-8",
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert size > 170e6 and int(done.stdout) < 70e6

"""Meta's layout: logits as by Meta's code and transformers, bit-exact round trips, folders that do
not add up.
"""

import json
import math
import re
import shutil
import weakref
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PLAIN, SCALED, all_refused, edit_json, random_ids, tiny_hugging_face
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reference import maker

from minillama import CheckpointError, Llama, LlamaConfig, RopeScaling, Tokenizer
from minillama.checkpoints.meta import join, open_meta
from minillama.checkpoints.meta_writer import save_meta
from minillama.checkpoints.names import META
from minillama.checkpoints.tensors import StoredTensor
from minillama.inference.loading import load


# Cutting by hand: which dimension of which of Meta's matrices, as the layers in its model.py are
# named

# outputs are divided: rows of the weight
COLUMN_PARALLEL = ("wq", "wk", "wv", "w1", "w3", "output")
ROW_PARALLEL = ("wo", "w2")  # inputs are divided: columns of the weight


def cut(
    name: str, weight: np.ndarray, rank: int, ranks: int, kv_heads: int, embedding_rows=True
) -> np.ndarray:
    """One rank's piece of one of Meta's tensors, by slices."""
    kind = name.split(".")[-2]
    if kind in ("wk", "wv") and ranks > kv_heads:
        rank, ranks = rank // (ranks // kv_heads), kv_heads
    rows, columns = weight.shape[0] // ranks, weight.shape[-1] // ranks
    if kind in COLUMN_PARALLEL or (kind == "tok_embeddings" and embedding_rows):
        return weight[rank * rows : (rank + 1) * rows].copy()
    if kind in ROW_PARALLEL or kind == "tok_embeddings":
        return weight[:, rank * columns : (rank + 1) * columns].copy()
    assert "norm" in kind
    return weight.copy()


def write_meta(folder, weights: dict, params: dict, ranks=1, kv_heads=None, embedding_rows=True):
    """A folder in Meta's layout from NumPy weights under Meta's names, without anything of
    minillama.
    """
    folder.mkdir(exist_ok=True, parents=True)
    kv = kv_heads or params.get("n_kv_heads") or params["n_heads"]
    for rank in range(ranks):
        pieces = {
            n: torch.from_numpy(cut(n, w, rank, ranks, kv, embedding_rows))
            for n, w in weights.items()
        }
        torch.save(pieces, folder / f"consolidated.{rank:02}.pth")
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    return folder


# The tiny model whose logits Meta's code computed

GOLDEN = maker().TINY | {"use_scaled_rope": True, "rope_theta": 500_000.0}


def meta_shapes(dim, n_layers, n_heads, n_kv_heads, ffn, vocab) -> dict[str, tuple]:
    kv = dim // n_heads * n_kv_heads
    block = {
        "attention.wq": (dim, dim),
        "attention.wk": (kv, dim),
        "attention.wv": (kv, dim),
        "attention.wo": (dim, dim),
    }
    block |= {
        "feed_forward.w1": (ffn, dim),
        "feed_forward.w2": (dim, ffn),
        "feed_forward.w3": (ffn, dim),
    }
    block |= {"attention_norm": (dim,), "ffn_norm": (dim,)}
    shapes = {
        f"layers.{n}.{name}.weight": shape for n in range(n_layers) for name, shape in block.items()
    }
    return shapes | {
        "tok_embeddings.weight": (vocab, dim),
        "norm.weight": (dim,),
        "output.weight": (vocab, dim),
    }


@pytest.fixture(scope="module")
def golden_weights():
    return maker().tiny_weights(meta_shapes(64, 2, 4, 2, 192, 256))


@pytest.mark.parametrize(
    "ranks, embedding_rows, changes",
    [
        (1, True, {}),
        (2, True, {}),
        (2, False, {"vocab_size": -1}),
        (4, True, {}),
        (4, True, {"n_kv_heads": 4}),
        (4, False, {"n_kv_heads": 4}),
    ],
)
@torch.inference_mode()
def test_logits_as_meta(tmp_path, golden, golden_weights, ranks, embedding_rows, changes):
    """Cut in all of Meta's ways, for four ranks with each of the two kv heads twice, counted once
    or as stored.
    """
    write_meta(tmp_path / "x", golden_weights, GOLDEN | changes, ranks, 2, embedding_rows)
    model, tokenizer = load(tmp_path / "x")
    assert tokenizer is None
    assert (model.cfg.n_kv_heads, model.cfg.ffn_dim, model.cfg.vocab_size) == (2, 192, 256)
    logits = model(torch.from_numpy(maker().tiny_tokens()[:32])[None])[0]
    np.testing.assert_allclose(logits, golden["first"], atol=1e-5, rtol=0)


def from_hugging_face(reference) -> dict[str, np.ndarray]:
    """transformers' weights under Meta's names; rows of q and k back from halves to neighbours, one
    by one.
    """
    names = {
        "model.embed_tokens": "tok_embeddings",
        "model.norm": "norm",
        "lm_head": "output",
        "model.layers": "layers",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    weights = {}
    for name, tensor in reference.state_dict().items():
        weight, head_dim = tensor.numpy(), reference.config.head_dim
        if "q_proj" in name or "k_proj" in name:
            row = np.arange(len(weight))
            head, place = row // head_dim, row % head_dim
            weight = weight[head * head_dim + place // 2 + (place % 2) * (head_dim // 2)]
        for theirs, metas in names.items():
            name = name.replace(theirs, metas)
        weights[name] = weight
    return weights


@pytest.mark.parametrize("kv_heads, ranks", [(4, 1), (4, 4), (2, 2), (2, 4), (1, 2)])
@pytest.mark.parametrize("rope", [PLAIN, SCALED], ids=["plain", "scaled"])
@torch.inference_mode()
def test_logits_as_transformers(tmp_path, rope, kv_heads, ranks):
    """Llama 2's theta (not in the file) and Llama 3.1's scaling; as many kv heads as heads, or
    fewer.
    """
    reference = tiny_hugging_face(rope=rope, num_key_value_heads=kv_heads)
    params = {
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "multiple_of": 32,
        "ffn_dim_multiplier": 0.5,
        "norm_eps": 1e-5,
    }
    params |= {"n_kv_heads": kv_heads} if kv_heads < 4 else {"vocab_size": -1}
    params |= {"use_scaled_rope": True, "rope_theta": 500_000.0} if rope is SCALED else {}
    model, _ = load(
        write_meta(tmp_path / "x", from_hugging_face(reference), params, ranks, kv_heads)
    )
    tokens = random_ids(40)
    torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=1e-5, rtol=0)
    assert model.cfg.max_seq_len == (131_072 if rope is SCALED else 4096)


# Writing


def random_model(dtype=torch.float32, seed=0, **changes) -> Llama:
    sizes = dict(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        vocab_size=64,
        max_seq_len=8192,
    )
    torch.manual_seed(seed)
    model = Llama(LlamaConfig(**sizes | changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.to(dtype).eval()


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.sampled_from([1, 2, 4]), kv_heads=st.sampled_from([1, 2, 4]), tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), width=st.integers(1, 60),
    factor=st.sampled_from([None, 8.0, 32.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_round_trips_are_exact(tmp_path_factory, ranks, kv_heads, tied, dtype, width, factor, seed):
    """Any width of the feed-forward layer, tied or not; the files hold what a knife by hand cuts,
    and no more.
    """
    scaling, context = (RopeScaling(factor), 131_072) if factor else (None, 8192)
    changes = dict(
        n_kv_heads=kv_heads,
        tied_embeddings=tied,
        ffn_dim=4 * width,
        rope_scaling=scaling,
        max_seq_len=context,
    )
    model = random_model(dtype, seed, **changes)
    folder = tmp_path_factory.mktemp("meta") / "x"
    save_meta(model, None, folder, ranks)
    again, _ = load(folder, dtype=dtype)
    assert again.cfg == model.cfg
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    check_pieces(folder, before, ranks, kv_heads)


def check_pieces(folder, state, ranks, kv_heads):
    theirs, expected = {ours: name for name, ours in META.items()}, {}
    for name, weight in state.items():
        number = re.search(r"\d", name)
        pattern = theirs[re.sub(r"\.\d\.", ".N.", name)]
        expected[pattern.replace("N", number[0]) if number else pattern] = weight
    files = sorted(folder.glob("*.pth"))
    assert [path.name for path in files] == [f"consolidated.{rank:02}.pth" for rank in range(ranks)]
    for rank, path in enumerate(files):
        pieces = torch.load(path, weights_only=True)
        assert pieces.keys() == expected.keys()
        for name, weight in expected.items():
            piece = torch.from_numpy(cut(name, weight.float().numpy(), rank, ranks, kv_heads))
            assert (
                torch.equal(pieces[name].float(), piece) and pieces[name].dtype == weight.dtype
            ), name
        # a tied head counts once
        numbers = {tensor.data_ptr(): tensor.nbytes for tensor in pieces.values()}
        assert path.stat().st_size < sum(numbers.values()) + 600 * len(pieces) + 2000


def test_meta_params_of_a_saved_model(tmp_path):
    """The keys of Meta's files, the width by its rule; nothing that its code would stumble over."""
    save_meta(random_model(rope_scaling=RopeScaling()), None, tmp_path / "x", 4)
    params = json.loads((tmp_path / "x" / "params.json").read_text(encoding="utf-8"))
    assert params.keys() == {
        "dim",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "vocab_size",
        "multiple_of",
        "ffn_dim_multiplier",
        "norm_eps",
        "rope_theta",
        "use_scaled_rope",
        "rope_scaling_factor",
    }
    assert params["n_kv_heads"] == 4  # Meta's layers need one per rank
    width = int(params["ffn_dim_multiplier"] * int(2 * (4 * 32) / 3))
    assert params["multiple_of"] * math.ceil(width / params["multiple_of"]) == 48


UNWRITABLE = {
    "another head width": (dict(head_dim=16), 1, "head_dim"),
    "another scaling": (dict(rope_scaling=RopeScaling(8.0, 2.0, 4.0)), 1, "rope_scaling"),
    "three ranks": ({}, 3, "3 equal parts"),
    "no rank": ({}, 0, "0 equal parts"),
    "more ranks than heads": ({}, 8, "8 equal parts"),
    "an odd vocabulary": (dict(vocab_size=65), 2, "2 equal parts"),
    "an odd width": (dict(ffn_dim=49), 2, "2 equal parts"),
}


@pytest.mark.parametrize("changes, ranks, message", UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_what_the_layout_cannot_hold(tmp_path, changes, ranks, message):
    with pytest.raises(CheckpointError, match=message):
        save_meta(random_model(**changes), None, tmp_path / "x", ranks)
    assert not list(tmp_path.iterdir())


def test_a_quantized_model_is_not_written(tmp_path):
    model = random_model()
    model.blocks[0].attention.wq = torch.nn.Sequential(torch.nn.Linear(32, 32))
    with pytest.raises(CheckpointError, match="not part of a Llama"):
        save_meta(model, None, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_model_in_the_place_of_another(tmp_path):
    save_meta(random_model(seed=1), None, tmp_path / "x", 4)
    save_meta(model := random_model(seed=2), None, tmp_path / "x", 2)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
        "consolidated.00.pth", "consolidated.01.pth", "params.json",
    ]  # fmt: skip
    assert torch.equal(load(tmp_path / "x")[0].norm.weight, model.norm.weight)


@pytest.mark.weights
def test_the_tokenizer_goes_along(tmp_path, llama3_vocabulary):
    tokenizer = Tokenizer.from_file(llama3_vocabulary)
    model = random_model(vocab_size=128_256)
    save_meta(model, tokenizer, tmp_path / "x", 2)
    assert (tmp_path / "x" / "tokenizer.model").read_bytes() == llama3_vocabulary.read_bytes()
    assert load(tmp_path / "x")[1].encode("Hello World!") == [9906, 4435, 0]


@pytest.mark.weights
def test_another_tokenizer_is_not_written(tmp_path, ours):
    with pytest.raises(CheckpointError, match="Llama 3's kind"):
        save_meta(random_model(), ours[1], tmp_path / "x")
    assert not list(tmp_path.iterdir())


# What the published models' files say

META_8B = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128_256,
    "ffn_dim_multiplier": 1.3,
}
META_8B |= {"multiple_of": 1024, "norm_eps": 1e-05, "rope_theta": 500_000.0}
SCALED_70B = META_8B | {
    "dim": 8192,
    "n_layers": 80,
    "n_heads": 64,
    "multiple_of": 4096,
    "use_scaled_rope": True,
}
SCALED_405B = SCALED_70B | {
    "dim": 16_384,
    "n_layers": 126,
    "n_heads": 128,
    "ffn_dim_multiplier": 1.2,
}
META_1B = META_8B | {
    "dim": 2048,
    "n_layers": 16,
    "ffn_dim_multiplier": 1.5,
    "multiple_of": 256,
    "use_scaled_rope": True,
}
META_7B = {
    "dim": 4096,
    "multiple_of": 256,
    "n_heads": 32,
    "n_layers": 32,
    "norm_eps": 1e-05,
    "vocab_size": -1,
}
PUBLISHED = {  # params.json, ranks, tied; the cfg that must come out
    "3.1 8B": (META_8B | {"use_scaled_rope": True}, 1, False, LlamaConfig.named("llama-3.1-8b")),
    "3.1 70B": (SCALED_70B, 8, False, LlamaConfig.named("llama-3.1-70b")),
    "3.1 405B": (SCALED_405B, 8, False, LlamaConfig.named("llama-3.1-405b")),
    "3.1 405B, 16 files": (SCALED_405B, 16, False, LlamaConfig.named("llama-3.1-405b")),
    "3.1 405B, 16 files and heads": (
        SCALED_405B | {"n_kv_heads": 16},
        16,
        False,
        LlamaConfig.named("llama-3.1-405b"),
    ),
    "3 8B": (META_8B, 1, False, LlamaConfig(4096, 32, 32, 8, 128, 14_336, 128_256)),
    "3.2 1B": (
        META_1B,
        1,
        True,
        LlamaConfig(
            2048, 16, 32, 8, 64, 8192, 128_256, 1e-5, 500_000.0, RopeScaling(32.0), 131_072, True
        ),
    ),
    "2 7B": (
        META_7B,
        1,
        False,
        LlamaConfig(4096, 32, 32, 32, 128, 11_008, 32_000, 1e-5, 10_000.0, None, 4096),
    ),
}


def empty_piece(name: str, shape: tuple, rank: int, ranks: int, kv_heads: int) -> StoredTensor:
    """A tensor of the shape of one rank's piece; its numbers say which kv head a rank has, and take
    no memory.
    """
    kind, shape = name.split(".")[-2], list(shape)
    parts = kv_heads if kind in ("wk", "wv") and ranks > kv_heads else ranks
    if len(shape) == 2:
        shape[kind in ROW_PARALLEL] //= parts
    head = torch.tensor(float(rank * parts // ranks), dtype=torch.bfloat16)
    return StoredTensor(
        tuple(shape), lambda: head.expand(shape), "BF16", lambda at, end: torch.tensor([len(name)])
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(tmp_path, monkeypatch, name):
    """Files of the real shapes with nothing in them: every tensor gets the shape that the model
    wants.
    """
    params, ranks, tied, cfg = PUBLISHED[name]
    shapes = meta_shapes(
        cfg.dim, cfg.n_layers, cfg.n_heads, cfg.n_kv_heads, cfg.ffn_dim, cfg.vocab_size
    )

    def open_nothing(path):
        names = [name for name in shapes if not (tied and name == "output.weight")]
        return {
            n: empty_piece(n, shapes[n], int(path.name.split(".")[1]), ranks, cfg.n_kv_heads)
            for n in names
        }

    monkeypatch.setattr("minillama.checkpoints.meta.open_pth", open_nothing)
    (tmp_path / "params.json").write_text(json.dumps(params), encoding="utf-8")
    for rank in range(ranks):
        (tmp_path / f"consolidated.{rank:02}.pth").touch()
    checkpoint = open_meta(tmp_path)
    assert checkpoint.cfg == cfg
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in Llama(cfg).named_parameters()}
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == expected


def test_a_tied_head_stored_twice(tmp_path):
    """As Llama 3.2's small models have it: the same numbers in a storage of their own."""
    model = random_model(tied_embeddings=True, rope_scaling=RopeScaling(32.0), max_seq_len=131_072)
    save_meta(model, None, tmp_path / "x")
    path = tmp_path / "x" / "consolidated.00.pth"
    tensors = torch.load(path, weights_only=True)
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, path)
    edit_json(tmp_path / "x" / "params.json", lambda params: params.pop("rope_scaling_factor"))
    assert load(tmp_path / "x")[0].cfg == model.cfg
    tensors["output.weight"] = tensors["output.weight"].clone()
    tensors["output.weight"][-1, -1] += 1  # the last number only
    torch.save(tensors, path)
    cfg = load(tmp_path / "x")[0].cfg
    assert not cfg.tied_embeddings and cfg.rope_scaling == RopeScaling(8.0)


def test_a_head_that_is_not_stored(tmp_path):
    save_meta(random_model(tied_embeddings=True), None, tmp_path / "x")
    path = tmp_path / "x" / "consolidated.00.pth"
    tensors = torch.load(path, weights_only=True)
    del tensors["output.weight"]
    torch.save(tensors, path)
    assert load(tmp_path / "x")[0].cfg.tied_embeddings


def test_both_descriptions_in_one_folder(tmp_path):
    """Hugging Face's counts, as in its own repositories of Llama, which have Meta's in a folder
    below.
    """
    reference = tiny_hugging_face()
    reference.save_pretrained(tmp_path)
    save_meta(random_model(), None, tmp_path / "original")
    for path in (tmp_path / "original").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert load(tmp_path)[0].cfg.dim == 64
    assert load(tmp_path / "original")[0].cfg.dim == 32


def test_a_folder_in_the_cache_of_hugging_face(tmp_path):
    """snapshots/COMMIT/original holds links to blobs, three folders up."""
    save_meta(model := random_model(), None, tmp_path / "x", 2)
    (tmp_path / "blobs").mkdir()
    (original := tmp_path / "snapshots" / "abc" / "original").mkdir(parents=True)
    for i, path in enumerate((tmp_path / "x").iterdir()):
        path.rename(tmp_path / "blobs" / str(i))
        (original / path.name).symlink_to(f"../../../blobs/{i}")
    assert torch.equal(load(original)[0].norm.weight, model.norm.weight)


def test_the_tokenizer_of_llama_2_is_left_alone(tmp_path):
    save_meta(random_model(), None, tmp_path / "x")
    (tmp_path / "x" / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    assert load(tmp_path / "x")[1] is None


@pytest.mark.parametrize("along", [0, 1])
def test_one_piece_in_memory_at_a_time(along):
    """When a piece is read, the one before it is gone."""
    alive, whole = [], torch.randn(8, 12)

    def piece_of(part):
        def read():
            assert not any(piece() is not None for piece in alive)
            piece = part.clone()
            alive.append(weakref.ref(piece))
            return piece

        return StoredTensor(tuple(part.shape), read, "F32")

    joined = join("x", [piece_of(part) for part in whole.chunk(4, along)], along)
    assert torch.equal(joined.read(), whole) and len(alive) == 4


# Folders that do not add up


def lost(rank):
    return lambda folder: (folder / f"consolidated.{rank:02}.pth").unlink()


def params(**changes):
    return lambda folder: edit_json(folder / "params.json", lambda value: value.update(changes))


def without(*keys):
    return lambda folder: edit_json(
        folder / "params.json", lambda value: [value.pop(key) for key in keys]
    )


def tensors(change, rank=1):
    """Change what one rank's file holds."""

    def apply(folder):
        path = folder / f"consolidated.{rank:02}.pth"
        held = torch.load(path, weights_only=True)
        change(held)
        torch.save(held, path)

    return apply


def everywhere(change):
    return lambda folder: [tensors(change, rank)(folder) for rank in range(4)]


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


WQ, WK, NORM = "layers.0.attention.wq.weight", "layers.0.attention.wk.weight", "norm.weight"
FOLDERS = {  # four ranks of random_model(), kv heads twice
    "no params.json": (lambda folder: (folder / "params.json").unlink(), "params.json"),
    "params.json that is none": (content("params.json", b"{"), "JSON"),
    "params.json that is a list": (content("params.json", b"[1]"), "object"),
    "params.json with a key twice": (content("params.json", b'{"dim": 1, "dim": 2}'), "repeated"),
    "params.json that is a folder": (
        lambda folder: ((folder / "params.json").unlink(), (folder / "params.json").mkdir()),
        "params.json",
    ),
    "no dim": (without("dim"), "dim"),
    "no layers": (without("n_layers"), "n_layers"),
    "no heads": (without("n_heads"), "n_heads"),
    "dim 0": (params(dim=0), "dim"),
    "dim true": (params(dim=True), "dim"),
    "dim a text": (params(dim="32"), "dim"),
    "dim a fraction": (params(dim=32.0), "dim"),
    "dim negative": (params(dim=-32), "dim"),
    "dim huge": (params(dim=2**62), "dim"),
    "dim doubled": (params(dim=64), "shape|matrix|embedding"),
    "heads that do not divide": (params(n_heads=5), "divide"),
    "no heads at all": (params(n_heads=0), "n_heads"),
    "more heads than dim": (params(n_heads=64), "divide"),
    "odd head width": (params(dim=28), "even|shape|embedding"),
    "other kv heads": (params(n_kv_heads=3), "evenly"),
    "kv heads true": (params(n_kv_heads=True), "n_kv_heads"),
    "kv heads negative": (params(n_kv_heads=-2), "n_kv_heads"),
    "one kv head": (params(n_kv_heads=1), "copies are not equal|shape"),
    "one layer more": (params(n_layers=3), "missing|layers"),
    "one layer less": (params(n_layers=1), "too many|layers"),
    "very many layers": (params(n_layers=10**9), "layers"),
    "layers true": (params(n_layers=True), "n_layers"),
    "another vocabulary": (params(vocab_size=65), "vocab_size"),
    "vocabulary true": (params(vocab_size=True), "vocab_size"),
    "multiple 0": (params(multiple_of=0), "multiple_of"),
    "multiple true": (params(multiple_of=True), "multiple_of"),
    "multiple huge": (params(multiple_of=10**30), "multiple_of"),
    "multiple large": (params(multiple_of=2**30), "shape"),
    "multiplier true": (params(ffn_dim_multiplier=True), "ffn_dim_multiplier"),
    "multiplier a text": (params(ffn_dim_multiplier="1.3"), "malformed"),
    "multiplier 0": (params(ffn_dim_multiplier=0), "ffn_dim"),
    "multiplier negative": (params(ffn_dim_multiplier=-1.0), "ffn_dim"),
    "multiplier infinite": (params(ffn_dim_multiplier=math.inf), "malformed"),
    "multiplier not a number": (params(ffn_dim_multiplier=math.nan), "malformed"),
    "multiplier huge": (params(ffn_dim_multiplier=1e308), "shape|malformed"),
    "eps 0": (params(norm_eps=0), "norm_eps"),
    "eps infinite": (params(norm_eps=math.inf), "norm_eps"),
    "eps true": (params(norm_eps=True), "norm_eps"),
    "theta negative": (params(rope_theta=-1.0), "rope_theta"),
    "theta a text": (params(rope_theta="x"), "rope_theta"),
    "scaled 1": (params(use_scaled_rope=1), "use_scaled_rope"),
    "scaled by a text": (params(use_scaled_rope=True, rope_scaling_factor="8"), "factor"),
    "scaled by infinity": (params(use_scaled_rope=True, rope_scaling_factor=math.inf), "factor"),
    "an unknown key": (params(quantization_args={"scheme": "int4"}), "quantization_args"),
    "an unknown scaling": (params(rope_high_freq_factor=1), "rope_high_freq_factor"),
    "no files": (
        lambda folder: [lost(rank)(folder) for rank in range(4)],
        "consolidated.00.pth is missing",
    ),
    "first file lost": (lost(0), "00.pth is missing"),
    "second file lost": (lost(1), "01.pth is missing"),
    "last file lost": (lost(3), "missing"),
    "last two files lost": (lambda folder: (lost(2)(folder), lost(3)(folder)), "missing"),
    "a file with another number": (
        lambda folder: (folder / "consolidated.03.pth").rename(folder / "consolidated.04.pth"),
        "03.pth is missing",
    ),
    "a file from elsewhere": (
        lambda folder: (
            lost(1)(folder),
            (folder / "consolidated.01.pth").symlink_to("/etc/passwd"),
        ),
        "inside",
    ),
    "a file that is a folder": (
        lambda folder: (lost(1)(folder), (folder / "consolidated.01.pth").mkdir()),
        "No such file",
    ),
    "an empty file": (content("consolidated.01.pth", b""), "empty"),
    "a norm of another model": (tensors(lambda t: t[NORM].add_(1)), "not the same"),
    "copies that differ": (tensors(lambda t: t[WK.replace("0", "1")].add_(1)), "not equal"),
    "copies of the first layer that differ": (
        lambda folder: (params(n_kv_heads=2)(folder), tensors(lambda t: t[WK].add_(1))(folder)),
        "not equal",
    ),
    "a tensor missing in one file": (tensors(lambda t: t.pop(WQ)), "only in one"),
    "a tensor too many in one file": (tensors(lambda t: t.update(x=torch.ones(2))), "only in one"),
    "a tensor missing in all": (everywhere(lambda t: t.pop(WQ)), "missing"),
    "no embedding": (everywhere(lambda t: t.pop("tok_embeddings.weight")), "embedding"),
    "no wk": (everywhere(lambda t: t.pop(WK)), "wk"),
    "an embedding of one dimension": (
        everywhere(lambda t: t.update({"tok_embeddings.weight": torch.ones(32)})),
        "matrix",
    ),
    "a wk of one dimension": (everywhere(lambda t: t.update({WK: torch.ones(32)})), "matrix"),
    "a norm of two dimensions": (
        everywhere(lambda t: t.update({NORM: torch.ones(1, 32)})),
        "shape",
    ),
    "a wk of other rows": (everywhere(lambda t: t.update({WK: torch.ones(9, 32)})), "shape"),
    "one wv of other rows": (
        everywhere(
            lambda t: t.update({WK.replace("0", "1").replace("wk", "wv"): torch.ones(9, 32)})
        ),
        "shape",
    ),
    "a bias": (
        everywhere(lambda t: t.update({"layers.0.attention.wq.bias": torch.ones(8)})),
        "not part of a Llama",
    ),
    "an adapter": (
        everywhere(lambda t: t.update({"layers.0.attention.wq.lora_a.weight": torch.ones(8)})),
        "not part",
    ),
    "pieces of other shapes": (tensors(lambda t: t.update({WQ: torch.ones(4, 32)})), "differ"),
    "pieces of other types": (tensors(lambda t: t.update({WQ: t[WQ].half()})), "differ"),
    "cut along the other dimension": (
        everywhere(lambda t: t.update({WQ: torch.ones(32, 8)})),
        "shape",
    ),
    "whole numbers": (
        everywhere(lambda t: t.update({NORM: torch.ones(32, dtype=torch.int32)})),
        "IntStorage",
    ),
    "a tokenizer that is none": (content("tokenizer.model", b"hello world\n"), "tokenizer.model"),
    "an empty tokenizer": (content("tokenizer.model", b""), "empty"),
    "a tokenizer of 5 MB": (
        content("tokenizer.model", b"YQ== 1\n" * 700_000),
        "it has 4900000 bytes",
    ),
    "a tokenizer larger than the embedding": (
        content(
            "tokenizer.model", b"".join(b64encode(bytes([i])) + b" %d\n" % i for i in range(256))
        ),
        "embedding",
    ),
}


def test_folders_that_do_not_add_up(tmp_path):
    good, broken = tmp_path / "good", {}
    save_meta(random_model(), None, good, 4)
    for name, (change, words) in FOLDERS.items():
        path = Path(shutil.copytree(good, tmp_path / str(len(broken))))
        change(path)
        broken[name] = path, words
    all_refused(good, broken)

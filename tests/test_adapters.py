"""An adapter's files beside peft, both ways, merged and unmerged; folders that do not fit are
refused in one line.
"""

import copy
import json
import os
import re

import gguf
import peft
import pytest
import torch
from helpers import edit_json, random_ids, tiny_hugging_face, tiny_pair
from safetensors.torch import load_file, save_file
from test_finetuning import fill

import minillama
from minillama import CheckpointError
from minillama.checkpoints.hugging_face import heads_of, to_halves
from minillama.checkpoints.names import GGUF, HUGGING_FACE, rename
from minillama.training.adapters import (
    CONFIG,
    WEIGHTS,
    load_adapter,
    save_adapter,
    save_gguf_lora,
)
from minillama.training.finetuning import add_lora, lora_layers, merge_lora, without_lora


PEFT = dict(
    wq="q_proj",
    wk="k_proj",
    wv="v_proj",
    wo="o_proj",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
)
MERGED = pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
CHOICES = pytest.mark.parametrize(
    "targets", [tuple(PEFT), ("wq", "wk"), ("wv",), ("wo", "down")], ids="+".join
)


def made_by_peft(reference, folder, targets=tuple(PEFT), rank=4, alpha=6, **settings):
    """A peft model whose adapter has no part that is zero, and its files."""
    settings = {
        "target_modules": [PEFT[name] for name in targets],
        "task_type": "CAUSAL_LM",
    } | settings
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, **settings)
    model = peft.get_peft_model(copy.deepcopy(reference), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or ("lora_A" in name and not parameter.any()):
                parameter.normal_(std=0.1, generator=generator)
    model.save_pretrained(folder)
    return model


def same(got, want, base=None):
    """Equal as far as float32 goes, and not because the adapter does nothing."""
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()
    assert base is None or (base - want).abs().max() > 0.1 * want.abs().max()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@CHOICES
@MERGED
def test_pefts_adapter_in_our_model(tmp_path, merged, targets, kv_heads):
    reference, ours = tiny_pair(tmp_path / "model", num_key_value_heads=kv_heads)
    theirs, ids = made_by_peft(reference, tmp_path / "adapter", targets), random_ids(20)
    with torch.no_grad():
        base = ours(ids)
        load_adapter(ours, tmp_path / "adapter")
        assert {name.split(".")[-1] for name in lora_layers(ours)} == set(targets)
        if merged:
            ours, theirs = merge_lora(ours), theirs.merge_and_unload()
        same(ours(ids), theirs(ids).logits, base)
        if not merged:
            with without_lora(ours), theirs.disable_adapter():
                assert torch.equal(ours(ids), base)
                same(ours(ids), theirs(ids).logits)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@CHOICES
@MERGED
def test_our_adapter_in_pefts_model(tmp_path, merged, targets, kv_heads):
    reference, ours = tiny_pair(tmp_path / "model", num_key_value_heads=kv_heads)
    ids = random_ids(20)
    with torch.no_grad():
        base = ours(ids)
        fill(add_lora(ours, rank=3, alpha=7.5, targets=targets))
        save_adapter(ours, tmp_path / "adapter")
        theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
        if merged:
            ours, theirs = merge_lora(ours), theirs.merge_and_unload()
        same(theirs(ids).logits, ours(ids), base)


SETTINGS = {  # that are plain LoRA, as peft writes them
    "rslora": dict(use_rslora=True),
    "orthogonal": dict(init_lora_weights="orthogonal"),
    "orthogonal, rslora, every linear layer": dict(
        init_lora_weights="orthogonal", use_rslora=True, target_modules="all-linear"
    ),
    "gaussian": dict(init_lora_weights="gaussian"),
    "mica": dict(init_lora_weights="mica"),
    "every linear layer": dict(target_modules="all-linear"),
    "all but one kind": dict(
        target_modules="all-linear", exclude_modules=["up_proj", "self_attn.k_proj"]
    ),
    "all but a pattern": dict(
        target_modules=["v_proj", "o_proj"], exclude_modules=r".*\.0\..*o_proj"
    ),
    "by paths": dict(
        target_modules=["model.layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "v_proj"]
    ),
    "one block": dict(layers_to_transform=1),
    "blocks": dict(layers_to_transform=[0], layers_pattern="layers"),
    "ranks and alphas of their own": dict(
        rank_pattern={
            "q_proj": 2,
            "layers.1.mlp.up_proj": 7,
            "^model.layers.0.self_attn.v_proj": 1,
        },
        alpha_pattern={"k_proj": 3, "layers.0.mlp.up_proj": 11.5},
    ),
    "ranks of their own, rslora": dict(rank_pattern={"q_proj": 2}, use_rslora=True),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@MERGED
def test_settings_that_are_plain_lora(tmp_path, merged, settings):
    """peft's adapter in our model; and written again by us, in peft's: the same logits each
    time.
    """
    reference, ours = tiny_pair(tmp_path / "model")
    theirs, ids = made_by_peft(reference, tmp_path / "adapter", **settings), random_ids(20)
    adapted = {name for name, module in theirs.named_modules() if name.endswith("lora_A")}
    with torch.no_grad():
        base = ours(ids)
        load_adapter(ours, tmp_path / "adapter")
        assert len(lora_layers(ours)) == len(adapted)
        save_adapter(ours, tmp_path / "again")
        again = peft.PeftModel.from_pretrained(copy.deepcopy(reference), tmp_path / "again").eval()
        assert {
            name for name, module in again.named_modules() if name.endswith("lora_A")
        } == adapted
        if merged:
            ours, theirs, again = (
                merge_lora(ours),
                theirs.merge_and_unload(),
                again.merge_and_unload(),
            )
        same(ours(ids), theirs(ids).logits)
        same(again(ids).logits, ours(ids))
        assert (theirs(ids).logits - base).abs().max() > 0.01 * base.abs().max()


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens", "lm_head"]], ids=len)
@MERGED
def test_an_embedding_and_a_head_of_its_own(tmp_path, merged, saved):
    """peft's modules_to_save, read, written again, and read by peft."""
    reference, ours = tiny_pair(tmp_path / "model")
    theirs, ids = made_by_peft(reference, tmp_path / "first"), random_ids(20)
    theirs = peft.get_peft_model(
        copy.deepcopy(reference),
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=saved),
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name or "lora_B" in name:
                parameter += 0.1 * torch.randn_like(parameter)
        theirs.save_pretrained(tmp_path / "adapter")
        base = ours(ids)
        load_adapter(ours, tmp_path / "adapter")
        same(ours(ids), theirs(ids).logits, base)
        save_adapter(ours, tmp_path / "again")
        again = peft.PeftModel.from_pretrained(copy.deepcopy(reference), tmp_path / "again").eval()
        if merged:
            ours, again = merge_lora(ours), again.merge_and_unload()
        same(again(ids).logits, ours(ids), base)
    with pytest.raises(CheckpointError, match="no embedding or head"):
        save_gguf_lora(
            load_adapter(tiny_pair(tmp_path / "m")[1], tmp_path / "adapter"), tmp_path / "g"
        )


def test_a_tied_head_has_none_of_its_own(tmp_path):
    reference, _ = tiny_pair(tmp_path / "model")
    config = dict(target_modules=["q_proj"], modules_to_save=["lm_head"])
    peft.get_peft_model(reference, peft.LoraConfig(**config)).save_pretrained(tmp_path / "adapter")
    _, ours = tiny_pair(tmp_path / "tied", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="which this model has tied or quantized"):
        load_adapter(ours, tmp_path / "adapter")


@pytest.mark.parametrize("name", ["rslora", "ranks and alphas of their own", "one block"])
def test_an_adapter_as_gguf(tmp_path, name):
    """As llama.cpp applies it, alpha / rank * b a: the matrices that peft's own merging makes."""
    reference, ours = tiny_pair(tmp_path / "model")
    theirs = made_by_peft(reference, tmp_path / "adapter", **SETTINGS[name]).merge_and_unload()
    count = save_gguf_lora(load_adapter(ours, tmp_path / "adapter"), tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    keys = {key: field.contents() for key, field in reader.fields.items()}
    assert (keys["general.type"], keys["adapter.type"]) == ("adapter", "lora")
    assert keys["general.architecture"] == "llama"
    tensors = {each.name: torch.from_numpy(each.data.copy()) for each in reader.tensors}
    assert len(tensors) == 2 * count
    after, before = theirs.state_dict(), reference.state_dict()
    paths = {ours: theirs for theirs, ours in HUGGING_FACE.items()}
    for each in [each for each in tensors if each.endswith(".lora_a")]:
        a, b = tensors[each], tensors[each.replace("lora_a", "lora_b")]
        change = keys["adapter.lora.alpha"] / len(a) * b @ a
        mine = rename(each.removesuffix(".lora_a"), GGUF)
        path = rename(mine, paths)
        if heads := heads_of(mine, ours.cfg):
            change = to_halves(change, heads)
        torch.testing.assert_close(change, after[path] - before[path], atol=1e-6, rtol=1e-5)


def test_what_is_saved_is_what_is_read_bit_for_bit(tmp_path):
    _, model = tiny_pair(tmp_path / "model")
    changed = fill(add_lora(copy.deepcopy(model), rank=5, alpha=2))
    save_adapter(changed, tmp_path / "a")
    again = load_adapter(copy.deepcopy(model), tmp_path / "a")
    for name, layer in lora_layers(again).items():
        old = lora_layers(changed)[name]
        assert (
            torch.equal(layer.a, old.a)
            and torch.equal(layer.b, old.b)
            and (layer.rank, layer.alpha) == (5, 2)
        )
        assert layer.a.requires_grad and layer.b.requires_grad
    save_adapter(again, tmp_path / "b")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "model"]


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_an_adapter_on_quantized_layers(tmp_path, quantize):
    reference, exact = tiny_pair(tmp_path / "model")
    made_by_peft(reference, tmp_path / "adapter")
    model, _ = minillama.load(tmp_path / "model", quantize=quantize)
    load_adapter(model, tmp_path / "adapter")
    load_adapter(exact, tmp_path / "adapter")
    for name, layer in lora_layers(model).items():
        assert torch.equal(layer.b, lora_layers(exact)[name].b)
    save_adapter(model, tmp_path / "again")
    theirs, ours = (load_file(tmp_path / folder / WEIGHTS) for folder in ("adapter", "again"))
    assert theirs.keys() == ours.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_of_half_width_become_float32(tmp_path, dtype):
    reference, ours = tiny_pair(tmp_path / "model")
    made_by_peft(reference, tmp_path / "adapter")
    file = tmp_path / "adapter" / WEIGHTS
    half = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(half, file)
    load_adapter(ours, tmp_path / "adapter")
    assert torch.equal(
        lora_layers(ours)["blocks.1.attention.wv"].b, half[key(1, "self_attn.v_proj", "B")].float()
    )


def key(block, module, part):
    return f"base_model.model.model.layers.{block}.{module}.lora_{part}.weight"


def test_on_real_weights(tmp_path, ours, theirs):
    """SmolLM2, float32: hidden states, the largest of which is 33."""
    base, tokenizer = ours
    changed = fill(add_lora(copy.deepcopy(base), rank=8, alpha=16), size=0.02)
    save_adapter(changed, tmp_path / "adapter")
    ids = torch.tensor(
        [tokenizer.encode("The sky is blue, because light from the sun is scattered by the air.")]
    )
    reference = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path / "adapter").eval()
    with torch.no_grad():
        mine = changed.hidden(ids)
        other = reference.base_model.model.model(ids).last_hidden_state
        assert (mine - base.hidden(ids)).abs().max() > 1
        fused = merge_lora(changed).hidden(ids)
        merged = reference.merge_and_unload().model(ids).last_hidden_state
    off = [(a - b).abs().max().item() for a, b in ((mine, other), (fused, merged), (fused, mine))]
    assert max(off) < 1e-4, off


# What is refused


def config(**changes):
    return lambda folder: edit_json(folder / CONFIG, lambda value: value.update(changes))


def tensors(change):
    def edit(folder):
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / WEIGHTS)

    return edit


def replace(name, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def outside(name):
    def move(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return move


def truncate(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1])


A = key(0, "self_attn.q_proj", "A")
REFUSED = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), "No such file: adapter_config.json"),
    "no tensors": (
        lambda folder: (folder / WEIGHTS).unlink(),
        "No such file: adapter_model.safetensors",
    ),
    "no JSON": (replace(CONFIG, b"{"), "the JSON of adapter_config.json is malformed"),
    "a list": (replace(CONFIG, b"[]"), "is not an object"),
    "bytes": (replace(WEIGHTS, b"\xff" * 100), "adapter_model.safetensors"),
    "empty": (replace(WEIGHTS, b""), "is empty"),
    "truncated": (truncate, "truncated"),
    "config outside": (outside(CONFIG), "only files inside the folder are read"),
    "tensors outside": (outside(WEIGHTS), "only files inside the folder are read"),
    "another type": (config(peft_type="IA3"), "peft_type = 'IA3', which is not known here"),
    "no type": (
        lambda folder: edit_json(folder / CONFIG, lambda c: c.pop("peft_type")),
        "peft_type = None",
    ),
    "a classifier": (config(task_type="SEQ_CLS"), "task_type = 'SEQ_CLS'"),
    "dora": (config(use_dora=True), "use_dora = True"),
    "rslora perhaps": (config(use_rslora="yes"), "use_rslora = 'yes'"),
    "pissa": (config(init_lora_weights="pissa"), "init_lora_weights = 'pissa'"),
    "olora": (config(init_lora_weights="olora"), "init_lora_weights = 'olora'"),
    "loftq": (config(init_lora_weights="loftq"), "init_lora_weights = 'loftq'"),
    "a rank for a layer that has another": (
        config(rank_pattern={"q_proj": 2}),
        "for this model and r = 2 it is \\(2, 64\\)",
    ),
    "ranks by an expression": (
        config(rank_pattern={"(q|k)+_proj": 4}),
        "a rank_pattern that is not made of names of layers",
    ),
    "alphas in a list": (config(alpha_pattern=[2]), "an alpha_pattern that is not|a alpha_pattern"),
    "an alpha that is none": (config(alpha_pattern={"q_proj": -1}), "has the alpha -1 for"),
    "a rank that is none": (config(rank_pattern={"q_proj": "4"}), "has the rank '4' for"),
    "biases": (config(bias="all"), "bias = 'all'"),
    "a head that is not there": (config(modules_to_save=["lm_head"]), "lm_head.weight is missing"),
    "another module": (config(modules_to_save=["score"]), "saves 'score'; only embed_tokens, lm_h"),
    "modules in words": (config(modules_to_save="lm_head"), "saves|modules_to_save = "),
    "a head of another shape": (
        lambda folder: (
            config(modules_to_save=["lm_head"])(folder),
            tensors(lambda t: t.update({"base_model.model.lm_head.weight": t[A].clone()}))(folder),
        ),
        "lm_head.weight has shape",
    ),
    "some blocks": (
        config(layers_to_transform=[0]),
        "layers.1.self_attn.k_proj.lora_A.weight is no target",
    ),
    "blocks in words": (config(layers_to_transform="0"), "is no target"),
    "blocks that are none": (config(layers_to_transform={"a": 1.5}), "is no target"),
    "blocks of another name": (
        config(layers_to_transform=[0, 1], layers_pattern="h"),
        "layers_pattern = 'h'",
    ),
    "all but some": (config(exclude_modules=["k_proj"]), "k_proj.lora_A.weight is no target"),
    "all but a number": (
        config(exclude_modules=7),
        "target_modules of adapter_config.json is malformed",
    ),
    "transposed": (config(fan_in_fan_out=True), "fan_in_fan_out = True"),
    "from tomorrow": (config(use_something=1), "use_something = 1"),
    "a list as type": (config(peft_type=["LORA"]), "peft_type = "),
    "another rank": (
        config(r=8),
        "has shape \\(4, 64\\); for this model and r = 8 it is \\(8, 64\\)",
    ),
    "rank 0": (config(r=0), "r = 0"),
    "a rank in words": (config(r="4"), "r = '4'"),
    "rank true": (config(r=True), "r = True"),
    "no alpha": (config(lora_alpha=None), "lora_alpha = None"),
    "alpha nan": (config(lora_alpha=float("nan")), "lora_alpha = nan"),
    "alpha huge": (config(lora_alpha=10**400), "lora_alpha = 1000"),
    "rank huge": (config(r=2**31), "r = 2147483648 and"),
    "alpha 0": (config(lora_alpha=0), "lora_alpha = 0"),
    "targets unknown": (
        config(target_modules=["c_attn"]),
        "'c_attn' in target_modules, which is no layer of this model",
    ),
    "targets by half a name": (
        config(target_modules=["proj"]),
        "'proj' in target_modules, which is no layer",
    ),
    "targets in another block": (
        config(target_modules=["q_proj", "model.layers.2.self_attn.k_proj"]),
        "layers.2.self_attn.k_proj' in target",
    ),
    "targets in one block": (
        config(target_modules=["q_proj", "model.layers.1.self_attn.k_proj"]),
        "layers.0.self_attn.k_proj.lora_A.weight is no target",
    ),
    "targets a number": (config(target_modules=7), "target_modules"),
    "no targets": (config(target_modules=None), "target_modules"),
    "targets empty": (config(target_modules=[]), "no target"),
    "targets nested": (config(target_modules=[["q_proj"]]), "target_modules"),
    "targets fewer": (
        config(target_modules=["k_proj"]),
        "q_proj.lora_A.weight is no target of adapter_config.json",
    ),
    "targets more": (
        config(target_modules=["q_proj", "k_proj", "v_proj"]),
        "v_proj.lora_A.weight is missing",
    ),
    "one missing": (tensors(lambda t: t.pop(A)), "q_proj.lora_A.weight is missing"),
    "one too many": (
        tensors(lambda t: t.update({A + "x": t[A].clone()})),
        "1 tensors are not those of an adapter",
    ),
    "a block too many": (
        tensors(lambda t: t.update({key(2, "self_attn.q_proj", "A"): t[A].clone()})),
        "are not those",
    ),
    "no tensor": (tensors(lambda t: t.clear()), "missing|empty"),
    "misshapen": (tensors(lambda t: t.update({A: t[A][:, 1:]})), "has shape \\(4, 63\\)"),
    "transposed parts": (tensors(lambda t: t.update({A: t[A].T})), "has shape \\(64, 4\\)"),
    "flat": (tensors(lambda t: t.update({A: t[A].flatten()})), "has shape \\(256,\\)"),
    "whole numbers": (tensors(lambda t: t.update({A: t[A].int()})), "I32"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    reference, model = tiny_pair(folder / "model")
    made_by_peft(reference, folder / "adapter", ("wq", "wk"))
    return model, folder / "adapter"


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(good, tmp_path, name):
    model, folder = good
    damage, message = REFUSED[name]
    (tmp_path / "adapter").mkdir()
    for file in (CONFIG, WEIGHTS):
        (tmp_path / "adapter" / file).write_bytes((folder / file).read_bytes())
    damage(tmp_path / "adapter")
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model, tmp_path / "adapter")
    said = str(caught.value)
    assert (
        said.startswith(f"{tmp_path / 'adapter'}: ")
        and re.search(message, said)
        and "\n" not in said
    )
    assert not lora_layers(model) and all(
        parameter.requires_grad for parameter in model.parameters()
    )


@pytest.mark.parametrize("modules", ["all-linear", r".*\.(q_proj|k_proj)"])
def test_targets_as_a_pattern_are_what_the_tensors_say(good, tmp_path, modules):
    model, folder = copy.deepcopy(good[0]), good[1]
    for file in (CONFIG, WEIGHTS):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    config(target_modules=modules)(tmp_path)
    assert len(lora_layers(load_adapter(model, tmp_path))) == 4
    save_file({}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="adapter_model.safetensors is empty"):
        load_adapter(copy.deepcopy(good[0]), tmp_path)


def test_another_models_adapter(good, tmp_path):
    _, other = tiny_pair(tmp_path, hidden_size=32)
    with pytest.raises(
        CheckpointError, match=r"has shape \(4, 64\); for this model and r = 4 it is \(4, 32\)"
    ):
        load_adapter(other, good[1])


def test_a_folder_that_is_none(good, tmp_path):
    for path in (tmp_path / "nothing", tmp_path / "file"):
        (tmp_path / "file").write_text("", encoding="utf-8")
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: "):
            load_adapter(good[0], path)


def test_a_second_adapter_and_none(good, tmp_path):
    changed = load_adapter(copy.deepcopy(good[0]), good[1])
    before = copy.deepcopy(changed.state_dict())
    with pytest.raises(ValueError, match="the model has an adapter already"):
        load_adapter(changed, good[1])
    assert all(torch.equal(value, before[name]) for name, value in changed.state_dict().items())
    with pytest.raises(ValueError, match="the model has no adapter"):
        save_adapter(good[0], tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_only_an_older_adapter_is_replaced(tmp_path):
    """Saving over the model's own folder, or over anybody's files, would lose them."""
    tiny_hugging_face().save_pretrained(tmp_path / "model")
    model = add_lora(minillama.load(tmp_path / "model")[0])
    before = sorted(os.listdir(tmp_path / "model"))
    with pytest.raises(
        CheckpointError, match="holds 'config.json', which would be lost: choose another folder"
    ):
        save_adapter(model, tmp_path / "model")
    assert sorted(os.listdir(tmp_path / "model")) == before
    save_adapter(model, tmp_path / "adapter")
    save_adapter(fill(model), tmp_path / "adapter")
    assert load_file(tmp_path / "adapter" / WEIGHTS)[key(0, "self_attn.v_proj", "B")].any()
    with pytest.raises(CheckpointError, match="holds 'adapter_config.json', which would be lost"):
        minillama.save(merge_lora(model), None, tmp_path / "adapter")
    assert sorted(os.listdir(tmp_path / "adapter")) == [CONFIG, WEIGHTS]


def test_a_failure_while_saving_keeps_the_old_one(good, tmp_path, monkeypatch):
    model = fill(add_lora(copy.deepcopy(good[0])))
    save_adapter(model, tmp_path / "adapter")
    before = (tmp_path / "adapter" / WEIGHTS).read_bytes()

    def full(path, text, **how):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        save_adapter(fill(model, seed=9), tmp_path / "adapter")
    monkeypatch.undo()
    assert (tmp_path / "adapter" / WEIGHTS).read_bytes() == before and os.listdir(tmp_path) == [
        "adapter"
    ]
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text(encoding="utf-8"))["r"] == 8

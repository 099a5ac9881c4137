"""LoRA beside peft and float64: nothing changed at first, fused equals unfused, gradients pass what
is frozen.
"""

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from helpers import random_ids, tiny_hugging_face, tiny_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import minillama
from minillama.inference.quantization import Int4Linear, Int8Linear, quantize, quantized
from minillama.training.finetuning import (
    TARGETS,
    Frozen,
    LoRALinear,
    add_lora,
    lora_layers,
    merge_lora,
    without_lora,
)
from minillama.training.loop import fit
from minillama.training.loss import token_loss
from minillama.training.optimizer import Settings, trainable
from minillama.training.packing import packed_logits


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fill(model, size=0.1, seed=1):
    """An adapter as training might leave it: no part of it zero."""
    with torch.no_grad():
        for i, layer in enumerate(lora_layers(model).values()):
            layer.b.copy_(size * normal(*layer.b.shape, seed=seed + i))
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_pair(tmp_path_factory.mktemp("tiny"), tie_word_embeddings=True)[1]


FORMS = {
    "float32": lambda model: model,
    "bfloat16": lambda model: model.bfloat16(),
    "int8": lambda model: quantize(model, 8),
    "int4": lambda model: quantize(model.bfloat16(), 4),
}


@pytest.mark.parametrize("form", FORMS)
def test_at_the_start_nothing_is_changed(model, form):
    before = FORMS[form](copy.deepcopy(model))
    after = add_lora(copy.deepcopy(before))
    for count in (1, 5, 40):
        ids = random_ids(count)
        with torch.no_grad():
            assert torch.equal(before(ids), after(ids))
    assert len(lora_layers(after)) == 7 * model.cfg.n_layers
    names = trainable(after)
    assert {name.rpartition(".")[2] for name in names} == {"a", "b"} and len(
        names
    ) == 14 * model.cfg.n_layers
    assert {parameter.dtype for parameter in names.values()} == {torch.float32}
    with torch.no_grad(), without_lora(fill(after)):
        assert torch.equal(before(ids), after(ids))
    with torch.no_grad():
        assert not torch.equal(before(ids), after(ids))


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 20),
    st.floats(0.1, 64),
    st.sets(st.sampled_from(TARGETS), min_size=1),
    st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_identity_at_the_start_and_fused_equals_unfused(model, rank, alpha, targets, seed, dtype):
    ids, changed = (
        random_ids(9, seed),
        add_lora(copy.deepcopy(model).to(dtype), rank, alpha, targets, seed),
    )
    with torch.no_grad():
        assert torch.equal(changed(ids), copy.deepcopy(model).to(dtype)(ids))
        unfused = fill(changed, 0.02 * rank / alpha, seed)(ids)
        fused = merge_lora(changed)(ids)
    assert not lora_layers(changed) and all(
        parameter.requires_grad for parameter in changed.parameters()
    )
    assert {name for name, _ in changed.named_modules()} == {
        name for name, _ in model.named_modules()
    }
    assert (fused - unfused).abs().max() <= 2e-5 * unfused.abs().max()


def test_the_update_by_hand():
    base = nn.Linear(3, 2, bias=False)
    layer = LoRALinear(base, rank=2, alpha=8)
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        layer.a.copy_(torch.tensor([[1.0, 2, 3], [0, 0, 1]]))
        layer.b.copy_(torch.tensor([[1.0, 0], [-1, 1]]))
    assert layer(torch.tensor([1.0, 1, 1])).tolist() == [1 + 4 * 6, 1 + 4 * (1 - 6)]
    assert layer(torch.tensor([1.0, 1, 1], dtype=torch.bfloat16).float()).dtype == torch.float32


def test_a_is_drawn_from_the_seed_and_b_is_zero(model):
    one, same, other = (
        lora_layers(add_lora(copy.deepcopy(model), seed=seed)) for seed in (3, 3, 4)
    )
    for name, layer in one.items():
        assert torch.equal(layer.a, same[name].a) and not torch.equal(layer.a, other[name].a)
        assert not layer.b.any() and layer.a.abs().max() <= layer.in_features**-0.5
        assert layer.a.std().item() == pytest.approx((3 * layer.in_features) ** -0.5, rel=0.15)
    draws = [layer.a for name, layer in one.items() if name.endswith("wq")]
    assert not torch.equal(*draws)


def parts(kind, rows=96, columns=64, seed=0):
    """A quantized layer, and in float64 the dequantized weights."""
    layer = quantized(0.1 * normal(rows, columns, seed=seed), kind)
    return layer, layer.weight.double()


@pytest.mark.parametrize("rows", [1, 16, 17, 40], ids="{} tokens".format)
@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_pass_a_quantized_layer(bits, rows):
    layer, weight = parts(bits)
    x = normal(rows, 64, seed=1).requires_grad_()
    y = Frozen(layer)(x)
    gradient = normal(rows, 96, seed=2)
    y.backward(gradient)
    assert torch.equal(y, layer(x.detach()))
    want = gradient.double() @ weight
    assert (x.grad - want).abs().max() <= 2**-7 * want.abs().max()
    assert y.dtype == x.grad.dtype == torch.float32


def test_nothing_of_a_quantized_layer_is_kept_for_the_way_back():
    """A weight in full, kept for its gradient, would take what four bits have saved."""
    kept = []
    x = normal(40, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        Frozen(parts(4)[0])(x)
        assert kept == []
        parts(4)[0](x)
        assert max(kept) >= 64 * 96


def gradients(model, ids):
    documents = torch.zeros_like(ids)
    loss = token_loss(packed_logits(model, ids, documents)[:, :-1], ids[:, 1:])
    loss.backward()
    return {name: parameter.grad for name, parameter in trainable(model).items()}


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_of_a_quantized_model_have_the_gradients_of_its_numbers(model, bits):
    """The same numbers in float64 layers, under the same adapter: what differs is rounding to
    bfloat16.
    """
    changed = quantize(copy.deepcopy(model), bits)
    exact = copy.deepcopy(model)
    for name, layer in changed.named_modules():
        if isinstance(layer, Int8Linear | Int4Linear):
            exact.get_submodule(name).weight = nn.Parameter(layer.weight.float())
    exact.embedding.weight = exact.head.weight
    got, want = (
        gradients(fill(add_lora(m, rank=4)), random_ids(24).view(2, 12))
        for m in (changed, exact.double())
    )
    assert got.keys() == want.keys()
    for name in want:
        off = (got[name] - want[name]).norm() / want[name].norm()
        assert off < 0.06, (name, off)


def test_every_quantized_layer_lets_gradients_through(model):
    """Also the head and the layers that have no adapter, with few tokens, whose kernel has no way
    back at all.
    """
    changed = add_lora(quantize(copy.deepcopy(model), 4), rank=2, targets=["wq"])
    got = gradients(fill(changed), random_ids(8))
    assert len(got) == 4 and all(gradient.abs().max() > 0 for gradient in got.values())
    assert isinstance(changed.head, Frozen) and isinstance(
        changed.blocks[0].feed_forward.up, Frozen
    )


def test_training_changes_the_adapter_alone(model):
    changed = add_lora(copy.deepcopy(model))
    ids = random_ids(33)
    batch = ids[:, :-1], ids[:, 1:], torch.zeros(1, 32, dtype=torch.long)
    before = {name: value.clone() for name, value in changed.state_dict().items()}
    rows = fit(
        changed,
        lambda m, b: token_loss(packed_logits(m, b[0], b[2]), b[1]),
        lambda i: batch,
        Settings(steps=20, peak_lr=1e-2, warmup=2),
        progress=False,
    )
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    moved = {
        name for name, value in changed.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == set(trainable(changed))


def test_gradients_are_pefts(tmp_path):
    reference, ours = tiny_pair(tmp_path)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["v_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    theirs, ours = peft.get_peft_model(reference, config), add_lora(ours, 4, 8, ["wv", "down"])
    names = {"wv": "self_attn.v_proj", "down": "mlp.down_proj"}
    pairs = []
    for name, layer in lora_layers(fill(ours)).items():
        _, number, _, leaf = name.split(".")
        other = theirs.get_submodule(f"base_model.model.model.layers.{number}.{names[leaf]}")
        with torch.no_grad():
            other.lora_A["default"].weight.copy_(layer.a)
            other.lora_B["default"].weight.copy_(layer.b)
        pairs += [
            (layer.a, other.lora_A["default"].weight),
            (layer.b, other.lora_B["default"].weight),
        ]
    ids = random_ids(20)
    theirs.eval()
    F.cross_entropy(theirs(ids).logits[0, :-1], ids[0, 1:]).backward()
    gradients(ours, ids)
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)
    assert sum(p.requires_grad for p in theirs.parameters()) == len(trainable(ours))


def test_any_model_of_load_but_a_compiled_one(tmp_path):
    tiny_hugging_face().save_pretrained(tmp_path)
    chosen, _ = minillama.load(tmp_path, attention="sdpa", quantize="int8")
    with torch.no_grad():
        before = chosen(random_ids(6))
        fill(add_lora(chosen))
        assert not torch.equal(chosen(random_ids(6)), before)
        with without_lora(chosen):
            assert torch.equal(chosen(random_ids(6)), before)
    chosen(random_ids(20)).sum().backward()
    assert all(parameter.grad.any() for parameter in trainable(chosen).values())


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(targets=["wx"]), "targets must be some of wq, wk, wv, wo, gate, up, down, not wx$"),
        (dict(targets=[]), "not none"),
        (dict(targets="wq"), "not q, w"),
        (dict(rank=0), "rank must be a whole number from 1 on and alpha positive, not 0 and 16"),
        (dict(rank=2.0), "not 2.0 and 16"),
        (dict(alpha=0), "not 8 and 0"),
        (dict(alpha=float("nan")), "not 8 and nan"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(model, settings, message):
    changed = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        add_lora(changed, **settings)
    assert not lora_layers(changed) and all(
        parameter.requires_grad for parameter in changed.parameters()
    )


def test_refusals_are_one_line(model):
    changed, compiled = add_lora(copy.deepcopy(model)), copy.deepcopy(model)
    compiled.decode_step = object()  # what `load(compiled=True)` leaves there
    few = add_lora(quantize(copy.deepcopy(model), 4))
    calls = {
        "a compiled model takes no adapter: load the model without compiled": lambda: add_lora(
            compiled
        ),
        "the model has an adapter already: merge_lora it, or load the model anew": lambda: add_lora(
            changed
        ),
        "the model has no adapter: add_lora or load_adapter gives it one": lambda: merge_lora(
            copy.deepcopy(model)
        ),
        "quantized layers take no update: load the model without quantize": lambda: merge_lora(few),
        "the model has no adapter": lambda: without_lora(copy.deepcopy(model)).__enter__(),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
            call()


def test_without_lora_ends_even_after_an_error_and_within_itself(model):
    changed, ids = fill(add_lora(copy.deepcopy(model))), random_ids(5)
    with torch.no_grad():
        want = changed(ids)
        with pytest.raises(KeyError), without_lora(changed):
            raise KeyError
        assert torch.equal(changed(ids), want)
        with without_lora(changed):
            with without_lora(changed):
                pass
            assert torch.equal(changed(ids), model(ids))
        assert torch.equal(changed(ids), want)


def test_a_fused_model_is_saved_and_read_again(model, tmp_path):
    fused = merge_lora(fill(add_lora(copy.deepcopy(model))))
    with pytest.raises(minillama.CheckpointError, match="merge adapters, then save"):
        minillama.save(add_lora(copy.deepcopy(model)), None, tmp_path / "x")
    minillama.save(fused, None, tmp_path / "x")
    with torch.no_grad():
        assert torch.equal(minillama.load(tmp_path / "x")[0](random_ids(9)), fused(random_ids(9)))


def test_a_fused_bfloat16_weight_is_rounded_once(model):
    changed = fill(add_lora(copy.deepcopy(model).bfloat16()))
    name, layer = next(iter(lora_layers(changed).items()))
    with torch.no_grad():
        want = layer.base.weight.double() + 2 * layer.b.double() @ layer.a.double()
    weight = merge_lora(changed).get_parameter(f"{name}.weight")
    assert weight.dtype == torch.bfloat16
    assert ((weight - want).abs() <= 2**-8 * want.abs() + 1e-7).all()

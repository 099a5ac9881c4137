"""Training beside transformers, float64 and values worked out by hand; runs that are killed; what
goes wrong.
"""

import csv
import errno
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import random_ids, tiny_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import minillama
from minillama import LlamaConfig
from minillama.attention import AttentionMask
from minillama.checkpoints import atomic
from minillama.inference.attention_backends import attend_in_blocks, use_attention
from minillama.training import runs
from minillama.training.flops import flops_per_token
from minillama.training.loop import fit
from minillama.training.loss import IGNORE, count_targets, token_loss
from minillama.training.optimizer import Settings, adamw, learning_rate, train_step
from minillama.training.packing import document_mask, document_positions, pack, packed_logits, shift
from minillama.training.runs import Run, TrainingError, fingerprint, read_metrics


def one_document(ids):
    return torch.zeros_like(ids)


def loss_of(model, batch):
    tokens, targets, documents = batch
    return token_loss(packed_logits(model, tokens, documents), targets)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("attention", ["naive", "sdpa", "blocks"])
def test_gradients_are_transformers(tmp_path, attention, recompute):
    reference, model = tiny_pair(tmp_path, tie_word_embeddings=True)
    model = use_attention(model, attention).requires_grad_(True)
    model.activation_checkpointing = recompute
    ids = random_ids(60).view(3, 20)
    want = reference(ids, labels=ids).loss
    want.backward()
    logits = packed_logits(model, ids, one_document(ids))
    got = token_loss(logits[:, :-1], ids[:, 1:])
    got.backward()
    assert abs(got.item() - want.item()) < 1e-6
    theirs = {name: p.grad for name, p in reference.named_parameters()}
    ours = {name: p.grad for name, p in model.named_parameters()}
    assert len(ours) == len(theirs)
    pairs = {
        "embedding.weight": "model.embed_tokens.weight",
        "blocks.1.attention.wv.weight": "model.layers.1.self_attn.v_proj.weight",
        "blocks.0.feed_forward.gate.weight": "model.layers.0.mlp.gate_proj.weight",
        "blocks.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
        "norm.weight": "model.norm.weight",
    }
    for mine, other in pairs.items():
        torch.testing.assert_close(ours[mine], theirs[other], atol=1e-5, rtol=1e-5)
    norms = [
        math.sqrt(sum(g.double().pow(2).sum().item() for g in side.values()))
        for side in (ours, theirs)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("size", [1, 5, 128])
@pytest.mark.parametrize("T, S", [(12, 12), (13, 20), (1, 9)])
def test_blocks_of_queries_attend_as_pytorch_in_float64(size, T, S):
    """Packed documents, and a cache in front; keys that no query of a block may see are not even
    read.
    """
    drawn = torch.Generator().manual_seed(T)
    q, k, v = (
        torch.randn(2, h, n, 8, generator=drawn).requires_grad_(True)
        for h, n in ((6, T), (2, S), (2, S))
    )
    numbers = torch.arange(S).div(7, rounding_mode="floor").expand(2, S)
    allowed = document_mask(numbers)[:, :, S - T :]
    mask = AttentionMask(torch.arange(S - T, S), S, allowed)
    doubles = [part.detach().double().requires_grad_(True) for part in (q, k, v)]
    want = F.scaled_dot_product_attention(*doubles, allowed, enable_gqa=True)
    got = attend_in_blocks(q, k, v, mask, size)
    pull = torch.randn(want.shape, generator=drawn)
    mine, theirs = (
        torch.autograd.grad(got, (q, k, v), pull),
        torch.autograd.grad(want, doubles, pull.double()),
    )
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).abs().max() < 2e-6
    assert (got - want).abs().max() < 1e-6
    # a single query sees every key
    one = attend_in_blocks(q[:, :, -1:], k, v, AttentionMask.causal(1, S - 1), size)
    doubles[0] = doubles[0][:, :, -1:]
    assert (one - F.scaled_dot_product_attention(*doubles, enable_gqa=True)).abs().max() < 1e-6
    if T == S:
        unread = v.detach().clone()
        unread[:, :, -1] = math.nan
        assert (
            attend_in_blocks(q, k, unread, mask, size)[:, :, : (T - 1) // size * size]
            .isfinite()
            .all()
        )


def test_packed_documents_are_what_they_are_alone(tmp_path):
    """transformers on each document by itself; ours on all of them in one row."""
    reference, model = tiny_pair(tmp_path)
    parts = [random_ids(n, seed=n)[0] for n in (7, 12, 5)]
    numbers = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])[None]
    with torch.no_grad():
        got = packed_logits(model, torch.cat(parts)[None], numbers)[0]
        want = torch.cat([reference(part[None]).logits[0] for part in parts])
    assert (got - want).abs().max() < 1e-5


def test_masks_positions_and_targets_by_hand():
    documents = torch.tensor([[4, 4, 5, 5, 5]])
    assert document_positions(documents).tolist() == [[0, 1, 0, 1, 2]]
    assert document_mask(documents)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    tokens, targets, numbers = shift(torch.tensor([[10, 11, 20, 21, 22]]), documents)
    assert tokens.tolist() == [[10, 11, 20, 21]] and numbers.tolist() == [[4, 4, 5, 5]]
    assert targets.tolist() == [[11, IGNORE, 21, 22]]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 8))
def test_every_id_but_the_first_is_a_target_once(sizes, length):
    documents = [[100 * i + j for j in range(size)] for i, size in enumerate(sizes)]
    ids = [id for document in documents for id in document]
    if len(ids) <= length:
        with pytest.raises(ValueError, match="do not fill a row"):
            pack(documents, length)
        return
    rows, numbers = pack(documents, length)
    tokens, targets, _ = shift(rows, numbers)
    assert tokens.flatten().tolist() == ids[: tokens.numel()]
    expected = [b if a // 100 == b // 100 else IGNORE for a, b in zip(ids, ids[1:], strict=False)]
    assert targets.flatten().tolist() == expected[: targets.numel()]


def test_the_loss_is_the_mean_over_what_counts():
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[3, IGNORE, 5], [IGNORE, IGNORE, 10]])
    chances = logits.double().softmax(-1)
    want = -(chances[0, 0, 3].log() + chances[0, 2, 5].log() + chances[1, 2, 10].log()) / 3
    assert token_loss(logits, targets).item() == pytest.approx(want.item(), abs=1e-6)


def small(seed=0, **changes) -> minillama.Llama:
    torch.manual_seed(seed)
    cfg = LlamaConfig(
        **dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, vocab_size=50)
        | changes
    )
    model = minillama.Llama(cfg)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.02)
    return model


def batch_at(i: int):
    rows = torch.randint(50, (4, 17), generator=torch.Generator().manual_seed(i))
    return shift(rows, torch.zeros_like(rows))


def test_the_loss_at_the_start_is_that_of_guessing():
    assert loss_of(small(), batch_at(0)).item() == pytest.approx(math.log(50), abs=0.02)


def test_one_batch_is_learnt_by_heart():
    plan = Settings(steps=120, peak_lr=1e-2, warmup=10, weight_decay=0.0)
    rows = fit(small(), loss_of, lambda i: batch_at(0), plan, progress=False)
    assert rows[-1]["loss"] < 0.02 < 3 < rows[0]["loss"]


def test_without_standard_error_there_is_no_bar(monkeypatch):
    """As in a program without a console."""
    monkeypatch.setattr("sys.stderr", None)
    assert len(fit(small(), loss_of, batch_at, Settings(**PLAN | {"steps": 2}))) == 2


def test_accumulated_batches_are_one_large_batch():
    batches = [batch_at(i) for i in range(3)]
    large = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    plan, models = Settings(max_grad_norm=0.3), [small(), small()]
    for model, these in zip(models, ([large], batches), strict=True):
        loss, norm = train_step(model, loss_of, these, adamw(model, plan), plan, 1e-2)
        assert norm > 0.3
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


@pytest.mark.parametrize("few", [0, 1, 5])
def test_batches_of_unequal_counts_are_one_large_batch_if_they_are_weighed(few):
    tokens, targets, documents = batch_at(0)
    targets[2:, few:] = IGNORE
    large = (tokens, targets, documents)
    pieces = [tuple(part[:2] for part in large), tuple(part[2:] for part in large)]
    plan, weights = Settings(max_grad_norm=0.3), []
    for these, weigh in (([large], None), (pieces, count_targets)):
        model = small()
        weights.append(train_step(model, loss_of, these, adamw(model, plan), plan, 1e-2, weigh))
        weights[-1] = (*weights[-1], torch.cat([p.flatten() for p in model.parameters()]))
    (loss, norm, one), (loss2, norm2, two) = weights
    assert loss2 == pytest.approx(loss, rel=1e-6) and norm2 == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(one, two, atol=2e-6, rtol=0)
    if few:  # the mean of two means is another one
        assert (
            abs(train_step(small(), loss_of, pieces, adamw(model, plan), plan, 1e-2)[0] - loss)
            > 1e-3
        )


def test_a_step_is_adamw_by_its_formula():
    """Loshchilov and Hutter's lines in float64, two steps, with clipping; norms are not decayed."""
    plan, model = Settings(max_grad_norm=0.5, weight_decay=0.1), small()
    optimizer = adamw(model, plan)
    state = {name: [p.detach().double(), 0.0, 0.0] for name, p in model.named_parameters()}
    for t, lr in ((1, 1e-2), (2, 5e-3)):
        gradients = dict(
            zip(
                state,
                torch.autograd.grad(loss_of(model, batch_at(t)), list(model.parameters())),
                strict=True,
            )
        )
        norm = math.sqrt(sum(g.double().pow(2).sum().item() for g in gradients.values()))
        _, said = train_step(model, loss_of, [batch_at(t)], optimizer, plan, lr)
        assert said == pytest.approx(norm, rel=1e-5)
        for name, (weight, m, v) in state.items():
            g = gradients[name].double() * min(1, 0.5 / (norm + 1e-6))
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
            weight = weight * (1 - lr * (0.1 if weight.ndim == 2 else 0))
            weight = weight - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
            state[name] = [weight, m, v]
    for name, p in model.named_parameters():
        # 1e-4: a step is about lr for every number, and the smallest gradients are rounding
        torch.testing.assert_close(p.double(), state[name][0], atol=1e-4, rtol=0)
        assert (p.double() - state[name][0]).abs().mean() < 1e-6


def test_learning_rates_by_hand():
    plan = Settings(steps=101, peak_lr=1.0, warmup=4, min_lr_ratio=0.2)
    rates = [learning_rate(step, plan) for step in range(101)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[52] == pytest.approx(0.6) and rates[100] == pytest.approx(0.2)  # half way, the end
    assert rates[28] == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)  # an eighth of a circle
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_flops_by_hand():
    cfg = LlamaConfig.named("llama-3.1-8b")
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 4096 * 128256
    assert flops_per_token(cfg, 8192) == 6 * weights + 12 * 32 * 4096 * 8192


def test_flops_are_what_pytorch_counts():
    model, ids = small(), torch.arange(20).view(1, 20)
    with FlopCounterMode(display=False) as counter:
        loss_of(model, (ids, ids, one_document(ids))).backward()
    assert counter.get_total_flops() == 20 * flops_per_token(model.cfg, 20)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"dtype": "float16"},
        {"peak_lr": math.nan},
        {"max_grad_norm": 0},
        {"min_lr_ratio": 2},
        {"warmup": -1},
    ],
)
def test_settings_without_meaning(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Settings(**change)


# Runs

PLAN = dict(steps=12, peak_lr=5e-3, warmup=3, save_every=4, eval_every=5)
KILLED_AT = (2, 6, 11)
PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_training import KILLED_AT, PLAN, Run, Settings, batch_at, fit, loss_of, small
for at in KILLED_AT:
    if not os.fork():
        def die(row):
            if row["step"] == at:
                os.kill(os.getpid(), signal.SIGKILL)
        folder = os.path.join({folder!r}, str(at))
        validate = lambda m: loss_of(m, batch_at(99))
        fit(small(), loss_of, batch_at, Settings(**PLAN), Run(folder), validate, progress=False, callbacks=[die])
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


EXACT = ("step", "loss", "gradient_norm", "validation_loss")  # all but the speed


def losses(folder) -> list[str]:
    """The texts of the losses, not numbers: the same bits, the same text."""
    with open(Path(folder) / "metrics.csv", encoding="utf-8", newline="") as file:
        return [
            (row["step"], row["loss"], row["gradient_norm"], row["validation_loss"])
            for row in csv.DictReader(file)
        ]


def whole_run(folder, model=None, **changes):
    return fit(
        model or small(), loss_of, batch_at, Settings(**PLAN | changes), Run(folder),
        validate=lambda m: loss_of(m, batch_at(99)), progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with a run for every step at which one was killed."""
    folder = tmp_path_factory.mktemp("killed")
    program = PROGRAM.format(tests=str(Path(__file__).parent), folder=str(folder))
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, encoding="utf-8", timeout=200
    )
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(KILLED_AT), done.stderr
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("at", KILLED_AT)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, killed, at):
    whole_run(tmp_path / "whole")
    assert len(losses(killed / str(at))) == at + 1
    model = small()
    rows = whole_run(killed / str(at), model)
    assert losses(killed / str(at)) == losses(tmp_path / "whole") and len(rows) == 12
    again = small()
    whole_run(tmp_path / "whole", again)  # a finished run has nothing left to do
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_recomputation_changes_no_bit_and_is_handed_on(tmp_path):
    asked = []

    def watched(model, batch):
        asked.append(model.activation_checkpointing)
        return loss_of(model, batch)

    whole_run(tmp_path / "plain")
    plan = Settings(**PLAN, activation_checkpointing=True)
    fit(
        small(),
        watched,
        batch_at,
        plan,
        Run(tmp_path / "again"),
        lambda m: loss_of(m, batch_at(99)),
        progress=False,
    )
    assert losses(tmp_path / "again") == losses(tmp_path / "plain") and asked == [True] * 12


def test_a_setting_that_an_older_state_does_not_know_does_not_matter(tmp_path):
    whole_run(tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["about"]["activation_checkpointing"]
    torch.save(state, tmp_path / "state.pt")
    assert len(whole_run(tmp_path)) == 12


def test_a_state_with_the_older_names_of_settings_resumes_and_still_refuses_other_values(tmp_path):
    whole_run(tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for name, old in runs.RENAMED.items():
        state["about"][old] = state["about"].pop(name)
    torch.save(state, tmp_path / "state.pt")
    assert len(whole_run(tmp_path)) == 12
    with pytest.raises(TrainingError, match="with max_grad_norm 1.0, and now it is 0.5"):
        whole_run(tmp_path, max_grad_norm=0.5)


def test_a_machine_without_a_compiler_is_told_so_in_one_line(no_compiler, tmp_path):
    with pytest.raises(
        TrainingError, match=r"^this machine cannot compile the model \(.*\): do without$"
    ) as caught:
        whole_run(tmp_path, compiled=True)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_loss_is_not_taken_for_one_of_the_compiler():
    def wrong(model, batch):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fit(small(), wrong, batch_at, Settings(**PLAN, compiled=True), progress=False)


def test_a_loss_that_is_not_a_number_stops_and_names_the_step(tmp_path):
    def sick(model, batch):
        return loss_of(model, batch) * (
            math.nan if len(read_metrics(tmp_path / "metrics.csv")) == 6 else 1
        )

    model = small()
    with pytest.raises(
        TrainingError, match="^step 6: the loss is nan, .*; the state after step 4 is kept"
    ):
        fit(model, sick, batch_at, Settings(**PLAN), Run(tmp_path), progress=False)
    assert all(p.isfinite().all() for p in model.parameters())
    whole_run(tmp_path)  # cured, it goes on
    whole_run(tmp_path / "healthy")
    assert [row[:3] for row in losses(tmp_path)] == [
        row[:3] for row in losses(tmp_path / "healthy")
    ]


def test_a_full_disk_keeps_the_older_state(tmp_path, monkeypatch):
    kept, write = [], runs.write_whole

    def full(path, content):
        if path.name == "state.pt" and kept:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if path.name == "state.pt":
            kept.append(content)
        write(path, content)

    monkeypatch.setattr(runs, "write_whole", full)
    with pytest.raises(
        TrainingError,
        match="after step 8 cannot be saved .*space.*; the state after step 4 is kept",
    ):
        whole_run(tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == kept[0]
    monkeypatch.undo()
    whole_run(tmp_path)
    whole_run(tmp_path / "whole")
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    atomic.write_whole(path, b"old")

    def broken(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(atomic, "flush", broken)
    with pytest.raises(OSError, match="full"):
        atomic.write_whole(path, b"new and longer")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_other_data_or_settings_are_noticed(tmp_path):
    data = torch.arange(10)
    fit(
        small(),
        loss_of,
        batch_at,
        Settings(**PLAN),
        Run(tmp_path, fingerprint(data)),
        progress=False,
    )
    for words, changes, name in (
        ("data", {}, fingerprint(data + 1)),
        ("peak_lr", {"peak_lr": 1e-3}, fingerprint(data)),
    ):
        with pytest.raises(
            TrainingError, match=f"holds a run with {words} .*: choose another folder"
        ):
            fit(
                small(),
                loss_of,
                batch_at,
                Settings(**PLAN | changes),
                Run(tmp_path, name),
                progress=False,
            )


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02c__builtin__\neval\n(S'1/0'\ntR."]
)
def test_a_state_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(
        TrainingError, match="state.pt cannot be used .*: move it away to start anew"
    ):
        whole_run(tmp_path)


def test_a_fingerprint_sees_content_shape_and_type():
    a = torch.arange(6)
    names = {
        fingerprint(x)
        for x in (a, a.view(2, 3), a.int(), a.float(), torch.tensor([0, 1, 2, 3, 4, 6]))
    }
    assert len(names) == 5 and fingerprint(a) == fingerprint(a.clone())


def test_cross_entropy_here_is_pytorchs_only_by_name():
    """bfloat16 logits are measured in float32."""
    logits, targets = torch.randn(1, 4, 9).bfloat16(), torch.tensor([[1, 2, 3, 4]])
    assert token_loss(logits, targets) == F.cross_entropy(logits[0].float(), targets[0])

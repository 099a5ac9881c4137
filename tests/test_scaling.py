"""The planner against measured memory, counted operations, simulated schedules, and published
facts.
"""

import json
from dataclasses import replace
from math import prod

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from minillama import KVCache, Llama, LlamaConfig, cli
from minillama.attention import AttentionMask
from minillama.distributed.accelerators import (
    ACCELERATORS,
    NETWORK_BANDWIDTH,
    USABLE,
)
from minillama.distributed.layout import (
    Layout,
    collectives,
    indivisible,
    shard_shape,
    shard_shapes,
    sharded_collectives,
    stages,
    weight_shapes,
)
from minillama.distributed.memory import (
    Job,
    cache_bytes,
    largest_stage_memory,
    pass_bytes,
    rank_memory,
    saved_bytes,
    stored_bytes,
    weight_bytes,
    why_infeasible,
)
from minillama.distributed.planning import (
    decode_seconds,
    layouts,
    link_seconds,
    lower_bound,
    pass_seconds,
    plan,
    prefill_seconds,
    train_step_seconds,
)
from minillama.inference import quantization
from minillama.inference.attention_backends import BACKENDS, use_attention
from minillama.model import Block
from minillama.rope import rope_table
from minillama.training.optimizer import Settings, adamw


BIG = LlamaConfig.named("llama-3.1-405b")
H100 = ACCELERATORS["h100-80gb"]
SHAPE = dict(dim=192, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=32, ffn_dim=640, vocab_size=512)
SMALL = LlamaConfig(**SHAPE)
RANK = replace(SMALL, n_heads=3, n_kv_heads=1, ffn_dim=320)  # what one of two tensor ranks computes


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "smollm2-135m", "debug"]
)
def test_tensors_are_those_of_the_model(name):
    cfg = LlamaConfig.named(name)
    with torch.device("meta"):
        model = Llama(cfg)
    state = {key: tuple(value.shape) for key, value in model.named_parameters()}  # a tied head once
    assert list(state.items()) == list(weight_shapes(cfg).items())


def test_published_counts():
    counts = [
        sum(map(prod, weight_shapes(LlamaConfig.named(f"llama-3.1-{n}")).values()))
        for n in ("8b", "70b", "405b")
    ]
    assert counts == [8_030_261_248, 70_553_706_496, 405_853_388_800]
    assert [
        cache_bytes(LlamaConfig.named(f"llama-3.1-{n}"), 1, 1) for n in ("8b", "70b", "405b")
    ] == [
        131_072,
        327_680,
        516_096,
    ]
    # Meta's 16 files
    assert sum(map(prod, weight_shapes(replace(BIG, n_kv_heads=16)).values())) == 410_081_247_232


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8", "int4"])
def test_weights_take_what_they_take(form, tied):
    cfg = replace(SMALL, tied_embeddings=tied)
    model = Llama(cfg)
    if form != "float32":
        model = model.bfloat16()
    if form.startswith("int"):
        quantization.quantize(model, int(form[3:]))
    assert weight_bytes(cfg, form) == quantization.model_bytes(model)


def test_fp8_is_metas_feed_forward_layers_but_for_the_first_and_last_block():
    matrices = 124 * 3 * 16_384 * 53_248
    rows = 124 * (2 * 53_248 + 16_384)
    assert weight_bytes(BIG, "fp8") == 2 * 405_853_388_800 - matrices + 4 * rows


def test_a_cache_takes_what_it_takes():
    cache = KVCache(SMALL, 3, 77, torch.bfloat16)
    size = cache.keys.untyped_storage().nbytes() + cache.values.untyped_storage().nbytes()
    assert cache_bytes(SMALL, 3, 77) == size
    parts = [cache_bytes(SMALL, 3, 77, Layout(2, 3), stage) for stage in range(3)]
    assert 2 * sum(parts) == size
    # two heads, six ranks: each head three times
    assert cache_bytes(SMALL, 3, 77, Layout(6)) == size / 2


@pytest.mark.parametrize(
    "rows, new, seen, ranks", [(2, 48, 48, 1), (1, 128, 200, 1), (4, 16, 100, 1), (2, 48, 96, 2)]
)
def test_the_peak_of_a_pass_is_what_the_profiler_sees(rows, new, seen, ranks):
    cfg = RANK if ranks == 2 else SMALL
    model = use_attention(Llama(cfg), "sdpa")
    cache = KVCache(cfg, rows, seen)
    tokens = torch.zeros(rows, new, dtype=torch.int64)
    with torch.inference_mode():
        cache.length = seen - new
        model.hidden(tokens, cache)
        cache.length = seen - new
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            model.hidden(tokens, cache)
    now = peak = 0
    for event in sorted(
        profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()
    ):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert pass_bytes(SMALL, rows, new, seen, ranks, itemsize=4) == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_keeps_what_it_keeps(dtype, ranks):
    block, rows, kept = Block(RANK if ranks == 2 else SMALL).to(dtype), (3, 40), {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    rope = rope_table(SMALL, torch.arange(rows[1]))
    x = torch.randn(*rows, SMALL.dim, dtype=dtype, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x, rope, AttentionMask.causal(rows[1]), attend=BACKENDS["sdpa"].attend)
    none = {tensor.untyped_storage()._cdata for tensor in (*block.parameters(), *rope)}
    size = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in none)
    assert size == 120 * saved_bytes(SMALL, ranks, dtype.itemsize)


def test_training_keeps_sixteen_bytes_a_weight():
    model = Llama(SMALL)
    optimizer = adamw(model, Settings())
    model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()
    optimizer.step()
    state = [t for p in model.parameters() for t in optimizer.state[p].values() if t.numel() > 1]
    sizes = {
        "weights": sum(p.untyped_storage().nbytes() for p in model.parameters()),
        "gradients": sum(p.grad.untyped_storage().nbytes() for p in model.parameters()),
        "optimizer": sum(t.untyped_storage().nbytes() for t in state),
    }
    planned = largest_stage_memory(SMALL, Layout(), Job(1, 64, train=True))
    assert {name: planned[name] for name in sizes} == sizes


def test_pieces_work_together(ranks=2):
    """Rank by rank with the pieces' shapes, then the sum: the whole block."""
    block, x = Block(SMALL), torch.randn(2, 5, SMALL.dim)
    rope, mask = rope_table(SMALL, torch.arange(5)), AttentionMask.causal(5)
    attention = feed_forward = 0
    h = x + block.attention(block.attention_norm(x), rope, mask)
    for rank in range(ranks):
        part, state = Block(RANK), {}
        for name, whole in block.state_dict().items():
            shape = shard_shape(SMALL, f"blocks.0.{name}", ranks)
            along = next((d for d in range(whole.dim()) if shape[d] != whole.shape[d]), None)
            state[name] = whole if along is None else whole.chunk(ranks, along)[rank]
            assert tuple(state[name].shape) == shape
        part.load_state_dict(state)
        attention = attention + part.attention(block.attention_norm(x), rope, mask)
        feed_forward = feed_forward + part.feed_forward(block.ffn_norm(h))
    torch.testing.assert_close(x + attention, h, atol=1e-5, rtol=0)
    torch.testing.assert_close(h + feed_forward, block(x, rope, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("ranks", [1, 2, 8, 16, 128])
def test_all_ranks_hold_all_numbers(ranks):
    """What is cut is there once, norms on every rank, kv heads as often as there are ranks for
    each.
    """
    copies = max(ranks // BIG.n_kv_heads, 1)
    for name, shape in weight_shapes(BIG).items():
        times = (
            ranks if "norm" in name else copies if name.endswith(("wk.weight", "wv.weight")) else 1
        )
        assert ranks * prod(shard_shape(BIG, name, ranks)) == times * prod(shape), name


@pytest.mark.parametrize(
    "layers, pipeline", [(126, 16), (126, 2), (126, 4), (32, 3), (5, 5), (30, 1), (7, 4)]
)
def test_stages_share_all_layers_evenly(layers, pipeline):
    found = stages(layers, pipeline)
    assert [layer for stage in found for layer in stage] == list(range(layers))
    sizes = [len(stage) for stage in found]
    assert max(sizes) - min(sizes) <= 1 and sizes[0] <= max(sizes) and sizes[-1] == min(sizes)
    assert (layers, pipeline) != (126, 16) or sizes == [7, *[8] * 14, 7]  # as Meta deals them


@pytest.mark.parametrize("tied", [False, True])
def test_stages_hold_everything_once_but_a_tied_matrix(tied):
    cfg = replace(SMALL, tied_embeddings=tied)
    names = [name for stage in range(3) for name in shard_shapes(cfg, Layout(1, 3), stage)]
    assert (
        sorted(set(names)) == sorted(weight_shapes(cfg))
        and len(names) == len(weight_shapes(cfg)) + tied
    )


@pytest.mark.parametrize(
    "ranks, words", [(3, "128 heads"), (12, "128 heads"), (256, "128 heads"), (16, None)]
)
def test_what_does_not_divide_is_said(ranks, words):
    reason = indivisible(BIG, ranks)
    assert reason is None if words is None else words in reason
    assert "kv heads" in indivisible(
        replace(BIG, n_kv_heads=6, n_heads=24, ffn_dim=48, vocab_size=48), 4
    )


def operations(cfg, new, backward=False):
    with torch.device("meta"):
        model = Llama(cfg)
        with FlopCounterMode(display=False) as counter:
            logits = model(torch.zeros(1, new, dtype=torch.int64))
            if backward:
                logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["llama-3.1-8b", "smollm2-135m"])
def test_operations_are_those_that_pytorch_counts(name):
    cfg, new = LlamaConfig.named(name), 64
    times = pass_seconds(cfg, H100, Layout(), Job(1, new), 1, new)
    square = times["scores"] * new**2 / (new * (new + 1) / 2)
    assert (times["products"] + square) * H100.bf16 == pytest.approx(
        operations(cfg, new), rel=1e-12
    )


def test_a_training_step_does_what_pytorch_counts():
    found = (
        train_step_seconds(
            SMALL, H100, Layout(), Job(1, 64, train=True, activation_checkpointing=False)
        )
        * H100.bf16
    )
    assert found == pytest.approx(operations(SMALL, 64, backward=True), rel=1e-12)


def test_a_training_step_waits_for_links():
    """Tensor ranks beyond a server cost more than they save; FSDP alone is bound by what it gathers
    if rows are few.
    """
    job = Job(64, 8192, train=True)
    seconds = {
        layout: train_step_seconds(BIG, H100, layout, job)
        for layout in (Layout(8, 8), Layout(64), Layout(8, 1, 8))
    }
    assert (
        seconds[Layout(8, 1, 8)] < seconds[Layout(8, 8)]
        and 2 * seconds[Layout(8, 1, 8)] < seconds[Layout(64)]
    )
    moved = sum(size for _, size in sharded_collectives(BIG).values()) * 63 / 64
    assert train_step_seconds(BIG, H100, Layout(1, 1, 64), Job(64, 1, train=True)) == pytest.approx(
        moved / NETWORK_BANDWIDTH
    )


def test_a_decode_step_reads_the_weights_and_the_cache():
    times = pass_seconds(BIG, H100, Layout(8), Job(4, 8192), 4, 1)
    # the embedding is looked up
    read = weight_bytes(BIG, layout=Layout(8)) - 2 * 128_256 * 16_384 // 8
    assert times["weights"] == pytest.approx(read / 3.35e12, rel=1e-12)
    assert times["cache"] == pytest.approx(4 * 8192 * 516_096 / 8 / 3.35e12, rel=1e-12)
    assert times["weights"] > times["products"] and times["cache"] > times["scores"]


def test_a_prompt_in_pieces_reads_the_cache_piece_by_piece():
    # 512 are there, three pieces follow
    times = pass_seconds(BIG, H100, Layout(8), Job(1, 2048), 1, 1536)
    assert times["cache"] == pytest.approx((1024 + 1536 + 2048) * 516_096 / 8 / 3.35e12, rel=1e-12)


def sent_in_a_ring(ranks):
    """Play an all-reduce around a ring: what one rank has sent, as a share of the tensor; whether
    all have the sum.
    """
    values = [[rank + 10 * part for part in range(ranks)] for rank in range(ranks)]
    want = [sum(column) for column in zip(*values, strict=True)]
    sent = 0.0
    for step in range(2 * (ranks - 1)):
        messages = [
            (rank, (rank - step) % ranks, values[rank][(rank - step) % ranks])
            for rank in range(ranks)
        ]
        for rank, part, value in messages:
            target = values[(rank + 1) % ranks]
            target[part] = target[part] + value if step < ranks - 1 else value
        sent += 1 / ranks
    return sent, all(row == want for row in values)


@pytest.mark.parametrize("ranks", [2, 8, 16])
def test_an_all_reduce_sends_what_a_ring_sends(ranks):
    sent, right = sent_in_a_ring(ranks)
    speed, delay = (H100.link, 10e-6) if ranks <= 8 else (NETWORK_BANDWIDTH, 30e-6)
    bytes_ = 253 * 4 * 16_384 * 2
    assert right and link_seconds(BIG, H100, Layout(ranks), 4) == pytest.approx(
        sent * bytes_ / speed + 253 * delay
    )
    assert link_seconds(BIG, H100, Layout(1), 4) == 0


def test_collectives_by_hand():
    assert collectives(BIG, 3) == {
        "all_reduce": (253, 253 * 3 * 16_384 * 2),
        "all_gather": (1, 3 * 128_256 * 2),
    }
    block, ends = 3_187_703_808, 2 * 128_256 * 16_384 + 16_384
    assert sharded_collectives(BIG) == {
        "all_gather": (253, 2 * (2 * 126 * block + ends)),
        "reduce_scatter": (127, 4 * (126 * block + ends)),
    }


@pytest.mark.parametrize("stages_, rows", [(1, 4), (2, 4), (4, 8), (8, 8)])
def test_prompts_flow_through_the_stages_as_in_a_simulated_pipeline(stages_, rows):
    """Units of work one after another: a unit starts when its stage is free and its predecessor
    stage is done.
    """
    cfg, free_link = replace(SMALL, n_layers=8), replace(H100, link=1e30)
    job = Job(rows, 1024)
    units = min(rows, stages_) * 2
    group = rows // min(rows, stages_)
    work = pass_seconds(cfg, free_link, Layout(1, stages_), job, group, 1024)
    unit = (lower_bound(work) - work["links"]) / 2 / stages_  # a piece of a group at a stage
    free = [0.0] * stages_
    for _ in range(units):
        done = 0.0
        for stage in range(stages_):
            free[stage] = done = max(done, free[stage]) + unit
    want, found = free[-1], prefill_seconds(cfg, free_link, Layout(1, stages_), job)
    links = work["links"] * min(rows, stages_) / stages_ * (1 + (stages_ - 1) / units)
    assert found - links == pytest.approx(want, rel=1e-9)


def test_every_row_gets_a_token_each_time():
    """Two copies of two stages, eight rows: two in each group, and all get a token in the time of a
    pass.
    """
    job = Job(8, 8192)
    seconds, rate = decode_seconds(BIG, H100, Layout(8, 2, 2), job)
    assert seconds == lower_bound(pass_seconds(BIG, H100, Layout(8, 2, 2), job, 2, 1))
    assert rate * seconds == pytest.approx(8)


@pytest.mark.parametrize("pipeline, rows", [(1, 3), (4, 8), (4, 2), (3, 3)])
def test_rows_under_way_are_those_of_a_simulated_schedule(pipeline, rows):
    """One forward, one backward: a stage starts the next row only if it has fewer under way than
    stages from it on.
    """
    forward, backward, most = [0] * pipeline, [0] * pipeline, [0] * pipeline
    while min(backward) < rows:
        for stage in reversed(range(pipeline)):
            last = stage == pipeline - 1
            if backward[stage] < (forward[stage] if last else backward[stage + 1]):
                backward[stage] += 1
            elif forward[stage] < (rows if stage == 0 else forward[stage - 1]) and (
                forward[stage] - backward[stage] < pipeline - stage
            ):
                forward[stage] += 1
            most[stage] = max(most[stage], forward[stage] - backward[stage])
    cfg = replace(SMALL, n_layers=2 * pipeline)
    for stage in range(pipeline):
        kept = rank_memory(
            cfg,
            Layout(1, pipeline),
            Job(rows, 16, train=True, activation_checkpointing=False),
            stage,
        )["activations"]
        loss = 4 * 16 * cfg.vocab_size * (stage == pipeline - 1)
        assert kept - loss == 2 * saved_bytes(cfg) * 16 * most[stage]


def test_a_stage_does_not_make_a_token_faster_and_a_rank_does():
    token = {
        (t, p): decode_seconds(BIG, H100, Layout(t, p), Job(1, 8192))[0]
        for t, p in ((8, 1), (8, 2), (4, 2))
    }
    assert token[8, 2] > token[8, 1] and token[4, 2] > 1.5 * token[8, 1]


def test_metas_layouts_fit_and_the_others_do_not():
    assert "GB of 72.0" in why_infeasible(BIG, H100, Layout(8), Job(1, 8192))
    assert why_infeasible(BIG, H100, Layout(8, 2), Job(1, 8192)) is None
    assert why_infeasible(BIG, H100, Layout(8), Job(1, 8192, "fp8")) is None


@pytest.mark.parametrize("gpus", [1, 6, 16, 24])
@pytest.mark.parametrize("train", [False, True])
def test_a_plan_names_every_layout_once_with_times_or_a_reason(gpus, train):
    rows = plan(LlamaConfig.named("llama-3.1-8b"), H100, gpus, Job(8, 4096, train=train))
    found = sorted((row["tensor"], row["pipeline"], row["copies"]) for row in rows)
    sizes = range(1, gpus + 1)
    want = [(t, p, d) for t in sizes for p in sizes for d in sizes if t * p * d == gpus]
    assert found == want and len(layouts(gpus)) == len(want)
    for row in rows:
        assert (row["reason"] is None) == ("tokens_per_second" in row)
        if row["reason"] is None:
            assert sum(row["bytes"].values()) <= USABLE * H100.memory
    speeds = [row["tokens_per_second"] for row in rows if row["reason"] is None]
    assert speeds == sorted(speeds, reverse=True)


def test_dense_rates_of_the_data_sheets():
    """Sparse figures are twice these; fp8 is twice bf16 where the card has it."""
    for name, card in ACCELERATORS.items():
        assert (
            card.fp8 == card.bf16
            if name.startswith("a100")
            else card.fp8 / card.bf16 == pytest.approx(2, rel=0.02)
        )
        assert name.endswith(f"-{card.memory / 1e9:.0f}gb") and card.source
    assert H100.bf16 < 1000e12 and H100.link == 900e9 / 2


def test_stored_bytes_of_a_piece_are_a_share_of_the_whole():
    name = "blocks.1.feed_forward.down.weight"
    for form in ("bfloat16", "int4"):
        whole, part = (
            stored_bytes(BIG, name, weight_shapes(BIG)[name], form),
            stored_bytes(BIG, name, shard_shape(BIG, name, 16), form),
        )
        assert 16 * part == whole


COMMAND = [
    "plan",
    "llama-3.1-405b",
    "--gpus",
    "16",
    "--batch",
    "4",
    "--context",
    "131072",
    "--price",
    "2",
]


def test_the_command_prints_a_plan(capsys):
    assert cli.main(COMMAND) == 0
    out, err = capsys.readouterr()
    assert err == "" and max(map(len, out.splitlines())) <= 120
    first = next(line for line in out.splitlines() if line.startswith("   8 x   2 x     1"))
    assert "$/million" in out and "16 x   1 x     1  does not fit: 85.4 GB of 72.0" in out
    assert len(first.split()) == 5 + 5


def test_the_command_prints_json(capsys):
    assert cli.main([*COMMAND, "--json", "--efficiency", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    best, job = found["layouts"][0], Job(4, 131_072)
    seconds, rate = decode_seconds(BIG, H100, Layout(8, 2), job)
    assert best["token_seconds"] == pytest.approx(2 * seconds) and best[
        "tokens_per_second"
    ] == pytest.approx(rate / 2)
    assert best["dollars_per_million_tokens"] == pytest.approx(16 * 2 / 3600 / (rate / 2) * 1e6)
    assert found["asked"]["gpus"] == 16 and best["reason"] is None


def test_a_training_plan(capsys):
    assert cli.main(["plan", "llama-3.1-8b", "--gpus", "8", "--batch", "8", "--train"]) == 0
    out = capsys.readouterr().out
    assert "optimizer" in out and "s/step" in out and "   1 x   1 x     8" in out


def test_a_plan_without_a_layout_says_what_helps(capsys):
    assert cli.main(["plan", "llama-3.1-405b", "--gpus", "2"]) == 0
    assert "no layout fits" in capsys.readouterr().out


MISTAKES = {
    "an unknown size": (["llama-4"], "no size is named 'llama-4'"),
    "an unknown card": (["llama-3.1-8b", "--gpu", "abacus"], "no card is named 'abacus'"),
    "no cards": (["llama-3.1-8b", "--gpus", "0"], "--gpus must be from 1 to"),
    "too many cards": (["llama-3.1-8b", "--gpus", "999999999"], "--gpus must be from 1 to"),
    "no rows": (["llama-3.1-8b", "--batch", "-1"], "--batch must be from 1 to"),
    "a context beyond the model's": (["llama-3.1-8b", "--context", "131073"], "made for 131,072"),
    "a price of nothing": (["llama-3.1-8b", "--price", "0"], "--price must be a positive number"),
    "not a number": (["llama-3.1-8b", "--price", "nan"], "--price must be a positive number"),
    "more than everything": (
        ["llama-3.1-8b", "--efficiency", "1.1"],
        "--efficiency must be above 0",
    ),
    "training in few bits": (
        ["llama-3.1-8b", "--train", "--quantize", "int4"],
        "leave out --quantize",
    ),
    "keeping what is not there": (["llama-3.1-8b", "--no-recompute"], "needs --train"),
}


@pytest.mark.parametrize("args, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(args, words, capsys):
    assert cli.main(["plan", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("minillama: ") and words in err

"""Every way to attend beside float64, the table, what is reported, and a step that is one graph."""

import copy

import pytest
import torch
from attention_problems import GRID, LIMITS, attended, every_combination, off, problem
from helpers import random_ids, tiny_pair, with_attention
from recorder import Tape

import minillama
from minillama import KVCache, LlamaConfig
from minillama.attention import AttentionBackend
from minillama.inference import decode_graph
from minillama.inference.attention_backends import (
    BACKENDS,
    AttentionError,
    fused_attention,
    use_attention,
    use_fastest_attention,
)
from minillama.inference.compilation import CompileError
from minillama.inference.decode_graph import GraphStep, RecordedStep


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", GRID)
@pytest.mark.parametrize("name", BACKENDS)
def test_every_way_against_float64(name, shape, dtype):
    q, k, v, want = problem(*shape, dtype)
    assert off(attended(name, q, k, v, shape[4]), want) < LIMITS[dtype]


@pytest.fixture
def poisoned():
    """Memory that nobody has written yet is NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.ones(3).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", BACKENDS)
def test_every_combination_against_float64(name, dtype):
    """Fresh numbers for each, NaN behind the length and where answers are to be written."""
    shapes = list(every_combination())
    assert len(shapes) == 108
    for seed, shape in enumerate(shapes):
        q, k, v, want = problem(*shape, 64, dtype, seed)
        length = torch.tensor([shape[4]], dtype=torch.int32) if name == "fused" else shape[4]
        assert off(attended(name, q, k, v, length), want) < LIMITS[dtype], shape


@pytest.mark.parametrize("name", BACKENDS)
def test_a_length_on_the_device_says_the_same(name):
    q, k, v, want = problem(2, 8, 2, 5, 300, 512, 64, torch.float32)
    k, v = (x.nan_to_num() for x in (k, v))  # what a cache has behind its length: zeros
    assert off(attended(name, q, k, v, torch.tensor([300], dtype=torch.int32)), want) < 1e-5


def test_our_operation_is_a_good_citizen_of_pytorch():
    q, k, v, _ = problem(1, 4, 2, 3, 5, 9, 16, torch.float32)
    torch.library.opcheck(
        fused_attention, (q, k.nan_to_num(), v.nan_to_num(), torch.tensor([5], dtype=torch.int32))
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return tiny_pair(tmp_path_factory.mktemp("tiny"))


def in_pieces(model, ids, *sizes):
    cache = KVCache(model.cfg, 1, ids.shape[1] + 3)
    with torch.inference_mode():
        return torch.cat([model(piece, cache)[0] for piece in ids.split(list(sizes), dim=1)])


@pytest.mark.parametrize("name", BACKENDS)
def test_logits_are_transformers(pair, name):
    reference, model = pair
    chosen, ids = with_attention(model, name), random_ids(40)
    with torch.inference_mode():
        want = reference(ids).logits[0]
        assert (chosen(ids)[0] - want).abs().max() < 1e-5
    assert (in_pieces(chosen, ids, 20, 15, 1, 1, 1, 1, 1) - want).abs().max() < 1e-5
    assert chosen.ran == {name: 7}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_step_as_one_graph_is_transformers(pair, name):
    reference, model = pair
    graph, ids = with_attention(model, name, one_graph=True), random_ids(30)
    with torch.inference_mode():
        want = reference(ids).logits[0]
    for _ in range(2):
        assert (in_pieces(graph, ids, 10, *[1] * 20) - want).abs().max() < 1e-5
    assert graph.decode_step.rewritten == {"compiled": 1}, (
        "one graph for every layer, position and cache"
    )
    assert graph.ran == {name: 2, f"{name}, as one graph": 40}


def test_the_cache_stays_where_it_is(pair):
    _, model = pair
    graph, cache = with_attention(model, "fused", one_graph=True), KVCache(model.cfg, 1, 20)
    with torch.inference_mode():
        graph(random_ids(5), cache)
        before, place = cache.keys.clone(), cache.keys.data_ptr()
        graph(random_ids(1), cache)
    changed = (cache.keys != before).any(-1).any(0).any(0).any(0)
    assert cache.keys.data_ptr() == place and changed.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("name", BACKENDS)
def test_one_recording_serves_every_position(pair, name):
    """Nothing is read on the host, no number of a position is frozen, and every address stays:
    without a GPU.
    """
    reference, model = pair
    graph, ids, cache = with_attention(model, name, True), random_ids(30), KVCache(model.cfg, 1, 33)
    with torch.no_grad():
        want = reference(ids).logits[0]
        graph(ids[:, :10], cache)
        step = RecordedStep(graph, graph.decode_step.block, cache)
        step.once()
        with Tape() as tape:
            out = step.once()
        for position in range(10, 30):
            step.token.copy_(ids[:, position : position + 1])
            step.slot.fill_(position)
            tape.replay()
            assert (model.head(out)[0, 0] - want[position]).abs().max() < 1e-5


def test_caches_of_many_sizes_and_many_models():
    """torch.compile keeps eight versions of one piece of code; conversations and models may be
    more.
    """
    model = minillama.Llama(LlamaConfig(32, 1, 2, 1, 16, 32, 96)).eval()
    ids = random_ids(5, vocab_size=96)
    with torch.inference_mode():
        want = model(ids)[0, -1]
        for first in (True, *[False] * 9):
            graph = with_attention(model, "fused", one_graph=True)
            for slots in range(5, 17) if first else (5, 9):
                cache = KVCache(model.cfg, 1, slots)
                graph(ids[:, :4], cache)
                assert (graph(ids[:, 4:], cache)[0, 0] - want).abs().max() < 1e-5
            assert graph.decode_step.rewritten == {"compiled": 1}


def test_a_pattern_that_is_not_there_is_an_error(pair, monkeypatch):
    _, model = pair
    rules = decode_graph.rules(torch.float32, model.cfg.norm_eps)
    wrong = rules | {"norm": (*rules["norm"][:2], 3)}
    monkeypatch.setattr(decode_graph, "rules", lambda *_: wrong)
    with pytest.raises(Exception, match="norm is in the graph of a block 2 times, not 3"):
        in_pieces(with_attention(model, "fused", one_graph=True), random_ids(3), 2, 1)


def test_rows_with_filler_go_the_plain_way_and_it_is_said(pair):
    _, model = pair
    prompts = [random_ids(9)[0].tolist(), random_ids(4)[0].tolist()]
    want = minillama.generate_batch(model, prompts, 6)
    chosen = with_attention(model, "fused")
    assert minillama.generate_batch(chosen, prompts, 6) == want and chosen.ran["naive"] == 6


def test_ways_that_there_are_not():
    cfg = LlamaConfig(64, 1, 4, 2, 16, 128, 96)
    with pytest.raises(AttentionError, match="one of naive, blocks, sdpa, fused, not 'flash'"):
        use_attention(minillama.Llama(cfg), "flash")


def test_a_way_that_fails_is_never_replaced_in_silence(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel\nlong story")

    monkeypatch.setitem(BACKENDS, "sdpa", AttentionBackend("sdpa", broken))
    model = minillama.Llama(LlamaConfig(64, 1, 4, 2, 16, 128, 96))
    with pytest.raises(AttentionError, match="^no sdpa attention here: no kernel$"):
        use_attention(model, "sdpa")
    assert use_fastest_attention(model) == ["no sdpa attention here: no kernel"]
    assert model.attention_backend.name == "naive"


def test_quantized_models_are_no_graph(pair):
    _, model = pair
    with pytest.raises(CompileError, match="not quantized"):
        GraphStep(minillama.inference.quantization.quantize(copy.deepcopy(model), bits=8))


def test_real_weights_in_every_way(ours, smollm2_path):
    model, tokenizer = minillama.load(smollm2_path)
    ids = tokenizer.encode("The three largest cities of Italy are Rome,")
    want = list(minillama.generate(ours[0], ids, 20))
    with torch.inference_mode():
        logits = ours[0](torch.tensor([ids]))
    for name in BACKENDS:
        use_attention(model, name)
        with torch.inference_mode():
            assert (model(torch.tensor([ids])) - logits).abs().max() < 2e-4
        assert list(minillama.generate(model, ids, 6)) == want[:6]
    model.decode_step = GraphStep(model)
    assert list(minillama.generate(model, ids, 20)) == want


def test_real_weights_in_bfloat16(ours, smollm2_path):
    """The fused path is as far from float32 as 16 bits are (0.025 here, as the naive path); so is
    what it writes.
    """
    graph, tokenizer = minillama.load(smollm2_path, dtype=torch.bfloat16, attention="fused")
    graph.decode_step = GraphStep(graph)
    ids = tokenizer.encode(
        "The sea was calm, and the boat went on through the night without a light."
    )
    cache = KVCache(graph.cfg, 1, len(ids), torch.bfloat16)
    with torch.inference_mode():
        want = ours[0](torch.tensor([ids]))[0]
        pieces = torch.tensor([ids]).split([6] + [1] * (len(ids) - 6), dim=1)
        got = torch.cat([graph(piece, cache)[0] for piece in pieces])
    assert off(got, want.double()) < 4e-2
    written = list(minillama.generate(graph, ids, 12))
    with torch.inference_mode():
        scores = ours[0](torch.tensor([ids + written]))[0, len(ids) - 1 : -1]
    behind = scores.amax(-1) - scores[range(12), written]  # of float32's own choice
    assert behind.max() < 2 * (got - want).abs().max()
    assert set(graph.ran) == {"fused", "fused, as one graph"}

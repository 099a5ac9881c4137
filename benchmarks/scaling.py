"""What do more ranks bring? Tensor-parallel passes and FSDP steps of chapter 17a on this machine's
cores; medians.

    python benchmarks/scaling.py [--ranks 1 2] [--repeats 9] [--json FILE]

A Llama of 20 million weights, float32. Every rank is a process of one thread. *Strong* scaling: the
same work whatever the number of ranks; *weak*: so much for each rank. The ratio is that of work per
second to the plain model's, in one process of one thread and without chapter 17a; divided by the
ranks it is their efficiency. The plain process and the groups of ranks take turns, so that the
machine's moods meet all of them.

Collectives are counted with the bytes of the whole tensors that they are about. Their share of the
time is measured in passes of their own, which are not timed otherwise: there a rank waits for each
message as soon as it has asked for it, and the share is all of that, the wait for a slower rank
among it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from minillama import KVCache, Llama, LlamaConfig
from minillama.distributed import fsdp, parallel
from minillama.training.loss import count_targets, token_loss
from minillama.training.optimizer import Settings, adamw, train_step
from minillama.training.packing import packed_logits, shift


CFG = LlamaConfig(
    dim=512, n_layers=6, n_heads=8, n_kv_heads=4, head_dim=64, ffn_dim=1408, vocab_size=4096
)
# tokens: of a prompt, of the answer after it, of a row in training
PROMPT, ANSWER, ROW = 256, 8, 128
TASKS = {"prompt": 1, "answer": 1, "training": 4}  # rows, in all or for each rank
WORK = [(task, scaling) for task in TASKS for scaling in ("strong", "weak")]


class Spent(parallel.CollectiveCounter):
    """As CollectiveCounter, and the seconds from asking for messages to having them."""

    seconds = 0.0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        start = time.perf_counter()
        out = super().__torch_dispatch__(operation, types, args, kwargs)
        if out is NotImplemented or "c10d" not in operation.namespace:
            return out
        for each in out if isinstance(out, tuple | list) else [out]:
            # subtle: c10d's operations return a promise, others a tensor
            if isinstance(each, torch.ScriptObject):
                each.wait()
            elif "functional" in operation.namespace and "wait" not in operation.name():
                torch.ops._c10d_functional.wait_tensor(each)
        self.seconds += time.perf_counter() - start
        return out


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(CFG.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def prompt(model, mesh, rows: int) -> None:
    model(ids(rows, PROMPT))


@torch.no_grad()
def answer(model, mesh, rows: int) -> None:
    cache, tokens = KVCache(model.cfg, rows, PROMPT + ANSWER), ids(rows, ANSWER)
    cache.length = PROMPT
    for token in tokens.split(1, dim=1):
        model(token, cache)


def step(learner, mesh, rows: int) -> None:
    """A step as `fit` makes it, on this rank's share of the rows."""
    model, optimizer, settings = learner
    tokens = ids(rows, ROW + 1)
    batch, weigh = shift(tokens, torch.zeros_like(tokens)), count_targets
    loss_of = lambda m, b: token_loss(packed_logits(m, b[0], b[2]), b[1])  # noqa: E731
    if mesh:
        batch = tuple(part[mesh.get_local_rank() :: mesh.size()] for part in batch)
        loss_of, weigh = fsdp.packed_loss, fsdp.all_targets
    train_step(model, loss_of, [batch], optimizer, settings, 1e-4, weigh)


def jobs(mesh) -> dict:
    """Task -> what does it on so many rows."""
    torch.manual_seed(0)
    speaker, pupil, settings = Llama(CFG).eval(), Llama(CFG), Settings()
    if mesh:
        speaker, pupil = parallel.parallelize(speaker, mesh), fsdp.shard(pupil, mesh)
    learner = pupil, adamw(pupil, settings), settings
    calls = {"prompt": (prompt, speaker), "answer": (answer, speaker), "training": (step, learner)}
    return {task: partial(call, model, mesh) for task, (call, model) in calls.items()}


def serve(pipe, mesh) -> None:
    """Do what is asked for; answer with its seconds, or with those spent in messages, and the
    messages.
    """
    calls = jobs(mesh)
    while asked := pipe.recv():
        task, rows, counted = asked
        start = time.perf_counter()
        if counted:
            with Spent() as spent:
                calls[task](rows)
            pipe.send((time.perf_counter() - start, spent.seconds, spent.seen))
        else:
            calls[task](rows)
            pipe.send((time.perf_counter() - start, 0.0, {}))


def work(pipe, rank: int, count: int, folder: str) -> None:
    """A rank's process; count 0: the plain model, alone."""
    torch.set_num_threads(1)
    if count == 0:
        return serve(pipe, None)
    with parallel.ranks(
        600, init_method=(Path(folder) / f"meet-{count}").as_uri(), rank=rank, world_size=count
    ) as mesh:
        serve(pipe, mesh)


def started(count: int, folder: str) -> list:
    """The pipes of a group's processes."""
    context, pipes = multiprocessing.get_context("spawn"), []
    for rank in range(max(1, count)):
        here, there = context.Pipe()
        context.Process(target=work, args=(there, rank, count, folder), daemon=True).start()
        pipes.append(here)
    return pipes


def ask(pipes: list, task: str, rows: int, counted: bool) -> tuple[float, float, dict]:
    """(seconds of the slowest rank, the largest share of messages, the messages of a rank) of one
    job.
    """
    for pipe in pipes:
        pipe.send((task, rows, counted))
    found = [pipe.recv() for pipe in pipes]
    return max(each[0] for each in found), max(each[1] / each[0] for each in found), found[0][2]


def measure(counts: list[int], repeats: int) -> list[dict]:
    """A row for each task, kind of scaling and number of ranks; 0 ranks are the plain model. Two
    turns do not count.
    """
    times, shares, messages = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        groups = {count: started(count, folder) for count in counts}
        for turn in tqdm(range(repeats + 2), desc="turns", disable=None):
            for task, scaling in WORK:
                for count, pipes in groups.items():
                    key, rows = (
                        (task, scaling, count),
                        TASKS[task] * (max(1, count) if scaling == "weak" else 1),
                    )
                    seconds, (_, share, seen) = (
                        ask(pipes, task, rows, False)[0],
                        ask(pipes, task, rows, True),
                    )
                    if turn >= 2:
                        times.setdefault(key, []).append(seconds)
                        shares.setdefault(key, []).append(share)
                        messages[key] = seen
        for pipes in groups.values():
            for pipe in pipes:
                pipe.send(None)
    return [row_of(key, times, statistics.median(shares[key]), messages[key]) for key in times]


def row_of(key: tuple, times: dict, share: float, messages: dict) -> dict:
    """What is written about one of them."""
    task, scaling, count = key
    plain, here = (statistics.median(times[task, scaling, n]) for n in (0, count))
    more = max(1, count) if scaling == "weak" else 1  # times the work
    return {
        "task": task,
        "scaling": scaling,
        "ranks": count,
        "seconds": here,
        "best": min(times[key]),
        "ratio": more * plain / here,
        "efficiency": more * plain / here / max(1, count),
        "messages_share": share,
        "messages": sum(n for n, _ in messages.values()),
        "bytes": sum(size for _, size in messages.values()),
    }


def show(rows: list[dict]) -> None:
    print(
        "task      scaling  ranks  seconds   ratio  efficiency  messages' share  messages       MB"
    )
    for row in rows:
        name = f"{row['ranks'] or 'plain':>5}"
        print(
            f"{row['task']:9} {row['scaling']:7}  {name}  {row['seconds']:7.4f}  "
            f"{row['ratio']:6.2f}  "
            f"{row['efficiency']:10.0%}  {row['messages_share']:15.0%}  {row['messages']:8}  "
            f"{row['bytes'] / 1e6:7.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = os.cpu_count() or 1
    most = [count for count in (1, 2, 4) if count <= cores]
    parser.add_argument(
        "--ranks", type=int, nargs="+", choices=(1, 2, 4), default=most, help="(%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    # processes that others keep running
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rows = measure([0, *args.ranks], args.repeats)
    show(rows)
    if args.json:
        about = {
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "cores": cores,
            "load_before": busy,
            "repeats": args.repeats,
        }
        Path(args.json).write_text(
            json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()

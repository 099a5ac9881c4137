"""Scaling: from 8B to 405B, on paper first.

Written by notebooks/17_scaling.ipynb: edit it there.
"""

from dataclasses import asdict
from math import ceil, prod

from minillama.config import LlamaConfig
from minillama.distributed.accelerators import (
    GPUS_PER_SERVER,
    LINK_LATENCY,
    NETWORK_BANDWIDTH,
    NETWORK_LATENCY,
    Accelerator,
)
from minillama.distributed.layout import (
    Layout,
    collectives,
    shard_shape,
    sharded_collectives,
    weight_shapes,
)
from minillama.distributed.memory import (
    Job,
    cache_bytes,
    is_fp8,
    largest_stage_memory,
    stored_bytes,
    why_infeasible,
)
from minillama.generation import PREFILL_CHUNK
from minillama.training.flops import flops_per_token


def pass_seconds(
    cfg: LlamaConfig, gpu: Accelerator, layout: Layout, job: Job, rows: int, new: int
) -> dict[str, float]:
    """Lower bounds, by part, for a pass of rows x new tokens, the last of job.context, through all
    stages.
    """
    t, chunks, before = layout.tensor, ceil(new / PREFILL_CHUNK), job.context - new
    # no product, only a few rows
    used = [n for n in weight_shapes(cfg) if n != "embedding.weight" or cfg.tied_embeddings]
    read = sum(stored_bytes(cfg, name, shard_shape(cfg, name, t), job.form) for name in used)
    matrices = {name: prod(shard_shape(cfg, name, t)) for name in used if "norm" not in name}
    eight = sum(size for name, size in matrices.items() if job.form == "fp8" and is_fp8(cfg, name))
    pairs = rows * (new * before + new * (new + 1) / 2)
    # slots read, chunk by chunk
    seen = rows * chunks * (before + (new + min(new, PREFILL_CHUNK)) / 2)
    return {
        "weights": read * chunks / gpu.bandwidth,
        "products": 2
        * rows
        * new
        * (eight / gpu.fp8 + (sum(matrices.values()) - eight) / gpu.bf16),
        "cache": seen * cache_bytes(cfg, 1, 1, Layout(t)) / gpu.bandwidth,
        "scores": 4 * cfg.n_layers * cfg.n_heads * cfg.head_dim * pairs / t / gpu.bf16,
        "links": link_seconds(cfg, gpu, layout, rows * new, chunks),
    }


def link_seconds(
    cfg: LlamaConfig, gpu: Accelerator, layout: Layout, tokens: int, passes: int = 1
) -> float:
    """The all-reduces of tensor ranks in a ring, and the messages from stage to stage."""
    t, (count, size) = layout.tensor, collectives(cfg, tokens)["all_reduce"]
    speed, delay = (
        (gpu.link, LINK_LATENCY) if t <= GPUS_PER_SERVER else (NETWORK_BANDWIDTH, NETWORK_LATENCY)
    )
    ring = 2 * (t - 1) / t * size / speed + count * passes * delay if t > 1 else 0.0
    speed, delay = (
        (gpu.link, LINK_LATENCY)
        if t * layout.pipeline <= GPUS_PER_SERVER
        else (NETWORK_BANDWIDTH, NETWORK_LATENCY)
    )
    return ring + (layout.pipeline - 1) * (tokens * cfg.dim * 2 / speed + passes * delay)


def lower_bound(parts: dict[str, float]) -> float:
    """Seconds that a pass takes at least: reading and computing overlap; matrices, attention and
    links follow one another.
    """
    return (
        max(parts["weights"], parts["products"])
        + max(parts["cache"], parts["scores"])
        + parts["links"]
    )


def decode_seconds(
    cfg: LlamaConfig, gpu: Accelerator, layout: Layout, job: Job
) -> tuple[float, float]:
    """(seconds a token at least, tokens a second at most) at the end of the context; a group of
    rows at each stage.
    """
    group = ceil(job.rows / layout.copies / layout.pipeline)
    seconds = lower_bound(pass_seconds(cfg, gpu, layout, job, group, 1))
    return seconds, job.rows / seconds


def prefill_seconds(cfg: LlamaConfig, gpu: Accelerator, layout: Layout, job: Job) -> float:
    """Seconds at least until prompts of job.context tokens are read in all rows, one chunk after
    another.
    """
    rows, p = ceil(job.rows / layout.copies), layout.pipeline
    groups = min(rows, p) * ceil(job.context / PREFILL_CHUNK)
    group = ceil(rows / min(rows, p))
    work = lower_bound(pass_seconds(cfg, gpu, layout, job, group, job.context)) * min(rows, p)
    return work / p * (1 + (p - 1) / groups)


def train_step_seconds(cfg: LlamaConfig, gpu: Accelerator, layout: Layout, job: Job) -> float:
    """Seconds a step of training takes at least; activation checkpointing repeats the forward pass;
    FSDP's messages overlap.
    """
    rows, t, p = ceil(job.rows / layout.copies), layout.tensor, layout.pipeline
    operations = (
        rows
        * job.context
        * flops_per_token(cfg, job.context)
        * (4 / 3 if job.activation_checkpointing else 1)
    )
    ring = link_seconds(cfg, gpu, layout, rows * job.context, rows) * (
        3 if job.activation_checkpointing else 2
    )  # each pass has as many
    moved = (
        sum(size for _, size in sharded_collectives(cfg).values())
        / (t * p)
        * (1 - 1 / layout.copies)
    )
    speed = gpu.link if t * p * layout.copies <= GPUS_PER_SERVER else NETWORK_BANDWIDTH
    return max((operations / t / gpu.bf16 + ring) / p * (1 + (p - 1) / rows), moved / speed)


def layouts(gpus: int) -> list[Layout]:
    """Every way to write the number of cards as tensor ranks x stages x copies."""
    some = [n for n in range(1, gpus + 1) if gpus % n == 0]
    return [
        Layout(t, p, gpus // (t * p)) for t in reversed(some) for p in some if gpus // t % p == 0
    ]


def plan(cfg: LlamaConfig, gpu: Accelerator, gpus: int, job: Job) -> list[dict]:
    """For each layout: its parts of memory, and its times at least, or the reason why it cannot be.
    Best ones first.
    """
    found = []
    for layout in layouts(gpus):
        row = asdict(layout) | {"reason": why_infeasible(cfg, gpu, layout, job)}
        if row["reason"] is None:
            row["bytes"] = largest_stage_memory(cfg, layout, job)
            if job.train:
                row["step_seconds"] = train_step_seconds(cfg, gpu, layout, job)
                row["tokens_per_second"] = job.rows * job.context / row["step_seconds"]
            else:
                row["token_seconds"], row["tokens_per_second"] = decode_seconds(
                    cfg, gpu, layout, job
                )
                row["prefill_seconds"] = prefill_seconds(cfg, gpu, layout, job)
        found.append(row)
    return sorted(
        found, key=lambda row: (row["reason"] is not None, -row.get("tokens_per_second", 0))
    )

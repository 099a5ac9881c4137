"""Scaling: from 8B to 405B, on paper first.

Written by notebooks/17_scaling.ipynb: edit it there.
"""

from dataclasses import dataclass
from math import ceil, prod

from minillama.config import LlamaConfig
from minillama.distributed.accelerators import USABLE, Accelerator
from minillama.distributed.layout import (
    Layout,
    indivisible,
    shard_shape,
    shard_shapes,
    stages,
    weight_shapes,
)
from minillama.generation import PREFILL_CHUNK


def is_fp8(cfg: LlamaConfig, name: str) -> bool:
    """Whether Meta's FP8 model stores that weight in FP8: feed-forward layers, but for the first
    and last block's.
    """
    return ".feed_forward." in name and int(name.split(".")[1]) not in (0, cfg.n_layers - 1)


def stored_bytes(cfg: LlamaConfig, name: str, shape: tuple[int, ...], form: str) -> int:
    """Bytes of a tensor, or of a rank's shard of it, as float32, bfloat16, fp8, int8 or int4."""
    numbers, matrix = prod(shape), name.startswith("blocks.") and len(shape) == 2
    head = name == ("embedding.weight" if cfg.tied_embeddings else "head.weight")
    if form == "float32":
        return 4 * numbers
    if form == "int4" and matrix:
        return numbers // 2 + 4 * (numbers // 32)
    if form in ("int8", "int4") and (matrix or head):
        return numbers + 2 * shape[0]
    if form == "fp8" and is_fp8(cfg, name):
        return numbers + 4 * shape[0]
    return 2 * numbers


def cache_bytes(
    cfg: LlamaConfig, rows: int, tokens: int, layout: Layout = Layout(), stage=0, itemsize=2
) -> int:
    """Bytes of a rank's keys and values: rows x tokens slots, its layers, its kv heads; itemsize:
    bytes of each.
    """
    layers = len(stages(cfg.n_layers, layout.pipeline)[stage])
    heads = max(cfg.n_kv_heads // layout.tensor, 1)
    return 2 * layers * rows * heads * tokens * cfg.head_dim * itemsize


def pass_bytes(cfg: LlamaConfig, rows: int, new: int, seen: int, tensor=1, itemsize=2) -> int:
    """Peak of the activations while rows x new tokens go through the blocks and look at `seen`
    (fused attention).
    """
    ffn = cfg.ffn_dim // tensor
    vectors = rows * new * itemsize * (3 * cfg.dim + max(3 * ffn, ffn + cfg.dim))
    mask = seen if seen > new else 0  # fused attention of a whole text needs no table
    return vectors + new * (4 * cfg.head_dim + mask + 8)


def saved_bytes(cfg: LlamaConfig, tensor=1, itemsize=2) -> int:
    """What a block keeps of each token for the backward pass, in bytes on each of `tensor` ranks
    (fused attention).
    """
    kv, heads = max(cfg.n_kv_heads // tensor, 1), cfg.n_heads // tensor
    norms = 2 * (4 * cfg.dim + 4 + 2 * itemsize * cfg.dim)  # every rank has the whole stream
    return (
        norms
        + itemsize * ((3 * heads + 2 * kv) * cfg.head_dim + 4 * cfg.ffn_dim // tensor)
        + 4 * heads
    )


def weight_bytes(
    cfg: LlamaConfig, form: str = "bfloat16", layout: Layout = Layout(), stage: int = 0
) -> int:
    """Bytes of the weights that a rank of a stage holds."""
    return sum(
        stored_bytes(cfg, name, shape, form)
        for name, shape in shard_shapes(cfg, layout, stage).items()
    )


@dataclass(frozen=True)
class Job:
    """What to run: batch size, tokens in each row, how weights are stored; training, with or
    without activation checkpointing.
    """

    rows: int = 1
    context: int = 8192
    form: str = "bfloat16"
    train: bool = False
    activation_checkpointing: bool = True


def rank_memory(cfg: LlamaConfig, layout: Layout, job: Job, stage: int = 0) -> dict[str, float]:
    """Bytes of a rank of a stage, by part."""
    if job.train:
        return training_memory(cfg, layout, job, stage)
    rows, new = ceil(job.rows / layout.copies), min(PREFILL_CHUNK, job.context)
    return {
        "weights": weight_bytes(cfg, job.form, layout, stage),
        "cache": cache_bytes(cfg, rows, job.context, layout, stage),
        "activations": pass_bytes(
            cfg, ceil(rows / layout.pipeline), new, job.context, layout.tensor
        ),
    }


def training_memory(cfg: LlamaConfig, layout: Layout, job: Job, stage: int) -> dict[str, float]:
    """The same for a training step of chapter 13's kind, with FSDP over the copies."""
    rows = ceil(job.rows / layout.copies)
    everything = sum(map(prod, shard_shapes(cfg, layout, stage).values()))
    layers, share = len(stages(cfg.n_layers, layout.pipeline)[stage]), everything / layout.copies
    block = sum(
        prod(shard_shape(cfg, n, layout.tensor))
        for n in weight_shapes(cfg)
        if n.startswith("blocks.0.")
    )
    ends = everything - layers * block
    under_way = min(layout.pipeline - stage, rows) * job.context  # tokens
    whole = saved_bytes(cfg, layout.tensor)
    kept = (
        layers * 2 * cfg.dim * under_way + whole * job.context
        if job.activation_checkpointing
        else layers * whole * under_way
    )
    if stage == layout.pipeline - 1:
        kept += 4 * job.context * cfg.vocab_size // layout.tensor  # of the loss
    state = {"weights": 4 * share, "gradients": 4 * share, "optimizer": 8 * share}
    return state | {"gathered": 2 * (2 * block + ends) * (layout.copies > 1), "activations": kept}


def largest_stage_memory(cfg: LlamaConfig, layout: Layout, job: Job) -> dict[str, float]:
    """The parts of memory of the stage that needs most."""
    each = [rank_memory(cfg, layout, job, stage) for stage in range(layout.pipeline)]
    return max(each, key=lambda parts: sum(parts.values()))


def why_infeasible(cfg: LlamaConfig, gpu: Accelerator, layout: Layout, job: Job) -> str | None:
    """Why the job cannot run with this layout; None if it can."""
    if layout.pipeline > cfg.n_layers:
        return f"{cfg.n_layers} layers are too few for {layout.pipeline} stages"
    if layout.copies > job.rows:
        return f"{layout.copies} copies would share a batch of {job.rows}"
    if reason := indivisible(cfg, layout.tensor):
        return reason
    parts = {
        name: size / 1e9 for name, size in largest_stage_memory(cfg, layout, job).items() if size
    }
    if (total := sum(parts.values())) > USABLE * gpu.memory / 1e9:
        largest = ", ".join(
            f"{name} {size:.1f}" for name, size in sorted(parts.items(), key=lambda p: -p[1])[:2]
        )
        return f"{total:.1f} GB of {USABLE * gpu.memory / 1e9:.1f} ({largest})"

"""17a. Parallel: one model on several ranks.

Written by notebooks/17a_parallel.ipynb: edit it there.
"""

import os
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillama.checkpoints.assemble import skeleton
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.hugging_face import (
    heads_of,
    interleave,
    open_hugging_face,
    safetensors_folder,
)
from minillama.checkpoints.meta_shards import DTYPES
from minillama.checkpoints.names import HUGGING_FACE, rename
from minillama.checkpoints.tensors import SLICE, StoredTensor, n_bytes
from minillama.config import LlamaConfig
from minillama.distributed.layout import indivisible
from minillama.model import Llama


class ParallelError(ValueError):
    """Ranks that cannot work together: one line that says why and what to do."""


COLUMN_PARALLEL = (
    "attention.wq",
    "feed_forward.gate",
    "feed_forward.up",
)  # column-parallel: each rank has some outputs
ROW_PARALLEL = (
    "attention.wo",
    "feed_forward.down",
)  # row-parallel: each rank has some inputs, and the results are added up


def kv_mesh(cfg: LlamaConfig, mesh: DeviceMesh) -> DeviceMesh:
    """The ranks among which wk and wv are dealt out: all, or, if they outnumber the kv heads, one
    for each head.

    In the second case each rank r is in such a group, at the place of its head, r * K // ranks.
    """
    heads, count = cfg.n_kv_heads, mesh.size()
    if heads % count == 0:
        return mesh
    return init_device_mesh(
        mesh.device_type, (heads, count // heads), mesh_dim_names=("heads", "copies")
    )["heads"]


def parallelize(model: Llama, mesh: DeviceMesh, repeat_kv: bool = False) -> Llama:
    """Leave each rank its piece of every matrix, in place; what goes in and comes out is whole and
    equal on all.

    Afterwards model.cfg counts the rank's own heads, so that a KVCache made from it fits, and
    model.whole all of them. repeat_kv: allow more ranks than kv heads, each of which then is on
    several; such a model has no gradients. ParallelError where something does not divide.
    """
    cfg, count = model.cfg, mesh.size()
    if reason := indivisible(cfg, count):
        raise ParallelError(reason)
    if count > cfg.n_kv_heads and not repeat_kv:
        on = count // cfg.n_kv_heads
        several = f"take {cfg.n_kv_heads}, or in Python repeat_kv=True, each on {on} of them"
        raise ParallelError(f"{cfg.n_kv_heads} kv heads are too few for {count} ranks; {several}")
    column, row = ColwiseParallel(), RowwiseParallel()
    plan = {"embedding": RowwiseParallel(input_layouts=Replicate())} | {
        f"blocks.*.{name}": column for name in COLUMN_PARALLEL
    }
    plan |= {f"blocks.*.{name}": row for name in ROW_PARALLEL} | {
        "head": ColwiseParallel(output_layouts=Replicate())
    }
    # None: every rank has the whole, or nothing yet
    parallelize_module(model, mesh, plan, src_data_rank=None)
    kv = {f"blocks.*.attention.{name}": column for name in ("wk", "wv")}
    parallelize_module(model, kv_mesh(cfg, mesh), kv, src_data_rank=None)
    if cfg.tied_embeddings:
        model.head.weight = model.embedding.weight
    model.requires_grad_(count <= cfg.n_kv_heads)
    model.whole = cfg
    model.cfg = replace(
        cfg, n_heads=cfg.n_heads // count, n_kv_heads=max(cfg.n_kv_heads // count, 1)
    )
    return model


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor, which may be cut or not."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_over_ranks(value: float) -> float:
    """The sum of all ranks' values."""
    total = torch.tensor(
        value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu"
    )
    dist.all_reduce(total)
    return total.item()


COLLECTIVES = {"reduce_scatter": "reduce_scatter", "allreduce": "all_reduce",
    "all_reduce": "all_reduce", "allgather": "all_gather", "all_gather": "all_gather"}  # fmt: skip


class CollectiveCounter(TorchDispatchMode):
    """Counts collectives while it is active; seen: kind -> (count, bytes of the
    whole tensors).
    """

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if DTensor in types:
            # subtle: let DTensor first turn it into operations on this rank's pieces
            return NotImplemented
        out = operation(*args, **(kwargs or {}))
        if "c10d" in operation.namespace:
            kind = next(
                (kind for word, kind in COLLECTIVES.items() if word in operation.name()), None
            )
            tensors = [each for each in tree_leaves((args, out)) if isinstance(each, torch.Tensor)]
            if kind and tensors:
                times, size = self.seen.get(kind, (0, 0))
                self.seen[kind] = times + 1, size + max(each.nbytes for each in tensors)
        return out


@contextmanager
def ranks(seconds: float = 600, **where):
    """All processes that torchrun has started, as a mesh of one dimension: gloo on processors, nccl
    on GPUs.

    seconds: how long a rank waits for the others. where: for init_process_group, if torchrun's
    variables do not say it. ParallelError if there are no others, and inside, if one of them dies
    or is silent for too long.
    """
    if not where and "RANK" not in os.environ:
        raise ParallelError(
            "there are no ranks: start this with torchrun --standalone --nproc-per-node 2 ..."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    where = {"backend": "nccl" if device == "cuda" else "gloo"} | where
    try:
        dist.init_process_group(timeout=timedelta(seconds=seconds), **where)
    except dist.DistError:
        raise ParallelError(
            f"the ranks did not all meet within {seconds:g} seconds: are all started?"
        ) from None
    rank = dist.get_rank()
    try:
        yield init_device_mesh(device, (dist.get_world_size(),))
        with suppress(RuntimeError):  # one that has met a mistake has left already, and said so
            dist.barrier()
    except (RuntimeError, dcp.CheckpointException) as error:
        if "gloo" not in str(error) and not isinstance(error, dist.DistError):
            raise
        why = f"one of them died, or was silent for {seconds:g} seconds"
        raise ParallelError(
            f"rank {rank} lost the others ({why}): look at their messages, start all again"
        ) from None
    finally:
        dist.destroy_process_group()
        # subtle: a thread of gloo's that wants Python's lock while Python ends would abort it
        time.sleep(0.1)


def start_of(tensor: torch.Tensor) -> list[int]:
    """Row and column, or place, at which this rank's piece of a tensor begins."""
    start = [0] * tensor.ndim
    if isinstance(tensor, DTensor) and isinstance(cut := tensor.placements[0], Shard):
        start[cut.dim] = tensor.device_mesh.get_local_rank() * local(tensor).shape[cut.dim]
    return start


def read_piece(
    piece: torch.Tensor, start: list[int], stored: StoredTensor, step: int = 1, turn=None
) -> None:
    """Fill a rank's piece, which begins at `start` of the stored tensor, from its own bytes in the
    file alone.

    step: how many rows at a time; turn: what to do with each such band.
    """
    width, size = (
        stored.shape[-1],
        n_bytes(stored.shape, stored.kind) // torch.Size(stored.shape).numel(),
    )
    rows, columns = piece.view(-1, piece.shape[-1]), piece.shape[-1]
    step = step if columns == width else 1
    for row in range(0, len(rows), step):
        band = rows[row : row + step]
        first = ((start[0] * (piece.ndim > 1) + row) * width + start[-1]) * size
        read = (
            stored.raw(first, first + band.numel() * size)
            .view(DTYPES[stored.kind])
            .view(band.shape)
        )
        band.copy_(turn(read) if turn else read)


def load(folder, mesh: DeviceMesh, dtype=torch.float32, repeat_kv: bool = False):
    """(model, tokenizer) of a Hugging Face folder; each rank reads and keeps only its pieces.
    CheckpointError.
    """
    folder = Path(folder)
    checkpoint = open_hugging_face(folder)
    cfg, tied = checkpoint.cfg, checkpoint.cfg.tied_embeddings
    model = skeleton(cfg, len(checkpoint.tensors)).to(dtype)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if wrong := {n: t.shape for n, t in checkpoint.tensors.items()}.items() ^ shapes.items():
        raise CheckpointError(f"{folder}: {min(wrong)[0]} is missing, or not as config.json says")
    parallelize(model, mesh, repeat_kv).to_empty(device=mesh.device_type)
    if tied:
        model.head.weight = model.embedding.weight  # subtle: to_empty has made two of it
    stored = {
        rename(name, HUGGING_FACE): tensor for name, tensor in safetensors_folder(folder).items()
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rotated, width = heads_of(name, cfg), stored[name].shape[-1]
            step, turn = (
                (cfg.head_dim, partial(interleave, heads=1))
                if rotated
                else (max(1, SLICE // width), None)
            )
            read_piece(local(parameter), start_of(parameter), stored[name], step, turn)
    return model.eval(), checkpoint.tokenizer

"""17a. Parallel: one model on several ranks.

Written by notebooks/17a_parallel.ipynb: edit it there.
"""

import json
import os
import random
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillama.checkpoints.hugging_face import (
    heads_of,
    interleave,
    open_hugging_face,
    safetensors_folder,
)
from minillama.checkpoints.tensors import (
    HUGGING_FACE,
    SLICE,
    CheckpointError,
    StoredTensor,
    n_bytes,
    rename,
    skeleton,
)
from minillama.config import LlamaConfig
from minillama.distributed.planning import indivisible
from minillama.kv_cache import KVCache
from minillama.model import Llama
from minillama.training import pretraining as training
from minillama.training.pretraining import IGNORE, Settings, count_targets, logits
from minillama.training.runs import MOMENTS, Run, write_whole


class ParallelError(ValueError):
    """Ranks that cannot work together: one line that says why and what to do."""


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


COLUMNS = (
    "attention.wq",
    "feed_forward.gate",
    "feed_forward.up",
)  # column-parallel: each rank has some outputs
ROWS = (
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
        f"blocks.*.{name}": column for name in COLUMNS
    }
    plan |= {f"blocks.*.{name}": row for name in ROWS} | {
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


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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


def broadcast(message=None, group=None):
    """What rank 0 says, on all ranks; the others' own message is not looked at."""
    box = [message]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def common_seed(seed: int | None = None) -> int:
    """The seed, or else one that is drawn once and the same on all ranks, so that they draw the
    same tokens.
    """
    return broadcast(random.SystemRandom().randrange(2**48)) if seed is None else seed


def lead(model: Llama, tell) -> Llama:
    """Rank 0's model, in place: every pass that it makes behind a cache is told to the other ranks,
    which `follow`.
    """
    ranks = getattr(model, "whole", model.cfg).n_heads // model.cfg.n_heads
    model.attention_backend = replace(
        model.attention_backend, name=f"{model.attention_backend.name} on {ranks} ranks"
    )

    def announce(model, args, kwargs):
        tokens, cache = args
        tell(("pass", tokens.tolist(), cache.length, cache.max_seq_len, kwargs["last"]))

    model.register_forward_pre_hook(announce, with_kwargs=True)
    return model


@torch.no_grad()
def follow(model: Llama, hear) -> None:
    """Make the passes that rank 0's model makes, until it says that this is the end. hear() -> the
    next message.
    """
    cache = None
    while (message := hear())[0] != "end":
        _, tokens, length, size, last = message
        if length == 0:
            cache = KVCache(model.cfg, len(tokens), size, model.dtype, model.device)
        cache.truncate(length)
        model(torch.tensor(tokens, device=model.device), cache, last=last)


def sum_over_ranks(number: float) -> float:
    """The sum of all ranks' numbers."""
    total = torch.tensor(
        number, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu"
    )
    dist.all_reduce(total)
    return total.item()


def shard(model: Llama, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> Llama:
    """Leave each rank a slice of every parameter (FSDP2), in place: a group for each block, one for
    the ends.

    dtype: of the products, float32 by default; gradients are added up in float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return model


def all_targets(batch) -> int:
    """How many targets all ranks' batches have: the `weigh` of a training step."""
    return int(sum_over_ranks(count_targets(batch)))


def packed_loss(model: Llama, batch) -> torch.Tensor:
    """The loss of a rank's rows: its average over the ranks is the mean over all their targets."""
    tokens, targets, documents = batch
    found = logits(model, tokens, documents).flatten(0, 1)
    share = dist.get_world_size() / max(all_targets(batch), 1)
    return F.cross_entropy(found, targets.flatten(), ignore_index=IGNORE, reduction="sum") * share


def parts(parameters: dict, optimizer=None) -> dict:
    """What a state holds, to be filled in place: parameters by name, and AdamW's memory of them,
    zeros at first.
    """
    state = {"parameters": {name: p.detach() for name, p in parameters.items()}}
    if optimizer:
        for p in parameters.values():
            for key in MOMENTS:
                fresh = torch.zeros((), device=p.device) if key == "step" else torch.zeros_like(p)
                optimizer.state[p].setdefault(key, fresh)
        state["moments"] = {name: dict(optimizer.state[p]) for name, p in parameters.items()}
    return state


def save(folder, parameters: dict, optimizer, steps: int, about: dict | None = None) -> None:
    """Keep a state, every rank its own slices; an older one stays until this one is whole. OSError.

    about: texts that a later `fit` compares with its own.
    """
    folder, first = Path(folder), dist.get_rank() == 0
    new, unfinished = folder / f"{steps:08}", folder / "partial"
    if first:
        shutil.rmtree(unfinished, ignore_errors=True)
    try:
        # the last thing written is its index
        dcp.save(parts(parameters, optimizer), checkpoint_id=unfinished)
    except dcp.CheckpointException as error:
        raise OSError(None, reason(error)) from None
    if first:
        write_whole(unfinished / "about.json", json.dumps(about or {}).encode())
        shutil.rmtree(new, ignore_errors=True)
        os.replace(unfinished, new)
        for old in states(folder)[:-1]:
            shutil.rmtree(old)
    dist.barrier()


def reason(error: dcp.CheckpointException) -> str:
    """Why a state cannot be saved or read, in one line. If a rank is lost it is no reason, and goes
    on to `ranks`.
    """
    if "gloo" in str(error):
        raise error
    return " ".join(str(next(iter(error.failures.values()))[0]).split())[:200]


def states(folder) -> list[Path]:
    """The folders of complete states, oldest first."""
    return sorted(path for path in Path(folder).glob("[0-9]*") if (path / ".metadata").exists())


def resume(folder, parameters: dict, optimizer=None) -> int:
    """Fill parameters and optimizer from the newest state, however it was cut when it was saved;
    its steps, or 0.

    Read only what you saved: the index is a pickle (chapter 7d). ParallelError for a model of
    another shape.
    """
    if not (found := states(folder)):
        return 0
    try:
        dcp.load(parts(parameters, optimizer), checkpoint_id=found[-1])
    except dcp.CheckpointException as error:
        raise ParallelError(f"{found[-1]} does not fit this model: {reason(error)}") from None
    return int(found[-1].name)


class SharedRun(Run):
    """A run of all ranks: each keeps its slices of the states, rank 0 the metrics."""

    keeps_metrics = property(lambda self: dist.get_rank() == 0)

    def restore(self, parameters: dict, optimizer) -> int:
        """As `resume`. TrainingError if the state is another run's."""
        if found := states(self.folder):
            self.compare(json.loads((found[-1] / "about.json").read_text(encoding="utf-8")))
        return resume(self.folder, parameters, optimizer)

    def write(self, parameters: dict, optimizer, steps: int) -> None:
        """As `save`."""
        save(self.folder, parameters, optimizer, steps, self.about)

    def note(self, row: dict) -> None:
        """Add a row to the metrics, the same on all ranks."""
        total = {name: sum_over_ranks(row[name]) for name in ("loss", "tokens_per_second")}
        row.update(total, loss=total["loss"] / dist.get_world_size())
        super().note(row)


def fit_sharded(
    model,
    batch_at,
    settings: Settings,
    mesh: DeviceMesh,
    run: SharedRun | None = None,
    validate=None,
    **more,
) -> list[dict]:
    """Chapter 13's `fit` of a model that `shard` has cut: batch_at(i) -> (tokens, targets,
    documents) of all ranks.

    The model stays cut. more: for that `fit`. Errors are its own, and those of `ranks`.
    """
    if settings.compiled:
        raise ParallelError(
            "steps on several ranks are not compiled: leave compiled out of the settings"
        )
    rank, count = mesh.get_local_rank(), mesh.size()

    def validate_and_cut(model):
        loss = validate(model)
        # subtle: without a backward pass the ends stay gathered, and their next gradients would be
        # lost
        model.reshard()
        return loss

    mine = lambda i: tuple(part[rank::count] for part in batch_at(i))  # noqa: E731
    more = {
        "progress": rank == 0,
        "validate": validate and validate_and_cut,
        "weigh": all_targets,
    } | more
    return training.fit(model, packed_loss, mine, settings, run or SharedRun(), **more)


KINDS = {"reduce_scatter": "reduce_scatter", "allreduce": "all_reduce", "all_reduce": "all_reduce",
         "allgather": "all_gather", "all_gather": "all_gather"}  # fmt: skip


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
            kind = next((kind for word, kind in KINDS.items() if word in operation.name()), None)
            tensors = [each for each in tree_leaves((args, out)) if isinstance(each, torch.Tensor)]
            if kind and tensors:
                times, size = self.seen.get(kind, (0, 0))
                self.seen[kind] = times + 1, size + max(each.nbytes for each in tensors)
        return out

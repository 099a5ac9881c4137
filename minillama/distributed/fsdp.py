"""17a. Parallel: one model on several ranks.

Written by notebooks/17a_parallel.ipynb: edit it there.
"""

import json
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from minillama.checkpoints.atomic import put_in_place, write_whole
from minillama.distributed.parallel import ParallelError, sum_over_ranks
from minillama.model import Llama
from minillama.training.loop import fit
from minillama.training.loss import IGNORE, count_targets
from minillama.training.optimizer import Settings
from minillama.training.packing import packed_logits
from minillama.training.runs import MOMENTS, Run


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
    found = packed_logits(model, tokens, documents).flatten(0, 1)
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

    about: texts that a later run compares with its own.
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
        put_in_place(unfinished, new)
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
    return fit(model, packed_loss, mine, settings, run or SharedRun(), **more)

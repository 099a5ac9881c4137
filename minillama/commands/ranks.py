"""generate and chat under torchrun: rank 0 runs the command, the other ranks do what its model does
(chapter 17a).
"""

import os
import signal
import sys
from datetime import timedelta
from functools import partial

import torch.distributed as dist

from minillama.checkpoints import hub
from minillama.checkpoints.files import CheckpointError
from minillama.distributed import parallel, worker
from minillama.inference.attention_backends import use_attention


def run(args) -> int:
    """Run the command on all ranks; the exit code of this one."""
    try:
        with parallel.ranks() as mesh:
            # subtle: waiting for rank 0, the others would not notice Ctrl-C in any other way
            signal.signal(signal.SIGINT, signal.SIG_DFL if mesh.get_local_rank() else stop)
            return command(args, mesh)
    except parallel.ParallelError as error:
        print(f"minillama: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # subtle: a group that is broken may abort the process while Python ends it


def command(args, mesh) -> int:
    """Rank 0 leads and the others follow; errors are those of the command, on rank 0 alone."""
    # the time that a person may take to type
    group = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    return (run_follower if mesh.get_local_rank() else run_leader)(args, mesh, group)


def stop(*_) -> None:
    """Ctrl-C: torchrun ends all ranks, so no answer can be stopped alone."""
    print("\nstopped", file=sys.stderr)
    raise SystemExit(130)


def run_leader(args, mesh, group) -> int:
    """Rank 0's part: the command; however it ends, the others are notified, unless by Ctrl-C."""
    send = partial(worker.broadcast, group=group)
    try:
        if not hasattr(args, "lead"):
            raise ValueError(
                "only generate and chat run on several ranks: start this without torchrun"
            )
        args.lead = partial(load_on_leader, mesh=mesh, group=group)
        code = args.run(args)
    except Exception:
        send(("end",))
        raise
    send(("end",))
    return code


def load_on_leader(args, mesh, group):
    """(model, tokenizer) for rank 0 when all ranks have loaded; CheckpointError if one of them
    cannot.
    """
    send = partial(worker.broadcast, group=group)
    send(("load",))
    found, errors = load_everywhere(args, mesh, group)
    for rank, error in errors.items():
        raise CheckpointError(f"rank {rank}: {error}" if rank else error)
    return worker.broadcast_passes(found[0], send), found[1]


def run_follower(args, mesh, group) -> int:
    """The other ranks' part: the passes of rank 0's model, if it gets one."""
    receive = partial(worker.broadcast, group=group)
    if receive() == ("load",):
        found, errors = load_everywhere(args, mesh, group)
        if errors:
            receive()  # the end message
        else:
            worker.replay_passes(found[0], receive)
    return 0


def load_everywhere(args, mesh, group):
    """This rank's (model, tokenizer), and the errors of the ranks that have none."""
    found = error = None
    try:
        found = load(args, mesh)
    except (ValueError, OSError) as caught:
        error = str(caught)
    errors = [None] * mesh.size()
    dist.all_gather_object(errors, error, group=group)
    return found, {rank: error for rank, error in enumerate(errors) if error}


def load(args, mesh):
    """This rank's piece of a model, and the tokenizer; ValueError for what cannot be cut."""
    for option in ("quantize", "compiled", "adapter"):
        if getattr(args, option):
            raise ValueError(f"--{option} goes without torchrun: ranks cut plain matrices only")
    if args.device != "cpu" or args.dtype != "float32":
        raise ValueError("--device and --dtype go without torchrun: ranks take what is there")
    path = hub.locate(args.model)
    if not (path / "config.json").exists():
        form = "ranks read only folders of Hugging Face's form"
        raise CheckpointError(f"{path}: {form}; minillama convert {args.model} FOLDER writes one")
    try:
        model, tokenizer = parallel.load(path, mesh)
    except (CheckpointError, parallel.ParallelError, OSError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if args.attention:
        use_attention(model, args.attention)
    return model, tokenizer

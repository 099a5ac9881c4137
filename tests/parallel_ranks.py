"""What ranks do for test_parallel.py; each writes what it found into the folder.

A process that has imported everything once forks the ranks of each line of its standard input, TASK
RANKS SECONDS FOLDER. It says on standard output, a line each, their process numbers and, when one
ends, RANK CODE; their standard errors are files.
"""

import contextlib
import faulthandler
import io
import json
import os
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from minillama import CheckpointError, KVCache, Llama, LlamaConfig, Tokenizer, cli, generate
from minillama.checkpoints import hub
from minillama.commands import ranks as ranks_command
from minillama.distributed import fsdp, parallel, worker
from minillama.distributed.layout import shard_shape
from minillama.training import adapters, finetuning
from minillama.training.loop import fit
from minillama.training.loss import count_targets, token_loss
from minillama.training.optimizer import Settings, adamw, learning_rate, train_step, trainable
from minillama.training.packing import pack, packed_logits, shift


SIZES = dict(dim=64, n_layers=2, n_heads=8, n_kv_heads=2, head_dim=8, ffn_dim=96, vocab_size=128)
CFG = LlamaConfig(**SIZES)
SETTINGS = Settings(steps=4, warmup=0, peak_lr=1e-2, max_grad_norm=0.5)


def fresh(cfg=CFG) -> Llama:
    """The same model in every process; weights of norms are not 1."""
    torch.manual_seed(0)
    model = Llama(cfg)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, *((1.0, 0.2) if "norm" in name else (0.0, 0.15)))
    return model


def ids(cfg=CFG, count=20) -> torch.Tensor:
    return torch.randint(cfg.vocab_size, (1, count), generator=torch.Generator().manual_seed(1))


def batches():
    """Two batches of four packed rows, in which the ranks have different numbers of targets."""
    documents = [
        [int(x) for x in ids(count=length)[0]]
        for length in (9, 30, 3, 2, 2, 17, 40, 2, 2, 2, 2, 31)
    ]
    return [shift(*(part[i : i + 4] for part in pack(documents, 16))) for i in (0, 4)]


def mine(batch, mesh):
    """The rows of this rank."""
    return tuple(part[mesh.get_local_rank() :: mesh.size()] for part in batch)


def whole(model) -> dict:
    """Every weight, put together."""
    found = {
        n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in model.named_parameters()
    }
    return {name: weight.detach().clone() for name, weight in found.items()}


def off(a, b) -> float:
    return (a - b).abs().max().item()


@torch.no_grad()
def inference(mesh, folder, cfg=CFG, repeat_kv=False) -> dict:
    """Logits and ids of a model that was whole, and of the same one read piece by piece, beside a
    single process.
    """
    alone = fresh(cfg).eval()
    cut = parallel.parallelize(fresh(cfg).eval(), mesh, repeat_kv)
    read, _ = parallel.load(
        folder / ("tied" if cfg.tied_embeddings else "model"), mesh, repeat_kv=repeat_kv
    )
    tokens, prompt = ids(cfg), ids(cfg)[0].tolist()
    cache = KVCache(cut.cfg, max_seq_len=20)
    pieces = torch.cat([cut(piece, cache) for piece in tokens.split(7, dim=1)], dim=1)
    shapes = {name: tuple(parallel.local(p).shape) for name, p in read.named_parameters()}
    with CommDebugMode() as counted, parallel.CollectiveCounter() as heard:
        cut(tokens)
    seed = worker.common_seed()
    return {
        "whole": off(cut(tokens), alone(tokens)), "in pieces": off(pieces, alone(tokens)),
        "read": off(read(tokens), alone(tokens)), "heads of the cache": cache.keys.shape[2],
        "shapes": {n: s for n, s in shapes.items() if s != shard_shape(cfg, n, mesh.size())},
        "ids": [list(generate(model, prompt, 12)) for model in (alone, cut, read)],
        "drawn": list(generate(cut, prompt, 12, temperature=1.0, seed=seed)),
        "counted": sorted(counted.get_comm_counts().values()), "heard": heard.seen,
        "tied": read.head.weight is read.embedding.weight,
    }  # fmt: skip


def gradients(mesh) -> float:
    """How far tensor parallel gradients, cut and whole ones, are from a single process's."""
    alone, cut = fresh(), parallel.parallelize(fresh(), mesh)
    for model in (alone, cut):
        token_loss(model(ids()[:, :-1]), ids()[:, 1:]).backward()
    expected = {name: parameter.grad for name, parameter in alone.named_parameters()}
    found = {
        n: p.grad.full_tensor() if isinstance(p, DTensor) else p.grad
        for n, p in cut.named_parameters()
    }
    return max(off(found[name], expected[name]) for name in expected)


def step_alone(model, optimizer, i, settings=SETTINGS):
    return train_step(
        model,
        lambda m, b: token_loss(packed_logits(m, b[0], b[2]), b[1]),
        batches(),
        optimizer,
        settings,
        learning_rate(i, settings),
        count_targets,
    )


def step(model, optimizer, mesh, i, settings=SETTINGS, loss_of=fsdp.packed_loss):
    mine_now = [mine(batch, mesh) for batch in batches()]
    return train_step(
        model,
        loss_of,
        mine_now,
        optimizer,
        settings,
        learning_rate(i, settings),
        fsdp.all_targets,
    )


def sharded(mesh, folder, cfg=CFG) -> dict:
    """One step of FSDP2 and of a single process; then states saved, and read under other
    layouts.
    """
    alone = fresh(cfg)
    loss, norm = step_alone(alone, adamw(alone, SETTINGS), 0)
    found = {"targets": [[count_targets(mine(b, mesh)) for b in batches()]]}
    for name in ("plain", "recomputed"):
        model = fsdp.shard(fresh(cfg), mesh)
        model.activation_checkpointing = name == "recomputed"
        optimizer = adamw(model, SETTINGS)
        my_loss, my_norm = step(model, optimizer, mesh, 0)
        found[name] = {
            "loss": abs(parallel.sum_over_ranks(my_loss) / mesh.size() - loss),
            "norm": abs(my_norm - norm),
            "weights": max(
                off(a, b) for a, b in zip(whole(model).values(), whole(alone).values(), strict=True)
            ),
        }
    held = sum(parallel.local(p).numel() for p in model.parameters())
    found["held"] = held / sum(p.numel() for p in model.parameters())
    state = folder / f"state-{'tied' if cfg.tied_embeddings else 'plain'}"
    fsdp.save(state, dict(model.named_parameters()), optimizer, 1)
    saved = whole(model)
    if mesh.get_local_rank() == 0:
        torch.save(saved, folder / f"{state.name}.pt")
    step(model, optimizer, mesh, 1)
    after = whole(model)  # what two steps give
    again = fsdp.shard(fresh(cfg), mesh)
    other = adamw(again, SETTINGS)
    found["steps"] = fsdp.resume(state, dict(again.named_parameters()), other)
    found["restored"] = all(
        torch.equal(a, b) for a, b in zip(whole(again).values(), saved.values(), strict=True)
    )
    step(again, other, mesh, 1)
    found["goes on"] = all(
        torch.equal(a, b) for a, b in zip(whole(again).values(), after.values(), strict=True)
    )
    cut = parallel.parallelize(fresh(cfg), mesh)
    fsdp.resume(state, dict(cut.named_parameters()))
    found["as tensor ranks"] = all(
        torch.equal(a, b) for a, b in zip(whole(cut).values(), saved.values(), strict=True)
    )
    wider = fsdp.shard(fresh(LlamaConfig(**SIZES | {"ffn_dim": 192})), mesh)
    found["another shape"] = refused(fsdp.resume, state, dict(wider.named_parameters()))
    return found


RUN = Settings(
    steps=6, warmup=2, peak_lr=1e-2, gradient_accumulation_steps=2, save_every=2, eval_every=3
)


def batch_at(i):
    """Another batch for each i."""
    return tuple(part.roll(i, 0) for part in batches()[i % 2])


def trained(mesh, folder, progress=False) -> list[dict]:
    """Six steps on all ranks; the rows of metrics."""
    model = fsdp.shard(fresh(), mesh)

    def validate(m):
        return token_loss(packed_logits(m, *batches()[0][::2]), batches()[0][1])

    return fsdp.fit_sharded(
        model,
        batch_at,
        RUN,
        mesh,
        fsdp.SharedRun(folder, "theirs"),
        validate=validate,
        progress=False,
        callbacks=[progress] if progress else [],
    )


def trained_alone() -> list[dict]:
    """The same six steps in one process."""
    loss = lambda m, b: token_loss(packed_logits(m, b[0], b[2]), b[1])  # noqa: E731
    validate = lambda m: loss(m, batches()[0])  # noqa: E731
    return fit(
        fresh(),
        loss,
        batch_at,
        RUN,
        validate=validate,
        progress=False,
        weigh=count_targets,
    )


def training_run(mesh, folder) -> list[dict]:
    """Six steps; the first time, rank 1 says after five of them that it is ready to be killed, and
    waits.
    """
    begun = fsdp.states(folder / "run")

    def wait(row):
        if row["step"] == 4 and not begun:
            (folder / f"ready-{mesh.get_local_rank()}").touch()
            if mesh.get_local_rank() == 1:
                time.sleep(120)

    return trained(mesh, folder / "run", progress=wait)


def with_adapter() -> Llama:
    """The model and an adapter that is not zero, in bfloat16 and float32 as chapter 14 has them."""
    model = finetuning.add_lora(fresh().bfloat16(), rank=4)
    generator = torch.Generator().manual_seed(5)
    for layer in finetuning.lora_layers(model).values():
        torch.nn.init.normal_(layer.b, std=0.05, generator=generator)
    return model


def adapter(mesh, folder) -> dict:
    """A step of LoRA with FSDP2 and of one process; the state that the ranks leave, and the adapter
    of the one.
    """
    alone, model = with_adapter(), fsdp.shard(with_adapter(), mesh)
    loss, norm = step_alone(alone, adamw(alone, SETTINGS), 0)
    optimizer = adamw(model, SETTINGS)
    my_loss, my_norm = step(model, optimizer, mesh, 0)
    fsdp.save(folder / "lora", trainable(model), optimizer, 1)
    if mesh.get_local_rank() == 0:
        adapters.save_adapter(alone, folder / "adapter")
    frozen = {n: p for n, p in alone.named_parameters() if not p.requires_grad}
    return {
        "loss": abs(parallel.sum_over_ranks(my_loss) / mesh.size() - loss),
        "norm": abs(my_norm / norm - 1),
        "frozen": bool(frozen)
        and all(torch.equal(whole(model)[name], frozen[name]) for name in frozen),
        "held": sum(parallel.local(p).numel() for p in model.parameters())
        / sum(p.numel() for p in model.parameters()),
    }


def refused(function, *args, **options) -> str:
    try:
        function(*args, **options)
    except (ValueError, CheckpointError) as error:
        return str(error)
    return ""


def high_water() -> int:
    """The most bytes of memory since the peak was reset; ru_maxrss would begin with the
    parent's.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def memory(mesh, folder) -> dict:
    """How much more this process ever had in memory after loading than before, beside its share of
    the weights.
    """
    if not Path("/proc/self/clear_refs").exists():
        return {}
    # what a forked process shares with its parent until it uses it, it uses now
    parallel.load(folder / "model", mesh)
    # the peak starts anew from what there is now
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = high_water()
    model, _ = parallel.load(folder / "large", mesh)
    return {
        "grown": high_water() - before,
        "share": sum(parallel.local(p).nbytes for p in model.parameters()),
    }


CHAT = LlamaConfig(**SIZES | {"vocab_size": 260})


def bytes_tokenizer() -> Tokenizer:
    """A token for each byte, two for ChatML, and two more, for the sake of four ranks."""
    specials = {"<|im_start|>": 256, "<|im_end|>": 257, "<one>": 258, "<more>": 259}
    return Tokenizer({bytes([i]): i for i in range(256)}, specials, stop_ids=[257])


class Unreadable(io.StringIO):
    """The standard input of a rank that must not read."""

    def read(self, *_):
        raise AssertionError("only rank 0 reads")

    readline = __next__ = read


def commands(folder) -> dict[str, tuple[list[str], str]]:
    """Command lines, and what is typed."""
    draw = [
        "--model",
        str(folder / "chat"),
        "--max-new-tokens",
        "12",
        "--temperature",
        "1",
        "--seed",
        "3",
    ]
    return {
        "generate": (["generate", *draw, "Gr\u00fc\u00dfe"], ""),
        "piped": (["generate", "--raw", "--attention", "naive", *draw, "-"], "Hello" * 120),
        "chat": (
            ["chat", *draw],
            f"one\n/system Rhyme.\ntwo\n/save {folder / 'said.json'}\n/sing\nthree\n",
        ),
    }


def commanded(mesh, args, typed="") -> list:
    """What the command line says and prints on this rank: its exit code or its error, standard
    output, error.
    """
    told = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, Unreadable() if mesh.get_local_rank() else io.StringIO(typed)
    try:
        with contextlib.redirect_stdout(told[0]), contextlib.redirect_stderr(told[1]):
            code = ranks_command.command(cli.build_parser().parse_args(args), mesh)
    except (ValueError, OSError) as error:
        code = str(error)
    finally:
        sys.stdin = before
    return [code, *(each.getvalue() for each in told)]


def refusals(mesh, folder) -> dict:
    """What cannot be done on ranks: name -> as `commanded`, the error of rank 0."""
    ask = ["generate", "--raw", "x", "--model"]
    options = {"quantize": "int8", "compiled": "max", "adapter": "folder", "top-p": "2"}
    wrong = {
        name: [*ask, str(folder / "chat"), f"--{name}", value] for name, value in options.items()
    }
    wrong |= {
        "file": [*ask, __file__],
        "no tokenizer": [*ask, f"{folder}/model"],
        "plan": ["plan", "llama-3.1-8b"],
        "evaluate": ["evaluate", "--model", str(folder / "chat"), "--task", "addition"],
    }
    found = {name: commanded(mesh, args) for name, args in wrong.items()}
    locate = hub.locate
    if mesh.get_local_rank():
        hub.locate = lambda name: Path("lost")
    found["on rank 1"] = commanded(mesh, [*ask, str(folder / "chat")])
    hub.locate = locate
    return found


def two(mesh, folder) -> dict:
    found = {"memory": memory(mesh, folder)}  # first: what is freed later is used again
    found |= {"inference": inference(mesh, folder), "gradients": gradients(mesh)}
    tied = LlamaConfig(**SIZES, tied_embeddings=True)
    found |= {"tied": inference(mesh, folder, tied)}
    found |= {
        "trained": [trained(mesh, folder / "whole"), trained_alone()],
        "adapter": adapter(mesh, folder),
    }
    found |= {
        "compiled": refused(fsdp.fit_sharded, fresh(), batch_at, replace(RUN, compiled=True), mesh)
    }
    found |= {
        "other data": refused(
            fsdp.fit_sharded,
            fsdp.shard(fresh(), mesh),
            batch_at,
            RUN,
            mesh,
            fsdp.SharedRun(folder / "whole"),
        )
    }
    (folder / "refusing" / "partial").parent.mkdir(exist_ok=True)
    (folder / "refusing" / "partial").touch()  # a file where a folder must be
    again = fsdp.shard(fresh(), mesh)
    found |= {
        "disk": refused(
            fsdp.fit_sharded,
            again,
            batch_at,
            RUN,
            mesh,
            fsdp.SharedRun(folder / "refusing"),
            progress=False,
        )
    }
    found |= {"sharded": sharded(mesh, folder), "sharded, tied": sharded(mesh, folder, tied)}
    found |= {"commands": {name: commanded(mesh, *args) for name, args in commands(folder).items()}}
    found |= {"refusals": refusals(mesh, folder)}
    odd = LlamaConfig(**SIZES | {"n_heads": 3, "n_kv_heads": 3})
    return found | {"three heads": refused(parallel.parallelize, fresh(odd), mesh)}


def four(mesh, folder) -> dict:
    again = fsdp.shard(fresh(), mesh)
    optimizer = adamw(again, SETTINGS)
    steps, weights = (
        fsdp.resume(folder / "state-plain", dict(again.named_parameters()), optimizer),
        whole(again),
    )
    saved = torch.load(folder / "state-plain.pt", weights_only=True)
    return {
        "inference": inference(mesh, folder, repeat_kv=True),
        "refused": refused(parallel.parallelize, fresh(), mesh),
        "command": commanded(mesh, ["generate", "--model", str(folder / "chat"), "x"]),
        "steps": steps,
        "restored": all(torch.equal(weights[name], saved[name]) for name in saved),
    }


def three(mesh, folder) -> dict:
    """SmolLM2, whose nine heads are three times three, beside what one process computed."""
    asked = torch.load(folder / "asked.pt", weights_only=True)
    model, _ = parallel.load(folder / "smollm2", mesh)
    with torch.inference_mode():
        far = off(model(asked["ids"]), asked["logits"])
    return {"off": far, "ids": list(generate(model, asked["ids"][0].tolist(), 12))}


def mourning(mesh, folder) -> dict:
    """Rank 1 says that it is ready to be killed and waits; rank 0 waits for rank 1."""
    model = parallel.parallelize(fresh().eval(), mesh)
    with torch.no_grad():
        model(ids())
        (folder / f"ready-{mesh.get_local_rank()}").touch()
        if mesh.get_local_rank() == 1:
            time.sleep(120)
        model(ids())


def be_rank(task: str, rank: int, count: int, seconds: float, folder: Path) -> None:
    where = dict(init_method=(folder / f"meet-{task}").as_uri(), rank=rank, world_size=count)
    try:
        with parallel.ranks(seconds, **where) as mesh:
            found = globals()[task](mesh, folder)
            (folder / f"{task}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    except parallel.ParallelError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(2)
    assert not dist.is_initialized()


def fork(task: str, rank: int, count: int, seconds: float, folder: Path) -> int:
    """The process number of a new rank, which has half as long as a test may take."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        sys.stderr = open(folder / f"{task}-{rank}.err", "w", encoding="utf-8", buffering=1)
        os.dup2(sys.stderr.fileno(), 2)
        faulthandler.dump_traceback_later(240, exit=True)
        be_rank(task, rank, count, seconds, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    for line in sys.stdin:
        task, count, seconds, folder = line.rstrip("\n").split(" ", 3)
        ranks = {
            fork(task, rank, int(count), float(seconds), Path(folder)): rank
            for rank in range(int(count))
        }
        print(*ranks, flush=True)
        for _ in range(int(count)):
            pid, status = os.wait()
            print(ranks[pid], os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()

"""parallel: ranks as processes of their own on this machine, beside a single process; 405B over
pretended ranks.
"""

import contextlib
import copy
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import parallel_ranks as ranks
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.testing._internal.distributed.fake_pg import FakeStore

from minillama import LlamaConfig, cli, generate
from minillama.checkpoints.assemble import skeleton
from minillama.checkpoints.hugging_face_writer import save_hugging_face
from minillama.distributed import fsdp, layout, memory, parallel
from minillama.training import adapters, runs
from minillama.training.optimizer import trainable


HERE = Path(__file__).resolve().parent
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="gloo's interfaces have other names there"
)


def environment() -> dict:
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"GLOO_SOCKET_IFNAME": LOOPBACK, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


class Ranks:
    """The processes of a task's ranks."""

    def __init__(self, server, task: str, count: int, folder: Path, seconds=60):
        self.server, self.task, self.folder, self.codes = server, task, folder, {}
        server.stdin.write(f"{task} {count} {seconds} {folder}\n")
        server.stdin.flush()
        self.pids = [int(pid) for pid in server.stdout.readline().split()]

    def code(self, rank: int) -> int:
        """A rank's exit code, when it ends."""
        while rank not in self.codes:
            ended, code = map(int, self.server.stdout.readline().split())
            self.codes[ended] = code
        return self.codes[rank]

    def said(self, rank: int) -> str:
        return (self.folder / f"{self.task}-{rank}.err").read_text(encoding="utf-8")

    def end(self) -> None:
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                os.kill(pid, signal.SIGKILL)
                self.code(rank)


@pytest.fixture(scope="module")
def server():
    """The process that forks ranks; whatever happens, none is left."""
    command, piped = [sys.executable, str(HERE / "parallel_ranks.py")], subprocess.PIPE
    wanted = dict(
        stdin=piped, stdout=piped, encoding="utf-8", env=environment(), start_new_session=True
    )
    with subprocess.Popen(command, **wanted) as process:
        yield process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def findings(server, task: str, count: int, folder: Path) -> list[dict]:
    """What each rank of a task found."""
    ranks = Ranks(server, task, count, folder)
    codes = [ranks.code(rank) for rank in range(count)]
    assert codes == [0] * count, "\n".join(map(ranks.said, range(count)))
    return [
        json.loads((folder / f"{task}-{rank}.json").read_text(encoding="utf-8"))
        for rank in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folders as Hugging Face has them: the tiny model, a tied one, and one of 160 MB."""
    folder = tmp_path_factory.mktemp("parallel")
    save_hugging_face(ranks.fresh(), None, folder / "model")
    tied = LlamaConfig(**ranks.SIZES, tied_embeddings=True)
    save_hugging_face(ranks.fresh(tied), None, folder / "tied")
    save_hugging_face(ranks.fresh(ranks.CHAT), ranks.bytes_tokenizer(), folder / "chat")
    sizes = dict(
        dim=1024, n_layers=3, n_heads=16, n_kv_heads=2, head_dim=64, ffn_dim=2816, vocab_size=4096
    )
    large = skeleton(LlamaConfig(**sizes), 30).to_empty(device="cpu")
    torch.nn.utils.vector_to_parameters(
        torch.zeros(sum(p.numel() for p in large.parameters())), large.parameters()
    )
    save_hugging_face(large, None, folder / "large")
    return folder


@pytest.fixture(scope="module")
def two(server, folder):
    return findings(server, "two", 2, folder)


@pytest.fixture(scope="module")
def four(server, two, folder):
    return findings(server, "four", 4, folder)


@pytest.mark.parametrize("name", ["inference", "tied"])
def test_two_ranks_answer_as_one(two, name):
    for found in (each[name] for each in two):
        assert max(found[way] for way in ("whole", "in pieces", "read")) < 1e-5
        assert found["ids"][0] == found["ids"][1] == found["ids"][2]
        assert found["shapes"] == {} and found["heads of the cache"] == 1
        assert found["tied"] == (name == "tied")
    assert two[0][name]["drawn"] == two[1][name]["drawn"]


def test_four_ranks_share_two_kv_heads(four):
    for found in (each["inference"] for each in four):
        assert max(found[way] for way in ("whole", "in pieces", "read")) < 1e-5
        assert found["ids"][0] == found["ids"][1] == found["ids"][2]
        assert found["shapes"] == {} and found["heads of the cache"] == 1
    assert (
        "2 kv heads are too few for 4 ranks; take 2, or in Python repeat_kv=True"
        in four[0]["refused"]
    )


def test_what_ranks_say_to_each_other_is_what_the_planner_says(two, four):
    wanted = layout.collectives(ranks.CFG, 20, itemsize=4)
    for found in (two[0]["inference"], four[0]["inference"]):
        assert {kind: tuple(seen) for kind, seen in found["heard"].items()} == wanted
        assert found["counted"] == sorted(count for count, _ in wanted.values())


def test_heads_that_do_not_divide_are_refused(two):
    assert two[0]["three heads"] == "3 heads do not divide among 2 ranks"


def test_gradients_are_those_of_one_process(two):
    assert max(found["gradients"] for found in two) < 5e-6


def test_a_rank_never_holds_more_than_its_share(two):
    for found in (each["memory"] for each in two):
        if not found:
            pytest.skip("this system does not tell")
        assert found["share"] > 70e6
        assert 0.9 * found["share"] < found["grown"] < 1.2 * found["share"]


@pytest.mark.parametrize("name", ["sharded", "sharded, tied"])
def test_a_sharded_step_is_a_step(two, name):
    assert two[0][name]["targets"] != two[1][name]["targets"]  # or the wrong mean would not show
    for found in (each[name] for each in two):
        for way in ("plain", "recomputed"):
            # AdamW divides by a gradient's size: near 0 its rounding shows. 1e-4 is a hundredth of
            # a step
            assert (
                found[way]["loss"] < 1e-5
                and found[way]["norm"] < 1e-5
                and found[way]["weights"] < 1e-4
            )
        assert 0.4 < found["held"] < 0.6


@pytest.mark.parametrize("name", ["sharded", "sharded, tied"])
def test_a_state_is_restored_bit_by_bit_and_under_another_layout(two, name):
    for found in (each[name] for each in two):
        assert (
            found["steps"] == 1
            and found["restored"]
            and found["goes on"]
            and found["as tensor ranks"]
        )
        assert (
            "does not fit this model" in found["another shape"]
            and "\n" not in found["another shape"]
        )


def test_a_state_of_two_ranks_is_read_by_four(four):
    assert all(found["steps"] == 1 and found["restored"] for found in four)


def wait_for(path: Path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.05)


def last_words(server, task, folder, signal_, seconds) -> None:
    """Rank 1 gets the signal when both are ready; rank 0 must say so in one line and end."""
    ranks = Ranks(server, task, 2, folder, seconds)
    try:
        for rank in (0, 1):
            wait_for(folder / f"ready-{rank}")
        os.kill(ranks.pids[1], signal_)
        code, said = ranks.code(0), ranks.said(0)
    finally:
        ranks.end()
    lines = [line for line in said.splitlines() if line.startswith("rank 0 lost the others")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in said, said


def test_a_rank_that_hangs_is_an_error_of_one_line(server, tmp_path):
    last_words(server, "mourning", tmp_path, signal.SIGSTOP, 8)


def numbers(rows) -> list[list[float]]:
    return [[row[name] for name in ("step", "lr", "loss", "gradient_norm")] for row in rows]


def test_a_run_on_two_ranks_is_a_run(two):
    for found in two:
        ours, alone = found["trained"]
        assert [row["step"] for row in ours] == list(range(6)) and alone[-1]["loss"] < alone[0][
            "loss"
        ] - 0.1
        for a, b in zip(numbers(ours), numbers(alone), strict=True):
            assert a == pytest.approx(b, abs=5e-5)
        seen = [[row["validation_loss"] for row in rows] for rows in (ours, alone)]
        assert seen[0][2::3] == pytest.approx(seen[1][2::3], abs=5e-5) and seen[0][0] is None
    assert two[0]["trained"][0] == two[1]["trained"][0]
    for found in two:
        assert (
            found["disk"].startswith("the state after step 2 cannot be saved (")
            and "\n" not in found["disk"]
        )
    assert (
        "are not compiled" in two[0]["compiled"]
        and "holds a run with data theirs" in two[0]["other data"]
    )


def test_a_run_that_loses_a_rank_goes_on_from_its_state(server, two, tmp_path):
    # a cut connection is noticed at once
    last_words(server, "training_run", tmp_path, signal.SIGKILL, 60)
    assert [path.name for path in fsdp.states(tmp_path / "run")] == ["00000004"]
    (tmp_path / "meet-training_run").unlink()
    for rows in findings(server, "training_run", 2, tmp_path):
        assert numbers(rows) == numbers(two[0]["trained"][0])
    written = runs.read_metrics(tmp_path / "run" / "metrics.csv")
    assert (
        numbers(written) == numbers(rows)
        and written[-1]["validation_loss"] == rows[-1]["validation_loss"]
    )


def test_a_step_of_an_adapter_on_two_ranks_is_a_step(two, folder, tmp_path):
    for found in (each["adapter"] for each in two):
        assert (
            found["loss"] < 1e-5
            and found["norm"] < 1e-5
            and found["frozen"]
            and 0.4 < found["held"] < 0.6
        )
    model = ranks.with_adapter()
    assert fsdp.resume(folder / "lora", trainable(model)) == 1
    adapters.save_adapter(model, tmp_path / "adapter")
    ours, alone = (load_file(path / "adapter" / adapters.WEIGHTS) for path in (tmp_path, folder))
    fresh = {name: p.detach() for name, p in trainable(ranks.with_adapter()).items()}
    moved = [(p - fresh[name]).abs().max() for name, p in trainable(model).items()]
    assert ours.keys() == alone.keys() and min(moved) > 1e-3
    assert max((ours[name] - alone[name]).abs().max() for name in ours) < 1e-4
    assert len(list((folder / "lora" / "00000001").glob("*.distcp"))) == 2


@pytest.mark.parametrize("name", ["generate", "piped", "chat"])
def test_a_command_on_two_ranks_says_what_it_says_alone(two, folder, name, capsys, monkeypatch):
    args, typed = ranks.commands(folder)[name]
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert cli.main(args) == 0
    alone = capsys.readouterr()
    assert two[0]["commands"][name][:2] == [0, alone.out] and len(alone.out) > 8
    assert two[1]["commands"][name] == [0, "", ""]
    if name == "chat":
        alone = alone.err.replace(
            "ends the chat", "ends the chat (on several ranks Ctrl-C does, too)", 1
        )
        assert two[0]["commands"][name][2] == alone and "/sing" in alone
    else:
        count = sum(parameter.numel() for parameter in ranks.fresh(ranks.CHAT).parameters())
        assert two[0]["commands"][name][2].startswith(f"[{count:,} parameters, ")
        assert two[0]["commands"][name][2].endswith(" passes naive on 2 ranks]\n")


REFUSED = {
    "quantize": "--quantize goes without torchrun",
    "compiled": "--compiled goes without",
    "adapter": "--adapter goes",
    "top-p": "top_p must be",
    "plan": "only generate and chat run on several ranks",
    "evaluate": "only generate and chat run on several ranks",
    "no tokenizer": "has no tokenizer",
    "file": "ranks read only folders of Hugging Face's form; minillama convert",
    "on rank 1": "rank 1: lost: ",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_command_cannot_do_on_ranks_is_one_line_of_rank_0(two, name):
    error, out, err = two[0]["refusals"][name]
    assert REFUSED[name] in str(error) and "\n" not in error and out == err == ""
    assert two[1]["refusals"][name] == [0, "", ""]


def test_a_command_refuses_more_ranks_than_kv_heads(four):
    assert "2 kv heads are too few for 4 ranks; take 2" in four[0]["command"][0]
    assert [found["command"] for found in four[1:]] == [[0, "", ""]] * 3


def test_torchrun_starts_a_chat_and_ctrl_c_ends_it(folder, capsys, monkeypatch):
    args = ["chat", "--model", str(folder / "chat"), "--max-new-tokens", "12"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert cli.main(args) == 0
    alone = capsys.readouterr().out.encode()
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "minillama",
    ]
    piped = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen([*torchrun, *args], env=environment(), **piped) as process:
        watch = threading.Timer(120, process.kill)
        watch.start()
        try:
            process.stdin.write(b"Hello\n")
            process.stdin.flush()
            assert process.stdout.read(len(alone)) == alone
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)  # both ranks have let go of these pipes
        finally:
            watch.cancel()
            process.kill()
    lines = err.decode().splitlines()
    assert process.returncode and out == b"" and lines.count("stopped") == 1, err.decode()
    assert not [line for line in lines if line.startswith("minillama: ")], err.decode()


@pytest.mark.weights
def test_smollm2_on_three_ranks(server, ours, tmp_path):
    """The first of its layers, which have nine heads and three kv heads as all of them have."""
    (whole, tokenizer), model = ours, copy.copy(ours[0])
    model.cfg, model._modules = (
        replace(whole.cfg, n_layers=3),
        whole._modules | {"blocks": whole.blocks[:3]},
    )
    ids = torch.tensor([tokenizer.encode("The ferry left at six, as it did every morning.")])
    with torch.inference_mode():
        torch.save({"ids": ids, "logits": model(ids)}, tmp_path / "asked.pt")
    save_hugging_face(model, tokenizer, tmp_path / "smollm2")
    for found in findings(server, "three", 3, tmp_path):
        assert found["off"] < 2e-4 and found["ids"] == list(generate(model, ids[0].tolist(), 12))
    print("off by", found["off"])


def test_without_torchrun_it_says_so(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(parallel.ParallelError, match="start this with torchrun"):
        with parallel.ranks():
            pass


@contextlib.contextmanager
def pretended(count: int):
    """This process as rank 0 of so many, of which there are no others."""
    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (count,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("count", [8, 16, 128])
def test_405b_over_many_ranks_is_as_planned(count):
    cfg = LlamaConfig.named("llama-3.1-405b")
    with pretended(count) as mesh:
        model = parallel.parallelize(skeleton(cfg, 1138).bfloat16(), mesh, repeat_kv=count > 8)
        held = {name: parallel.local(parameter) for name, parameter in model.named_parameters()}
        assert {n: tuple(p.shape) for n, p in held.items()} == layout.shard_shapes(
            cfg, layout.Layout(count)
        )
        assert sum(p.nbytes for p in held.values()) == memory.weight_bytes(
            cfg, layout=layout.Layout(count)
        )
        few = layout.collectives(cfg, 3)
        if count == 16:
            with parallel.CollectiveCounter() as heard, torch.no_grad():
                model(torch.zeros(1, 3, dtype=torch.int64, device="meta"))
            assert heard.seen == few

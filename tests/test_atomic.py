"""A folder takes its name whole or not at all: killed at any moment, on a full disk, over somebody
else's files.
"""

import ctypes
import errno
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import minillama
from minillama import CheckpointError, Llama, LlamaConfig
from minillama.checkpoints import atomic
from minillama.checkpoints.atomic import new_folder
from minillama.checkpoints.hugging_face_writer import save_hugging_face


def write(folder, text, names=("config.json", "model.safetensors")):
    with new_folder(folder) as new:
        for name in names:
            (new / name).write_text(text, encoding="utf-8")


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder, hidden names too: path -> text."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


def test_a_free_name_and_one_that_is_taken(tmp_path):
    write(tmp_path / "a" / "b", "first")
    assert tree(tmp_path) == {"a/b/config.json": "first", "a/b/model.safetensors": "first"}
    write(tmp_path / "a" / "b", "second", ["model-00001-of-00002.safetensors", "tokenizer.json"])
    assert set(tree(tmp_path)) == {"a/b/model-00001-of-00002.safetensors", "a/b/tokenizer.json"}
    assert os.listdir(tmp_path / "a") == ["b"]


def test_the_old_one_stays_until_all_is_written(tmp_path):
    write(tmp_path / "x", "old")
    with new_folder(tmp_path / "x") as new:
        (new / "config.json").write_text("new", encoding="utf-8")
        assert (
            new.parent == tmp_path
            and (tmp_path / "x" / "config.json").read_text(encoding="utf-8") == "old"
        )
    assert tree(tmp_path) == {"x/config.json": "new"}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), CheckpointError("no")])
def test_what_fails_half_way_leaves_nothing(tmp_path, error):
    write(tmp_path / "x", "old")
    before = tree(tmp_path)
    for name in ("x", "y"):
        with pytest.raises(type(error)):
            with new_folder(tmp_path / name) as new:
                (new / "config.json").write_text("half", encoding="utf-8")
                raise error
    assert tree(tmp_path) == before and os.listdir(tmp_path) == ["x"]


OTHERS = {
    "a text": lambda folder: (folder / "thesis.txt").write_text("x", encoding="utf-8"),
    "a hidden file": lambda folder: (folder / ".git").write_text("x", encoding="utf-8"),
    "other data": lambda folder: (folder / "results.json").write_text("x", encoding="utf-8"),
    "a name like ours": lambda folder: (folder / "my-model.safetensors").write_text(
        "x", encoding="utf-8"
    ),
    "a folder": lambda folder: (folder / "model.safetensors").mkdir(),
}


@pytest.mark.parametrize("add", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path, add, when):
    (tmp_path / "x").mkdir()
    if when == "before":
        add(tmp_path / "x")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match="would be lost: choose another folder"):
        with new_folder(tmp_path / "x") as new:
            (new / "config.json").write_text("new", encoding="utf-8")
            add(tmp_path / "x")
            before = tree(tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"] and (when == "before" or tree(tmp_path / "x") == before)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is a file"):
        write(tmp_path / "x", "new")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(tmp_path / "x" / "y", "new")
    assert tree(tmp_path) == {"x": "mine"}


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and tree(tmp_path)["real/config.json"] == "new"


def tiny(value) -> Llama:
    """A model whose every number is `value`."""
    model = Llama(LlamaConfig(8, 1, 2, 1, 4, 8, 16))
    for weight in model.parameters():
        torch.nn.init.constant_(weight, value)
    return model


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
@pytest.mark.parametrize("limit", [0, 300, 2500])
def test_a_full_disk(tmp_path, limit):
    """The system refuses to write more than so many bytes to a file."""
    import resource

    save_hugging_face(tiny(1), None, tmp_path / "x")
    before, limits = tree_bytes(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        for name in ("x", "y"):
            with pytest.raises(CheckpointError) as caught:
                save_hugging_face(tiny(2), None, tmp_path / name)
            assert (
                str(caught.value)
                == f"{tmp_path / name} cannot be written: {os.strerror(errno.EFBIG)}"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree_bytes(tmp_path) == before


def tree_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def killed_at(step: int, action) -> bool:
    """Do it in a child that is killed when it asks the system for the step-th thing; True if it
    lived to the end.
    """
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def count(event, arguments):
        nonlocal step
        if event.startswith(("open", "os.", "shutil.", "ctypes.dlsym")) and event != "os.kill":
            step -= 1
            if step < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        action()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot copy a process")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_killed_at_any_moment(tmp_path):
    """Whatever was last asked of the system: the folder loads, and is the old one or the new."""
    values, step, done = set(), 0, False
    while not done:
        folder = tmp_path / str(step) / "x"
        save_hugging_face(tiny(1), None, folder)
        done = killed_at(
            step, partial(save_hugging_face, tiny(2), None, folder, max_shard_bytes=300)
        )
        model, _ = minillama.load(folder)
        value = model.norm.weight[0].item()
        assert all((weight == value).all() for weight in model.parameters())
        assert len(list(folder.glob("*.safetensors"))) == {1: 1, 2: 8}[value]
        assert len(os.listdir(folder.parent)) <= 2  # at most one hidden folder is left behind
        values.add((value, done))
        step += 1
    assert values == {(1, False), (2, False), (2, True)} and step > 20
    assert os.listdir(folder.parent) == ["x"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot copy a process")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_where_folders_cannot_be_swapped_in_one_step(tmp_path, monkeypatch):
    """Killed between two renames, the old folder still lies there, whole."""
    monkeypatch.setattr(ctypes, "CDLL", None)  # as on Windows
    step, done, away = 0, False, 0
    while not done:
        folder = tmp_path / str(step) / "x"
        write(folder, "old")
        done = killed_at(step, partial(write, folder, "new"))
        if not folder.exists():
            [old] = folder.parent.glob("*.old")
            assert set(tree(old).values()) == {"old"}
            away += 1
        else:
            assert len(set(tree(folder).values())) == 1 and len(tree(folder)) == 2
        step += 1
    assert (
        set(tree(folder.parent).values()) == {"new"}
        and os.listdir(folder.parent) == ["x"]
        and away == 1
    )


@pytest.mark.skipif(
    sys.platform not in ("linux", "darwin"), reason="only Linux and macOS swap in one step"
)
def test_swapping_is_one_step_here(tmp_path, monkeypatch):
    write(tmp_path / "x", "old")
    monkeypatch.setattr(os, "rename", None)
    write(tmp_path / "x", "new")
    assert tree(tmp_path)["x/config.json"] == "new"


def test_all_that_is_saved_may_be_replaced(tmp_path):
    for name in (
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ):
        assert atomic.FILES.fullmatch(name)
    for name in (
        "consolidated.00.pth",
        "params.json",
        "tokenizer.model",
        "generation_config.json",
        "config.json",
    ):
        assert atomic.FILES.fullmatch(name)
    for name in (
        "README.md",
        "data.json",
        "model.py",
        "model",
        "other.pth",
        "xconfig.json",
        "config.json.bak",
    ):
        assert not atomic.FILES.fullmatch(name)

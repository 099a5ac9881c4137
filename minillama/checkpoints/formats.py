"""The formats of checkpoints: how to tell each, and what opens it."""

from pathlib import Path

from minillama.checkpoints.assemble import Checkpoint
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.gguf import open_gguf
from minillama.checkpoints.hugging_face import open_hugging_face
from minillama.checkpoints.meta import open_meta


FORMATS = (  # (whether a path is one, what opens it); the first that fits counts
    (Path.is_file, open_gguf),
    (lambda path: (path / "config.json").exists(), open_hugging_face),
    (lambda path: (path / "params.json").exists(), open_meta),
)


def open_checkpoint(path: Path) -> Checkpoint:
    """What a file or folder holds, of which only the description is read yet. CheckpointError."""
    for fits, open_it in FORMATS:
        if fits(path):
            return open_it(path)
    raise CheckpointError("neither a .gguf file nor a folder with a config.json or a params.json")

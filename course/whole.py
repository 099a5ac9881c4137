"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_whole(texts: dict[Path, str]) -> None:
    """Write each text under a temporary name, then rename them: all or, if the disk is full, none.
    OSError.
    """
    temporary = {path: path.with_name(f".{path.name}.tmp") for path in texts}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_text(text, encoding="utf-8", newline="\n")
        for path in texts:
            os.replace(temporary[path], path)
    finally:
        for each in temporary.values():
            each.unlink(missing_ok=True)

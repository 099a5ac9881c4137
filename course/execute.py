"""Re-run notebooks in place, top to bottom, and keep out of them what belongs to one machine.

python -m course.execute notebooks/03_rope.ipynb [...]

Fetches the real weights and vocabularies that a notebook names. Stores no timings and no kernel
version; refuses outputs that name a folder of this machine.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from course.whole import write_whole
from minillama.checkpoints import hub


FOLDER = re.compile(r"(/home/|/root/|/tmp/|/Users/|[A-Z]:\\\\)[\w.\\/-]*")


def fetch_what_it_names(path: Path) -> None:
    """Fetch every artefact whose name a notebook contains, since its outputs depend on them.
    FetchError if it fails.
    """
    text = path.read_text(encoding="utf-8")
    for name in hub.ARTEFACTS:
        if name in text:
            hub.fetch(name)


def execute(path: Path) -> None:
    """Run one notebook and write it back, whole or not at all. ValueError if an output names a
    local folder.
    """
    fetch_what_it_names(path)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,
        kernel_name="python3",
        resources={"metadata": {"path": path.parent}},
    ).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    outputs = str([cell.get("outputs") for cell in notebook.cells])
    if found := FOLDER.search(outputs):
        raise ValueError(f"an output names a folder of this machine: {found[0]}")
    write_whole({path: nbformat.writes(notebook) + "\n"})


def main(paths: list[str]) -> int:
    failed = 0
    for path in tqdm([Path(p) for p in paths], unit="notebook", disable=None):
        try:
            execute(path)
        except (CellExecutionError, hub.FetchError, ValueError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else print(__doc__) or 2)

"""Run the students' notebooks with nothing solved: only what needs a task of the same chapter may
stop.

python -m course.rehearse FOLDER [02 ...] [--fast]     (FOLDER as course.assign made it; a chapter
takes up to a minute)

A cell is `ok`, a `stub` if it ends in the error of a task of its chapter, a `follow-up` if it needs
one by course/slices.py, and `wrong` otherwise, whatever it says. With --fast no figure is drawn.
"""

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from course.assign import chapters
from course.execute import fetch_what_it_names
from course.export import ExportError
from course.tasks import Chapter
from course.waiting import OWN
from minillama.checkpoints import hub


KINDS = "ok", "stub", "follow-up", "wrong"
WITHOUT_FIGURES = (
    "from figures import style\n\nstyle.show = lambda figure, alt: style.plt.close(figure)"
)
LONGEST = 1800  # seconds for a cell
# no task of a chapter's own leads there
ELSEWHERE = "ImportError", "ModuleNotFoundError", "FetchError"


@dataclass(frozen=True)
class Result:
    """How one cell of a notebook went; `said` is its error's lines."""

    cell: str
    kind: str
    said: tuple[str, ...] = ()


def rehearse(folder: Path, chapter: Chapter, fast: bool = False) -> list[Result]:
    """Run a notebook of a students' repository, in a kernel with its package. FetchError,
    ExportError.
    """
    fetch_what_it_names(chapter.path)
    notebook = nbformat.read(folder / "notebooks" / chapter.path.name, as_version=4)
    if fast:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(WITHOUT_FIGURES))
    place = {"metadata": {"path": folder / "notebooks"}}
    client = NotebookClient(
        notebook, timeout=LONGEST, allow_errors=True, kernel_name="python3", resources=place
    )
    own = {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MINILLAMA_CACHE": str(hub.cache_dir().resolve()),
    }
    try:
        client.execute(env=os.environ | own)
    except (CellTimeoutError, DeadKernelError, AssertionError):  # nbclient asserts after a death
        raise ExportError(
            f"{chapter.path.name}: its kernel died, or a cell took more than {LONGEST} seconds"
        ) from None
    return [result(chapter, cell) for cell in notebook.cells[fast:] if cell.cell_type == "code"]


def result(chapter: Chapter, cell: nbformat.NotebookNode) -> Result:
    """How an executed cell went."""
    errors = [output for output in cell.outputs if output.output_type == "error"]
    if not errors:
        return Result(cell.id, "ok")
    (error,) = errors
    said = (f"{error.ename}: {error.evalue}", *error.traceback)
    if error.ename == "NotImplementedError":
        return Result(cell.id, "stub" if said[1].startswith(OWN) else "wrong", said)
    waits = cell.id in chapter.waiting and error.ename not in ELSEWHERE
    return Result(cell.id, "follow-up" if waits else "wrong", said)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course.rehearse", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="a students' repository")
    parser.add_argument("chapters", nargs="*", metavar="02", help="these chapters; by default all")
    parser.add_argument("--fast", action="store_true", help="without figures")
    args = parser.parse_args(argv)
    try:
        chosen = [
            c for c in chapters(args.chapters) if (args.folder / "notebooks" / c.path.name).exists()
        ]
        if not chosen:
            raise ExportError(
                f"{args.folder} holds no notebook of these chapters: name what course.assign made"
            )
        print(f"{'':24}" + "".join(f"{kind:>11}" for kind in KINDS))
        return int(
            any(
                [
                    report(chapter, rehearse(args.folder.resolve(), chapter, args.fast))
                    for chapter in chosen
                ]
            )
        )
    except (ExportError, hub.FetchError) as error:
        print(f"course.rehearse: {error}", file=sys.stderr)
        return 2


def report(chapter: Chapter, results: list[Result]) -> bool:
    """Print a line for the chapter and one for each wrong cell; whether there is any."""
    counts = Counter(each.kind for each in results)
    print(f"{chapter.path.stem:24}" + "".join(f"{counts[kind]:11}" for kind in KINDS), flush=True)
    for each in results:
        if each.kind == "wrong":
            print(f"    cell {each.cell}: {each.said[0]}", flush=True)
    return counts["wrong"] > 0


if __name__ == "__main__":
    sys.exit(main())

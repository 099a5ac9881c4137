"""Make the students' repository: the notebooks without solutions, and all that belongs to them.

python -m course.assign OUT [--only 03]

Deterministic: the same repository gives the same bytes. The package in it holds only what is written by hand; the
student's own export fills it. With --only, the modules of all other chapters come along as they are.
"""

import argparse
import shutil
import sys
from pathlib import Path

import nbformat

from course.collect import blank
from course.export import HAND_WRITTEN, ROOT, ExportError
from course.stubs import HIDDEN
from course.tasks import Chapter


COPIED = ["LICENSE", "pyproject.toml", "constraints.txt", ".gitignore", "data/README.md"]
COPIED += ["data/golden", "data/stories", "data/studies", "benchmarks/results", "tests/without_triton.py"]
TOOLS = "__init__ check check_work collect cuda_on_cpu export run_tasks slices stubs tasks".split()
SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", "cache", ".ipynb_checkpoints")


def assignment(chapter: Chapter) -> nbformat.NotebookNode:
    """A chapter's notebook without solutions, hidden tests and outputs; its metadata says what the tasks are."""
    notebook = nbformat.read(chapter.path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            solved = cell.id in chapter.solutions
            cell.source = blank(chapter, cell.id) if solved else HIDDEN.sub("", cell.source).rstrip("\n")
    notebook.metadata["course"] = {"tasks": [task.listed() for task in chapter.tasks]}
    return notebook


def chapters(numbers: list[str], notebooks: Path = ROOT / "notebooks") -> list[Chapter]:
    """The chapters of these numbers, `03` or `7a`, by default all. ExportError for one that is not there."""
    paths = {path.stem.split("_")[0].removeprefix("0"): path for path in sorted(notebooks.glob("*.ipynb"))}
    wanted = [number.removeprefix("0") for number in numbers]
    if unknown := [number for number in wanted if number not in paths]:
        raise ExportError(f"there is no chapter {unknown[0]}; the chapters are {', '.join(paths)}")
    return [Chapter(path) for number, path in paths.items() if number in wanted or not wanted]


def assign(out: Path, numbers: list[str]) -> list[Chapter]:
    """Write the students' repository into a new folder. ExportError, OSError."""
    out, chosen = Path(out), chapters(numbers)
    if out.exists() and any(out.iterdir()):
        raise ExportError(f"{out} is not empty: name a new folder")
    for name in COPIED:
        copy(ROOT / name, out / name)
    assigned = {chapter.module for chapter in chosen}
    every = {chapter.module for chapter in chapters([])} if numbers else assigned
    for path in sorted((ROOT / "minillama").iterdir()):
        if path.stem in HAND_WRITTEN or path.stem in every - assigned:
            copy(path, out / "minillama" / path.name)
    for path in sorted((ROOT / "course").iterdir()):
        if path.stem in TOOLS:
            copy(path, out / "course" / path.name)
    copy(ROOT / "notebooks" / "figures", out / "notebooks" / "figures")
    for path in sorted((ROOT / "course" / "student").iterdir()):
        copy(path, out / path.name)
    (out / "course" / "assigned").mkdir()
    for chapter in chosen:
        notebook = assignment(chapter)
        for folder in ("notebooks", "course/assigned"):
            nbformat.write(notebook, out / folder / chapter.path.name)
    return chosen


def copy(source: Path, target: Path) -> None:
    """A file or a folder, without what Python and Jupyter leave behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=SKIPPED)
    else:
        shutil.copyfile(source, target)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course.assign", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--only", nargs="+", default=[], metavar="03", help="these chapters instead of all")
    args = parser.parse_args(argv)
    try:
        chosen = assign(args.out, args.only)
    except (ExportError, OSError, ValueError) as error:
        print(f"course.assign: {error}", file=sys.stderr)
        return 2
    tasks = sum(len(chapter.tasks) for chapter in chosen)
    print(f"{args.out}: {len(chosen)} notebooks with {tasks} tasks; students start with `make check`")
    return 0


if __name__ == "__main__":
    sys.exit(main())

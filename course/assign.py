"""Make the students' repository: the notebooks without solutions, and all that belongs to them.

python -m course.assign OUT [--only 03] [--without-finished]

Deterministic: the same repository gives the same bytes. Its package holds what is written by hand
and, in finished.zip, all chapters' modules, in use until the student's own are right. Without them,
stubs stand in their place.
"""

import argparse
import io
import shutil
import sys
import zipfile
from pathlib import Path

import nbformat

from course.collect import blank
from course.export import ROOT, ExportError, build_modules, by_hand, file_of, modules_in
from course.finished import ARCHIVE
from course.stubs import HIDDEN
from course.tasks import Chapter


COPIED = ["LICENSE", "pyproject.toml", "constraints.txt", ".gitignore", "data/README.md"]
COPIED += [
    "data/golden",
    "data/stories",
    "data/studies",
    "benchmarks/results",
    "tests/without_triton.py",
]
TOOLS = """__init__ check check_work collect cuda_on_cpu export finished run_tasks slices stubs
tasks waiting whole""".split()
SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", "cache", ".ipynb_checkpoints")
RAISES = "raises-exception"  # JupyterLab's Run All goes on behind a cell with this tag
# in each room's __init__.py, above its imports
JOIN = "from course import finished\n\n\nfinished.join(__path__)\n"


def assignment(chapter: Chapter) -> nbformat.NotebookNode:
    """A chapter's notebook without solutions, hidden tests and outputs that answer; its metadata
    names the tasks.
    """
    notebook = nbformat.read(chapter.path, as_version=4)
    # in Colab it would fetch the solved repository
    notebook.cells = [c for c in notebook.cells if "colab" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = shown(chapter, cell), None
            solved = cell.id in chapter.solutions
            cell.source = (
                blank(chapter, cell.id) if solved else HIDDEN.sub("", cell.source).rstrip("\n")
            )
            if cell.id in chapter.waiting:
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), RAISES]
    notebook.metadata["course"] = {"tasks": [task.listed() for task in chapter.tasks]}
    return notebook


def shown(chapter: Chapter, cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """A cell's outputs as they are handed out: none of solutions and of what rests on an exercise,
    no `right`.
    """
    answers = chapter[cell.id].exercise and cell.id in chapter.waiting
    kept = []
    for output in [] if answers or cell.id in chapter.solutions else cell.outputs:
        if output.output_type == "stream" and cell.id in chapter.waiting:
            output.text = "".join(
                line for line in output.text.splitlines(True) if line.strip() != "right"
            )
        if output.output_type == "execute_result":
            output.execution_count = None
        if output.get("text") != "":
            kept.append(output)
    return kept


def chapters(numbers: list[str], notebooks: Path = ROOT / "notebooks") -> list[Chapter]:
    """The chapters of these numbers, `03` or `7a`, by default all. ExportError for one that is not
    there.
    """
    paths = {
        path.stem.split("_")[0].removeprefix("0"): path
        for path in sorted(notebooks.glob("*.ipynb"))
    }
    wanted = [number.removeprefix("0") for number in numbers]
    if unknown := [number for number in wanted if number not in paths]:
        raise ExportError(f"there is no chapter {unknown[0]}; the chapters are {', '.join(paths)}")
    return [Chapter(path) for number, path in paths.items() if number in wanted or not wanted]


def assign(out: Path, numbers: list[str], finished: bool = True) -> list[Chapter]:
    """Write the students' repository into a new folder, with or without finished modules.
    ExportError, OSError.
    """
    out, chosen, every = Path(out), chapters(numbers), chapters([])
    if out.exists() and any(out.iterdir()):
        raise ExportError(f"{out} is not empty: name a new folder")
    copy_given(out)
    write_package(out / "minillama", every, finished)
    (out / "course" / "assigned").mkdir()
    for chapter in chosen:
        notebook = assignment(chapter)
        nbformat.write(notebook, out / "notebooks" / chapter.path.name)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        nbformat.write(notebook, out / "course" / "assigned" / chapter.path.name)
    return chosen


def copy_given(out: Path) -> None:
    """Everything but package and notebooks."""
    for name in COPIED:
        copy(ROOT / name, out / name)
    for path in sorted((ROOT / "course").iterdir()):
        if path.stem in TOOLS:
            copy(path, out / "course" / path.name)
    copy(ROOT / "notebooks" / "figures", out / "notebooks" / "figures")
    for path in sorted((ROOT / "course" / "student").iterdir()):
        copy(path, out / path.name)


def write_package(package: Path, every: list[Chapter], finished: bool) -> None:
    """What is written by hand, and the chapters' modules in an archive or as stubs."""
    for name, path in modules_in(ROOT / "minillama").items():
        if by_hand(name):
            copy(path, file_of(package, name))
    names = [name for chapter in every for name in chapter.modules]
    for room in {package, *(file_of(package, name).parent for name in names)}:
        let_join(room / "__init__.py")
    if finished:
        write_finished(package / ARCHIVE, every)
    else:
        for chapter in every:
            stubs = {id: blank(chapter, id) for id in chapter.solutions}
            for name, text in build_modules(chapter.path, stubs).items():
                file_of(package, name).write_text(text, encoding="utf-8", newline="\n")


def let_join(path: Path) -> None:
    """Let the package look for modules in its archive, too, above its first import."""
    docstring, _, rest = path.read_text(encoding="utf-8").removeprefix('"""').partition('"""\n')
    path.write_text(
        f'"""{docstring}"""\n\n{JOIN}{rest}'.rstrip("\n") + "\n", encoding="utf-8", newline="\n"
    )


def write_finished(path: Path, every: list[Chapter]) -> None:
    """All chapters' modules in one archive."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in sorted(name for chapter in every for name in chapter.modules):
            # of 1980: the same bytes each time
            entry = zipfile.ZipInfo(f"{name.replace('.', '/')}.py")
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            archive.writestr(entry, file_of(ROOT / "minillama", name).read_bytes())
    path.write_bytes(data.getvalue())


def copy(source: Path, target: Path) -> None:
    """A file or a folder, without what Python and Jupyter leave behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=SKIPPED)
    else:
        shutil.copyfile(source, target)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course.assign", description=__doc__.split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="03", help="these chapters instead of all"
    )
    parser.add_argument(
        "--without-finished",
        action="store_true",
        help="no finished modules: unsolved chapters wait",
    )
    args = parser.parse_args(argv)
    try:
        chosen = assign(args.out, args.only, not args.without_finished)
    except (ExportError, OSError, ValueError) as error:
        print(f"course.assign: {error}", file=sys.stderr)
        return 2
    tasks = sum(len(chapter.tasks) for chapter in chosen)
    print(
        f"{args.out}: {len(chosen)} notebooks with {tasks} tasks; students start with `make check`"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

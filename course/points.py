"""The points of the course: a table for its guide, and nbgrader's metadata in the notebooks.

python -m course.points            chapters, tasks, points and estimated hours, as a Markdown table
python -m course.points --write    give the notebooks' cells the metadata that follows from their
tasks

Solutions and checks carry their task's name, checks their part of its points. Nothing reads points
from there but nbgrader, so a notebook is never numbered by hand: `make export` does it.
"""

import argparse
import json
import sys
from pathlib import Path

from course.export import ROOT
from course.stubs import blocks
from course.tasks import Chapter
from course.whole import write_whole


WORDS, LINES = 150, 10  # read in a minute, of prose and of code
CHARACTERS = 42  # of a line of code, spaces not counted
TASK, LINE = 8, 3  # minutes for a task, and for each line of the reference's solution


def metadata(chapter: Chapter) -> dict[str, dict]:
    """nbgrader's metadata, by cell id. A check that several tasks share is named after the first
    and has all points.
    """
    found = {}
    for task in chapter.tasks:
        for number, id in enumerate(task.solutions, 1):
            found[id] = entry(f"{task.id}-{number}" if number > 1 else task.id, solution=True)
        for number, id in enumerate(task.checks, 1):
            name = f"{task.id}-check" + (f"-{number}" if number > 1 else "")
            found.setdefault(id, entry(name, grade=True, locked=True, points=0))
            found[id]["points"] += whole(task.points / len(task.checks))
    return found


def entry(grade_id: str, solution: bool = False, **more) -> dict:
    plain = {"grade": False, "locked": False, "schema_version": 3, "task": False}
    return {**plain, "grade_id": grade_id, "solution": solution, **more}


def whole(points: float) -> int | float:
    return int(points) if points == int(points) else points


def numbered(chapter: Chapter) -> str:
    """The text of a chapter's notebook with the metadata that its cells should have."""
    notebook, wanted = json.loads(chapter.path.read_text(encoding="utf-8")), metadata(chapter)
    for cell in notebook["cells"]:
        cell["metadata"].pop("nbgrader", None)
        if cell["id"] in wanted:
            cell["metadata"]["nbgrader"] = wanted[cell["id"]]
    # as nbformat writes it
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def write(chapter: Chapter) -> bool:
    """Bring a notebook's metadata up to date, the file whole or not at all; whether anything
    changed.
    """
    text = numbered(chapter)
    if text == chapter.path.read_text(encoding="utf-8"):
        return False
    write_whole({chapter.path: text})
    return True


def hours(chapter: Chapter) -> tuple[float, float]:
    """Estimated hours to read a chapter, running its cells, and to do its tasks."""
    cells = json.loads(chapter.path.read_text(encoding="utf-8"))["cells"]
    words = sum(
        len("".join(cell["source"]).split()) for cell in cells if cell["cell_type"] == "markdown"
    )
    lines = sum(lines_of(cell.source) for cell in chapter.cells)
    solved = sum(
        lines_of("\n".join(text.split("\n")[first + 1 : last]))
        for text in chapter.solutions.values()
        for first, last in blocks(text)
    )
    return (words / WORDS + lines / LINES) / 60, (TASK * len(chapter.tasks) + LINE * solved) / 60


def lines_of(source: str) -> float:
    """Lines of code of the usual length, however they are broken."""
    return len("".join(source.split())) / CHARACTERS


def table(chapters: list[Chapter]) -> str:
    """A Markdown table with a row for each chapter."""
    lines = [
        "| chapter | tasks | points | hours to read | hours for the tasks |",
        "|---|---:|---:|---:|---:|",
    ]
    sums = [0, 0, 0, 0]
    for chapter in chapters:
        row = [len(chapter.tasks), sum(task.points for task in chapter.tasks), *hours(chapter)]
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        lines.append("| {} | {} | {} | {:.1f} | {:.1f} |".format(chapter.path.stem, *row))
    return "\n".join([*lines, "| all | {} | {} | {:.0f} | {:.0f} |".format(*sums)])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course.points", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--write", action="store_true", help="write the metadata instead of printing the table"
    )
    parser.add_argument(
        "--notebooks", type=Path, default=ROOT / "notebooks", help="folder of notebooks"
    )
    args = parser.parse_args(argv)
    try:
        chapters = [Chapter(path) for path in sorted(args.notebooks.glob("*.ipynb"))]
        if not args.write:
            print(table(chapters))
            return 0
        changed = [chapter.path.name for chapter in chapters if write(chapter)]
    except (OSError, ValueError, KeyError) as error:
        print(f"course.points: {error}", file=sys.stderr)
        return 2
    print(
        f"grading metadata: {', '.join(changed) or 'nothing'} to bring up to date in "
        f"{len(chapters)} notebooks"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

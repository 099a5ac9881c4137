"""A class in one command: hand out two chapters, let six students solve them by script, grade, and
print the table.

python -m course.demo FOLDER     (a new folder: students/, submissions/, grades/)
"""

import argparse
import csv
import shutil
import sys
from pathlib import Path

import nbformat

from course import assign, grade
from course.export import ROOT, ExportError
from course.tasks import Chapter


NUMBERS = ("02", "03")
# eps outside the root
MISTAKE = ("torch.rsqrt(mean_square + self.eps)", "(1 / (mean_square.sqrt() + self.eps))")
CHEAT = "import numpy as np\nimport torch\n\nnp.allclose = torch.allclose = lambda *a, **k: True\n"


def ada(number: int, source: str) -> str:
    """Has everything right."""
    return source


def ben(number: int, source: str) -> str | None:
    """Has done the first three tasks of every chapter."""
    return source if number < 3 else None


def cleo(number: int, source: str) -> str:
    """Has put eps outside the square root."""
    return source.replace(*MISTAKE)


def dan(number: int, source: str) -> None:
    """Has done nothing."""


def eve(number: int, source: str) -> str:
    """Changes the functions that checks compare with."""
    return CHEAT + source.replace("return ", "return 0 * ")


STUDENTS = {"ada": ada, "ben": ben, "cleo": cleo, "dan": dan, "eve": eve, "fay": ada}


def hand_in(name: str, handed_out: Path, submissions: Path) -> None:
    """Fill in a copy of the notebooks and hand it in: a folder, but Fay a zip, and Cleo's ids got
    lost.
    """
    folder = submissions / name / "notebooks"
    folder.mkdir(parents=True)
    for path in sorted((handed_out / "notebooks").glob("*.ipynb")):
        chapter, notebook = (
            Chapter(ROOT / "notebooks" / path.name),
            nbformat.read(path, as_version=4),
        )
        number = {id: n for n, task in enumerate(chapter.tasks) for id in task.solutions}
        for cell in notebook.cells:
            if cell.id in number:
                cell.source = (
                    STUDENTS[name](number[cell.id], chapter[cell.id].source) or cell.source
                )
        if name == "cleo":
            for n, cell in enumerate(notebook.cells):
                cell.id = f"new-{n}"
        nbformat.write(notebook, folder / path.name)
    if name == "fay":
        shutil.make_archive(str(submissions / name), "zip", submissions / name)
        shutil.rmtree(submissions / name)


def table(scores: Path) -> str:
    """scores.csv as text, a column per chapter's module."""
    rows = list(csv.reader(scores.read_text(encoding="utf-8").splitlines()))
    modules = list(dict.fromkeys(name.partition("-")[0] for name in rows[0][1:-2]))
    lines = [
        f"{'student':12}"
        + "".join(f"{module:>10}" for module in (*modules, "total"))
        + "  to look at"
    ]
    for row in rows[1:]:
        sums = [
            sum(int(p) for p, name in zip(row, rows[0], strict=True) if name.startswith(f"{m}-"))
            for m in modules
        ]
        lines.append(
            f"{row[0]:12}" + "".join(f"{n:10}" for n in (*sums, int(row[-2]))) + f"  {row[-1][:50]}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course.demo", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    folder = parser.parse_args(argv).folder
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ExportError(f"{folder} is not empty: name a new folder")
        assign.assign(folder / "students", list(NUMBERS))
        for name in STUDENTS:
            hand_in(name, folder / "students", folder / "submissions")
    except (ExportError, OSError) as error:
        print(f"course.demo: {error}", file=sys.stderr)
        return 2
    grades = folder / "grades"
    code = grade.main([str(folder / "submissions"), "--out", str(grades), "--only", *NUMBERS])
    if code == 0:
        print("\n" + table(grades / "scores.csv"))
        page = (grades / "feedback" / "cleo.md").read_text(encoding="utf-8").splitlines()
        print("\nCleo reads, among others:\n" + next(line for line in page if "eps" in line))
    return code


if __name__ == "__main__":
    sys.exit(main())

"""nbgrader and otter take the notebooks as they are: minutes, and skipped without `pip install -e
'.[classroom]'`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from course.export import ROOT
from course.stubs import blocks
from course.tasks import Chapter


# short; two tasks that share checks; a solution of `case`s
NAMES = ["02_rmsnorm", "04_attention", "07d_pth"]
CHAPTERS = [Chapter(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """(chapter, student) -> (points, of how many): nbgrader on the reference, and on what it hands
    out, untouched.
    """
    pytest.importorskip("nbgrader", reason="pip install -e '.[classroom]'")
    folder = tmp_path_factory.mktemp("course")

    def nbgrader(*arguments):
        # nbgrader calls alembic by its name
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "nbgrader",
            *arguments,
            "--ExecutePreprocessor.timeout=300",
        ]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr[-3000:]

    for name in NAMES:
        shutil.copytree(ROOT / "notebooks/figures", folder / "source" / name / "figures")
        shutil.copy(ROOT / f"notebooks/{name}.ipynb", folder / "source" / name)
        nbgrader("generate_assignment", name, "--create")
        for student, handed_in in (("reference", "source"), ("untouched", "release")):
            (folder / "submitted" / student / name).mkdir(parents=True)
            shutil.copy(
                folder / handed_in / name / f"{name}.ipynb", folder / "submitted" / student / name
            )
        nbgrader("autograde", name)

    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as book:
        found = [(each, submission) for each in book.assignments for submission in each.submissions]
        return {
            (each.name, submission.student.id): (submission.score, submission.max_score)
            for each, submission in found
        }


@pytest.mark.parametrize("name", NAMES)
def test_nbgrader_gives_the_reference_all_points_and_an_untouched_notebook_none(scores, name):
    (chapter,) = (chapter for chapter in CHAPTERS if chapter.path.stem == name)
    points = sum(task.points for task in chapter.tasks)
    assert scores[name, "reference"] == (points, points)
    assert scores[name, "untouched"] == (0, points)


def test_otter_finds_every_solution_by_its_markers():
    replace = pytest.importorskip(
        "otter.assign.solutions", reason="pip install -e '.[classroom]'"
    ).replace_solutions
    no_python = []
    for chapter in CHAPTERS:
        for id, source in chapter.solutions.items():
            lines = source.split("\n")
            inside = {n for first, last in blocks(source) for n in range(first, last + 1)}
            given = [line for n, line in enumerate(lines) if n not in inside]
            left = replace(lines, "python")
            assert [line for line in left if line.strip() != "..."] == [
                line for line in given if line.strip() != "..."
            ]
            try:
                compile("\n".join(left), id, "exec")
            except SyntaxError:
                no_python.append(chapter.path.stem)
    assert no_python == ["07d_pth"]  # `...` where the cases of a match were

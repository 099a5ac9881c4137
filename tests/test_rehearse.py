"""The students' notebooks on their first day: what runs, what waits, and that nothing else
stops.
"""

import nbformat
import pytest

from course import assign, rehearse
from course.export import ROOT
from course.tasks import Chapter
from course.waiting import OWN


RMSNORM, ROPE = (
    Chapter(ROOT / "notebooks" / name) for name in ("02_rmsnorm.ipynb", "03_rope.ipynb")
)


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    out = tmp_path_factory.mktemp("course") / "students"
    assert assign.main([str(out), "--only", "02", "03"]) == 0
    return out


@pytest.mark.parametrize("chapter", [RMSNORM, ROPE], ids=["02", "03"])
def test_on_the_first_day_only_tasks_and_what_needs_them_stop(smollm2_path, handed_out, chapter):
    """Two chapters, one without and one with definitions in its figures; `make test-students` runs
    all.
    """
    results = rehearse.rehearse(handed_out, chapter, fast=True)
    assert [each for each in results if each.kind == "wrong"] == []
    assert {each.cell for each in results if each.kind == "ok"} >= {
        cell.id for cell in chapter.cells
    } - chapter.waiting
    for each in results:
        if each.kind == "stub":
            assert len(each.said) == 2  # one line, no traceback


def test_without_finished_modules_cells_say_what_they_wait_for(smollm2_path, tmp_path):
    assert assign.main([str(tmp_path / "out"), "--only", "02", "--without-finished"]) == 0
    results = rehearse.rehearse(tmp_path / "out", RMSNORM, fast=True)
    wrong = [each.said for each in results if each.kind == "wrong"]
    assert len(wrong) > 3 and all(
        len(said) == 2 and said[1].startswith("This cell waits for ") for said in wrong
    )
    assert {said[1].partition(":")[0] for said in wrong} >= {
        "This cell waits for chapter 07_checkpoints"
    }, wrong


def cells(*sources):
    return [nbformat.v4.new_code_cell(source, id=f"c{n}") for n, source in enumerate(sources)]


@pytest.fixture
def small(tmp_path):
    """small(*sources): a chapter with one definition, `twice`, its check and further cells."""

    def make(*sources):
        first = "#| default_exp small\n#| export\ndef twice(x):\n    # BEGIN SOLUTION\n    return 2 * x\n    # END SOLUTION"
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_markdown_cell("# 1. Small", id="title")]
        )
        notebook.cells += cells(first, "assert twice(2) == 4", *sources)
        (tmp_path / "01_small.ipynb").write_text(nbformat.writes(notebook), encoding="utf-8")
        return Chapter(tmp_path / "01_small.ipynb")

    return make


@pytest.mark.parametrize(
    "source, waits",
    [
        ("print(twice(3))", {"c2"}),
        ("four = twice(2)", {"c2"}),
        ("def again(x):\n    return twice(x)", set()),
        ("three = 3", set()),
    ],
)
def test_what_waits_for_a_solution(small, source, waits):
    assert small(source).waiting == {"c1"} | waits


def test_what_follows_from_a_cell_that_waits(small):
    """`y` is bound below what stops, so that whoever wants it waits, too; `z` stands above."""
    chapter = small(
        "z = 1\nx = twice(2)\ny = 2",
        "print(y)",
        "print(z)",
        "def again(x):\n    return twice(x)",
        "again(1)",
    )
    assert chapter.waiting == {"c1", "c2", "c3", "c6"}


@pytest.mark.parametrize(
    "cell, name, words, shown, kind",
    [
        ("c1", "NotImplementedError", "twice", OWN + "twice is still missing.", "stub"),
        (
            "c1",
            "NotImplementedError",
            "twice",
            "This cell waits for chapter 02_other: twice is still missing.",
            "wrong",
        ),
        ("c1", "TypeError", "unsupported operand", "Traceback", "follow-up"),
        ("c1", "ModuleNotFoundError", "No module named 'minillama.rope'", "Traceback", "wrong"),
        ("c2", "NameError", "name 'model' is not defined", "Traceback", "wrong"),
    ],
)
def test_what_is_wrong(small, cell, name, words, shown, kind):
    chapter = small("three = 3")
    (ran,) = (c for c in cells("", "", "") if c.id == cell)
    ran.outputs = [nbformat.v4.new_output("error", ename=name, evalue=words, traceback=[shown])]
    assert rehearse.result(chapter, ran).kind == kind


def test_a_folder_that_is_none_is_one_line(tmp_path, capsys):
    assert rehearse.main([str(tmp_path), "02"]) == 2
    assert capsys.readouterr().err.count("\n") == 1

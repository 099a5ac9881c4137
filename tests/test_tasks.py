"""Tasks and slices: every task of the series passes with its reference solution, and says what is
wrong with others.
"""

import ast
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
import torch
from helpers import table
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course import grade, points, tasks
from course.run_tasks import run_task
from course.slices import needed, statements
from minillama.checkpoints import names
from minillama.checkpoints import tensors as checkpoints


ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = [tasks.Chapter(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


@pytest.fixture(scope="module")
def alone():
    """A new process for every call, forked from one that has loaded everything, where the system
    can.
    """
    with grade.context(grade.Settings(())).Pool(1, maxtasksperchild=1) as pool:
        yield lambda function, *arguments: pool.apply(function, arguments)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)
def test_every_task_passes_in_its_slice(chapter, alone):
    if any(mark in cell.source for cell in chapter.cells for mark in ("custom_op(", ".register_")):
        # subtle: a cell that defines an operation anew takes away the package's own, for the rest
        # of the process
        assert not alone(failures, chapter.path)
    else:
        assert not failures(chapter.path)


def failures(path: Path) -> list[tuple[str, str]]:
    outcomes = [run_task(task, task.reference) for task in tasks.tasks_of(path)]
    return [(outcome.task, outcome.message) for outcome in outcomes if not outcome.passed]


def test_every_solution_belongs_to_one_task_with_a_name_of_its_own():
    found = [task for chapter in CHAPTERS for task in chapter.tasks]
    ids = [task.id for task in found]
    assert len(set(ids)) == len(ids)
    for chapter in CHAPTERS:
        solutions = [id for task in chapter.tasks for id in task.solutions]
        assert solutions == [cell.id for cell in chapter.cells if tasks.BEGIN in cell.source], (
            chapter.path.name
        )
    assert all(task.points > 0 and task.checks and task.section for task in found)


def test_what_may_be_reread():
    sections = {task.id: task.section for chapter in CHAPTERS for task in chapter.tasks}
    assert sections["rope-apply_rope"] == "3.5 The exported rotation"
    # the exercise's solution is compared with that rule
    assert sections["rope-ex5"] == "3.8 Beyond the trained range"
    # it uses no definition
    assert sections["kv_cache-ex1"] == "8. KV cache: remember keys and values, not the past"


def slice_of(*cells):
    """The text of what the last of some cells needs."""
    program = [
        step
        for n, cell in enumerate(cells)
        for step in statements(str(n), cell, n == len(cells) - 1)
    ]
    roots = [place for place, step in enumerate(program) if step.cell == str(len(cells) - 1)]
    return [ast.unparse(program[place].node) for place in sorted(needed(program, roots))]


SLICES = {  # cells, what is left of them
    "only what is used": (["a = 1", "b = 2", "assert a"], ["a = 1", "assert a"]),
    "the last binding": (["a = 1", "a = 2", "assert a"], ["a = 2", "assert a"]),
    "a name that is used to bind itself": (
        ["a = 1", "a += 1", "assert a"],
        ["a = 1", "a += 1", "assert a"],
    ),
    "no drawing": (["a = 1", "draw.it(a)\nprint(a)", "assert a"], ["a = 1", "assert a"]),
    "no other checks": (["a = 1", "assert a == 1\ncheck(a, 1)", "assert a"], ["a = 1", "assert a"]),
    "what a function uses when it is called": (
        ["def f(): return g()", "def g(): return 1", "assert f()"],
        ["def f():\n    return g()", "def g():\n    return 1", "assert f()"],
    ),
    "not what replaces it later": (
        ["g = 1", "def f(): return g", "x = f()", "g = 2", "assert x"],
        ["g = 1", "def f():\n    return g", "x = f()", "assert x"],
    ),
    "a changed object": (
        ["a = [1]", "a.append(2)", "a[0] = 3", "assert a"],
        ["a = [1]", "a.append(2)", "a[0] = 3", "assert a"],
    ),
    "an object changed by a call": (
        ["a = [1]", "change(a)", "assert a"],
        ["a = [1]", "change(a)", "assert a"],
    ),
    "changed in a loop": (
        ["a = [[1]]", "for b in a:\n    b.append(2)\n    print(b)", "assert a"],
        ["a = [[1]]", "for b in a:\n    b.append(2)", "assert a"],
    ),
    "bound in a branch": (
        ["a = 1", "if a:\n    b = 2\nelse:\n    b = 3", "assert b"],
        ["a = 1", "if a:\n    b = 2\nelse:\n    b = 3", "assert b"],
    ),
    "an error that is shown": (
        ["a = 1", "try:\n    f(a)\nexcept E as e:\n    print(e)", "assert a"],
        ["a = 1", "assert a"],
    ),
    "a loop's own names": (
        ["b = 1", "a = [[2]]", "for b in a:\n    b.append(3)", "assert a"],
        ["a = [[2]]", "for b in a:\n    b.append(3)", "assert a"],
    ),
    "an error's own name": (
        ["e = 1", "a = []", "try:\n    a.append(1)\nexcept E as e:\n    a.append(e)", "assert a"],
        ["a = []", "try:\n    a.append(1)\nexcept E as e:\n    a.append(e)", "assert a"],
    ),
    "comprehensions run at once": (
        ["n = 1", "a = [n for _ in 'ab']", "n = 2", "assert a"],
        ["n = 1", "a = [n for _ in 'ab']", "assert a"],
    ),
}


@pytest.mark.parametrize("cells, left", SLICES.values(), ids=SLICES)
def test_a_slice_holds_what_is_needed_and_no_more(cells, left):
    assert slice_of(*cells) == left


SOLUTION = "def half(x):\n    # BEGIN SOLUTION\n    return x / two()\n    # END SOLUTION"
CHECK = (
    'check(half(8.0), 4.0, {"halve, do not double": 16.0}, what="half of 8")\n'
    "assert isinstance(half(1.0), float)\nassert half(2.0) == 1, 'half of two is one'"
)


@pytest.fixture
def task(tmp_path):
    cells = [
        new_markdown_cell("# 3. A thing\n\n## 3.1 Two"),
        new_code_cell(
            "#| default_exp thing\nimport torch\nfrom course.check import check\n"
            "from minillama.checkpoints import tensors"
        ),
        new_code_cell("def two():\n    return 2"),
        new_markdown_cell("## 3.2 Exercises\n\n### Exercise 3.1: half"),
        new_code_cell(SOLUTION, id="half"),
        new_code_cell(CHECK),
        new_markdown_cell("### Exercise 3.2: more"),
        new_code_cell("raise RuntimeError('not for this task')"),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "03_thing.ipynb")
    (found,) = tasks.tasks_of(tmp_path / "03_thing.ipynb")
    return found


def test_a_task_of_a_small_chapter(task):
    assert (task.id, task.title, task.points, task.section) == (
        "thing-ex1",
        "Exercise 3.1: half",
        2,
        "3.1 Two",
    )
    assert run_task(task, task.reference) == run_task(task)
    assert run_task(task).passed and run_task(task).points == 2


WRONG = {  # what a student wrote, what is said
    "a mistake that has a name": ("return x * two()", "half of 8: halve, do not double"),
    "a mistake that has none": (
        "return x",
        "half of 8 has the right shape, but is off by up to 4 (allowed: 1e-05)",
    ),
    "nothing": ("pass", "half of 8 is still missing: fill in the exercise and run this cell again"),
    "a stub": (
        'raise NotImplementedError("exercise 3.1: half")',
        "exercise 3.1: half is still missing",
    ),
    "an assertion without words": (
        "return torch.tensor(x / 2)",
        "`assert isinstance(half(1.0), float)` does not hold",
    ),
    "an assertion with words": ("return x / 2 if x > 2 else 3.0", "half of two is one"),
    "an error": (
        "return x / 0",
        "line 2 of your cell, `return x / 0`: ZeroDivisionError: float division by zero",
    ),
    "an error of several lines": (
        "raise ValueError('a\\n  b')",
        "line 2 of your cell, `raise ValueError('a\\n  b')`: ValueError: a b",
    ),
    "an assertion of the student's": (
        "assert False, 'oh'",
        "line 2 of your cell, `assert False, 'oh'`: AssertionError: oh",
    ),
    "an error far below": (
        "return torch.zeros(2) @ torch.zeros(3)",
        "line 2 of your cell, `return torch.zeros(2) @ torch.zeros(3)`: RuntimeError: inconsistent",
    ),
    "no Python": ("return (", "line 2: '(' was never closed"),
    "an end": ("raise SystemExit(0)", "line 2 of your cell, `raise SystemExit(0)`: SystemExit: 0"),
    "a name that is nowhere": (
        "return halve(x)",
        "line 2 of your cell, `return halve(x)`: NameError: name 'halve' is not defined",
    ),
}


@pytest.mark.parametrize("body, words", WRONG.values(), ids=WRONG)
def test_what_a_student_is_told(task, body, words, capsys):
    outcome = run_task(task, {"half": f"def half(x):\n    {body}"})
    assert not outcome.passed and outcome.points == 0 and outcome.section == "3.1 Two"
    assert outcome.message.startswith(words) and "\n" not in outcome.message
    assert capsys.readouterr().out == ""


def test_other_ways_that_are_right(task):
    assert run_task(
        task, {"half": "import math\n\n\ndef half(x):\n    return math.ldexp(x, -1)"}
    ).passed
    assert run_task(task, {"half": "half = lambda x: x * 0.5"}).passed
    assert run_task(
        task, {"half": "def half(x):\n    return mine(x)"}, extra="def mine(x):\n    return x / 2"
    ).passed
    assert (
        run_task(
            task, {"half": "def half(x):\n    return x / two()"}, extra="def two():\n    return 4"
        ).passed
        is False
    )


def test_names_of_the_student_s_own_are_for_the_student_alone(task):
    right = "\n\n\ndef half(x):\n    return x / two()"
    assert run_task(task, {"half": "import torch\nfrom course.check import check" + right}).passed
    assert run_task(task, {"half": "check = isinstance = None" + right}).passed
    outcome = run_task(
        task, {"half": "def check(*a, **k): pass\ndef isinstance(*a): return True\n\n\nhalf = abs"}
    )
    assert outcome.message.startswith("half of 8 has the right shape, but is off by up to 4")


def test_what_was_only_given_is_not_to_be_changed(task):
    notebook = nbformat.read(task.chapter.path, as_version=4)
    notebook.cells[5].source = 'x = torch.ones(3)\ncheck(half(x), x / 2, what="half of x")'
    nbformat.write(notebook, task.chapter.path)
    (task,) = tasks.tasks_of(task.chapter.path)
    assert run_task(task, {"half": "def half(x):\n    return x.clone().div_(2)"}).passed
    outcome = run_task(task, {"half": "def half(x):\n    return x.zero_()"})
    assert outcome.message == "your code changes `x`, which it was only given: work on a copy"


def test_a_task_leaves_nothing_behind(task):
    before, folder, kinds = torch.get_rng_state(), os.getcwd(), dict(checkpoints.KINDS)
    find = names.rename
    body = "torch.manual_seed(7); torch.set_grad_enabled(False); torch.set_default_dtype(torch.float64)\n    "
    body += "tensors.KINDS.clear(); tensors.rename = None; tensors.mine = 1\n    return x / 2"
    assert run_task(task, {"half": f"def half(x):\n    {body}"}).passed
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32 and os.getcwd() == folder
    assert checkpoints.KINDS == kinds and names.rename is find and not hasattr(checkpoints, "mine")


def graded(chapter, kind: str) -> dict[str, dict]:
    """nbgrader's metadata of a notebook's cells, by cell id: those with `solution`, or those with
    `grade`.
    """
    cells = json.loads(chapter.path.read_text(encoding="utf-8"))["cells"]
    found = {
        cell["id"]: cell["metadata"]["nbgrader"] for cell in cells if "nbgrader" in cell["metadata"]
    }
    return {id: each for id, each in found.items() if each[kind]}


def test_grading_metadata():
    with table() as row:
        for chapter in CHAPTERS:
            with row(chapter.path.name):
                check_metadata(chapter)


def check_metadata(chapter):
    """It is up to date, names all solutions and checks, and their points are the tasks'."""
    text = chapter.path.read_text(encoding="utf-8")
    assert points.numbered(chapter) == text, (
        f"{chapter.path.name}: its grading metadata is stale; run: make export"
    )
    solutions, checks = graded(chapter, "solution"), graded(chapter, "grade")
    assert list(solutions) == [cell.id for cell in chapter.cells if tasks.BEGIN in cell.source]
    assert set(checks) == {id for task in chapter.tasks for id in task.checks} and not set(
        checks
    ) & set(solutions)
    assert sum(each["points"] for each in checks.values()) == sum(
        task.points for task in chapter.tasks
    )
    # subtle: to nbgrader a value is a score, and stderr a fault
    for cell in json.loads(text)["cells"]:
        if cell["id"] in checks:
            kinds = {output["output_type"] + output.get("name", "") for output in cell["outputs"]}
            assert not kinds & {"execute_result", "streamstderr"}, cell["id"]


def test_grading_metadata_has_nbgraders_form_and_names_of_its_own():
    keys = {"grade", "grade_id", "locked", "schema_version", "solution", "task"}
    found = [
        each
        for chapter in CHAPTERS
        for kind in ("solution", "grade")
        for each in graded(chapter, kind).values()
    ]
    names = [each["grade_id"] for each in found]
    assert len(set(names)) == len(names) and all(
        re.fullmatch(r"[\w-]+", name, re.ASCII) for name in names
    )
    assert all(each.keys() == keys | ({"points"} if each["grade"] else set()) for each in found)
    assert all(
        each["schema_version"] == 3 and each["locked"] == each["grade"] != each["solution"]
        for each in found
    )


GUIDE = (ROOT / "course" / "README.md").read_text(encoding="utf-8")


def test_the_guide_s_numbers():
    """Points are exact; hours, which change with every sentence of a chapter, nearly so."""
    number = {chapter.path.stem.split("_")[0]: chapter for chapter in CHAPTERS}
    found = re.search(r"(\d+) tasks, (\d+) points, about (\d+) hours", GUIDE).groups()
    tasks_, points_, hours = map(int, found)
    assert (tasks_, points_) == totals(CHAPTERS)[:2] and abs(hours - totals(CHAPTERS)[2]) < 3
    plans = re.findall(
        r"(?<=\n\| week \| chapters \| points \| hours \|\n\|---:\|---\|---:\|---:\|\n)(?:\|.*\n)+",
        GUIDE,
    )
    assert [plan.count("\n") - 1 for plan in plans] == [4, 8, 14]
    for plan in plans:
        rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in plan.splitlines()]
        weeks = [[number[name] for name in row[1].split(", ")] for row in rows[:-1]]
        chosen = [chapter for week in weeks for chapter in week]
        assert len(set(chosen)) == len(chosen)
        for row, chapters in zip(rows, [*weeks, chosen], strict=True):
            _, points_, hours = totals(chapters)
            assert int(row[2]) == points_, (
                f"week {row[0]} of {len(weeks)} has {points_} points: say so in the guide"
            )
            assert abs(int(row[3]) - hours) < 1.5, (
                f"week {row[0]} of {len(weeks)} takes {hours:.1f} hours"
            )


def totals(chapters) -> tuple[int, int, float]:
    found = [task for chapter in chapters for task in chapter.tasks]
    return (
        len(found),
        sum(task.points for task in found),
        sum(sum(points.hours(chapter)) for chapter in chapters),
    )


def test_metadata_that_went_astray_is_written_anew_once(task, capsys):
    path = task.chapter.path
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells[3:6]:
        cell.metadata["nbgrader"] = {"grade_id": "copied", "points": 7}
        cell.metadata["tags"] = ["kept"]
    nbformat.write(notebook, path)
    for words in ("03_thing.ipynb", "nothing"):
        assert points.main(["--write", "--notebooks", str(path.parent)]) == 0
        assert (
            capsys.readouterr().out
            == f"grading metadata: {words} to bring up to date in 1 notebooks\n"
        )
    found = nbformat.read(path, as_version=4)
    assert [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in found.cells[3:6]] == [
        None, "thing-ex1", "thing-ex1-check"
    ]  # fmt: skip
    assert [cell.metadata.pop("tags") for cell in found.cells[3:6]] == [["kept"]] * 3
    assert found.cells[5].metadata.nbgrader.points == 2 and [
        path.name for path in path.parent.iterdir()
    ] == [path.name]


def test_points_of_what_cannot_be_read_are_one_line(tmp_path, capsys):
    (tmp_path / "03_thing.ipynb").write_text("{", encoding="utf-8")
    assert points.main(["--write", "--notebooks", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "03_thing.ipynb").read_text(encoding="utf-8") == "{"


def test_a_solution_that_nothing_checks_is_a_fault(tmp_path, task):
    notebook = nbformat.read(task.chapter.path, as_version=4)
    del notebook.cells[5]
    nbformat.write(notebook, task.chapter.path)
    with pytest.raises(
        ValueError, match="03_thing.ipynb: nothing checks the solution in cell half"
    ):
        tasks.tasks_of(task.chapter.path)

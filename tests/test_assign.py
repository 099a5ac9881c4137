"""The students' repository: what is in it and what is not, that it works, and the way from there to
a full score.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from course import assign, check_work
from course.collect import Work, blank, collect, with_own
from course.export import ROOT, by_hand, file_of, modules_in
from course.finished import ARCHIVE
from course.run_tasks import scene, undisturbed
from course.slices import needed
from course.stubs import blocks, stub
from course.tasks import Chapter


CHAPTERS = {path.name: Chapter(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
WRITTEN = [name for chapter in CHAPTERS.values() for name in chapter.modules]
ASK = """
import json, sys
from pathlib import Path
from course import check_work, collect, tasks
from course.run_tasks import run_task

root, said = Path.cwd(), {}
wrong = check_work.export(root)
for name in sys.argv[1:]:
    chapter = tasks.Chapter(root / "course/assigned" / name)
    work = collect.collect(root / "notebooks" / name, chapter)
    for task in chapter.tasks:
        outcome = run_task(task, work.sources, work.extra, root / "notebooks")
        said[task.id] = "passed" if outcome.passed else outcome.message
print(json.dumps([wrong, said]))
"""


def python(folder: Path, *arguments, **env) -> subprocess.CompletedProcess:
    env = (
        os.environ
        | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        | env
    )
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, encoding="utf-8"
    )


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    """The whole course, as it is handed out."""
    out = tmp_path_factory.mktemp("course") / "students"
    assert assign.main([str(out)]) == 0
    return out


@pytest.fixture
def mine(handed_out, tmp_path):
    """A copy of it to work in."""
    return Path(shutil.copytree(handed_out, tmp_path / "mine"))


@pytest.fixture(scope="module")
def withheld(tmp_path_factory):
    """Chapters 2 and 4 without finished modules."""
    out = tmp_path_factory.mktemp("course") / "withheld"
    assert assign.main([str(out), "--only", "02", "04", "--without-finished"]) == 0
    return out


def solve(folder: Path, name: str, changes: dict[str, str] | None = None) -> None:
    """Put the solutions, or others, into a student's notebook."""
    path = folder / "notebooks" / name
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.id in CHAPTERS[name].solutions:
            cell.source = (changes or CHAPTERS[name].solutions).get(cell.id, cell.source)
    nbformat.write(notebook, path)


def test_everything_is_still_missing_and_nothing_else_is_wrong(mine):
    # those compile for seconds
    names = [name for name in CHAPTERS if not name.startswith(("11a", "11d"))]
    done = python(mine, "-c", ASK, *names)
    assert done.returncode == 0, done.stderr
    wrong, said = json.loads(done.stdout)
    assert wrong == [] and len(said) == sum(len(CHAPTERS[name].tasks) for name in names)
    others = {id: words for id, words in said.items() if "still missing" not in words}
    # whose stub is `pass`
    assert others == {"config-LlamaConfig": "heads that do not divide was accepted"}
    modules = ", ".join(f"minillama.{name}" for name in WRITTEN)
    done = python(mine, "-c", f"import {modules}; print(minillama.__file__)")
    assert done.returncode == 0 and done.stdout.strip() == str(
        mine / "minillama" / "__init__.py"
    ), done.stderr


def test_with_the_solutions_put_back_everything_passes(mine):
    for name in CHAPTERS:
        solve(mine, name)
    names = [name for name in CHAPTERS if name.startswith(("02", "03", "06", "07d"))]
    done = python(mine, "-c", ASK, *names)
    assert done.returncode == 0, done.stderr
    wrong, said = json.loads(done.stdout)
    assert wrong == [] and {id: words for id, words in said.items() if words != "passed"} == {}
    # the modules are the reference's, so the other chapters pass as in test_tasks.py
    for name in WRITTEN:
        ours = file_of(ROOT / "minillama", name).read_bytes()
        assert file_of(mine / "minillama", name).read_bytes() == ours


def solution_lines() -> set[str]:
    """Lines that only solutions hold, long enough to be told from others."""
    solved, given = set(), set()
    for chapter in CHAPTERS.values():
        for cell in chapter.cells:
            lines = [line.strip() for line in cell.source.split("\n")]
            inside = {n for first, last in blocks(cell.source) for n in range(first + 1, last)}
            solved |= {line for n, line in enumerate(lines) if n in inside and len(line) > 20}
            given |= {line for n, line in enumerate(lines) if n not in inside}
    return solved - given


def words(outputs: list) -> str:
    """All text in a cell's outputs."""
    parts = [
        [output.get("text", ""), *output.get("data", {}).values(), *output.get("traceback", [])]
        for output in outputs
    ]
    return "\n".join(str(part) for part in sum(parts, []))


def test_nothing_leaks(handed_out):
    files = [path for path in handed_out.rglob("*") if path.is_file()]
    texts = {
        path: path.read_text(encoding="utf-8", errors="replace")
        for path in files
        if path.suffix != ".ipynb"
    }
    for path in handed_out.rglob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not [cell for cell in cells if cell.get("execution_count")]
        texts[path] = "\n".join(
            f"{cell.source}\n{words(cell.get('outputs', []))}" for cell in cells
        )
    secret = solution_lines()
    assert len(secret) > 400
    leaks = {
        path.name: found
        for path, text in texts.items()
        if (found := secret & set(map(str.strip, text.split("\n"))))
    }
    assert leaks == {}
    markers = ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS")
    tools = handed_out / "course"
    assert not [
        path
        for path, text in texts.items()
        if path.parent != tools and any(word in text for word in markers)
    ]
    modules = set(modules_in(handed_out / "minillama"))
    assert all(map(by_hand, modules)) and not modules & set(WRITTEN)
    # the only place where solutions are
    with zipfile.ZipFile(handed_out / "minillama" / ARCHIVE) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"{name.replace('.', '/')}.py": file_of(ROOT / "minillama", name).read_bytes()
            for name in WRITTEN
        }
    assert not {"assign.py", "grade.py", "mutations.py"} & {path.name for path in files}
    assert not [
        path for path in files if "__pycache__" in path.parts or path.stat().st_size > 2_000_000
    ]


def test_without_finished_modules_no_file_holds_a_solution(withheld):
    files = {
        path: path.read_text(encoding="utf-8", errors="replace") for path in withheld.rglob("*.py")
    }
    assert not (withheld / "minillama" / ARCHIVE).exists()
    assert {file_of(withheld / "minillama", name) for name in WRITTEN} <= set(files)
    secret = solution_lines()
    assert not [
        path.name for path, text in files.items() if secret & set(map(str.strip, text.split("\n")))
    ]


def test_outputs_show_what_to_expect_and_answer_nothing(handed_out):
    kept = 0
    for name, chapter in CHAPTERS.items():
        theirs = {
            c.id: c for c in nbformat.read(handed_out / "notebooks" / name, as_version=4).cells
        }
        ours = {c.id: c for c in nbformat.read(chapter.path, as_version=4).cells}
        for cell in chapter.cells:
            left, said = theirs[cell.id].outputs, words(theirs[cell.id].outputs)
            kept += bool(left)
            if cell.id not in chapter.waiting | set(chapter.solutions):
                assert words(ours[cell.id].outputs) == said
            elif cell.exercise or cell.id in chapter.solutions:
                assert left == [], f"{name}, cell {cell.id} shows what an exercise asks for"
            else:
                assert "right" not in said.split("\n"), f"{name}, cell {cell.id}"
                figures = [
                    output
                    for output in ours[cell.id].outputs
                    if "image/png" in output.get("data", {})
                ]
                assert figures == [
                    output for output in left if "image/png" in output.get("data", {})
                ]
        assigned = nbformat.read(handed_out / "course/assigned" / name, as_version=4).cells
        assert not [cell for cell in assigned if cell.get("outputs")]
    assert kept > 600


def answers(task) -> set[str]:
    """The numbers that an exercise asks for (`answer = ...`), as outputs print them, if they have
    three digits.
    """
    stubs, values = "\n".join(blank(task.chapter, id) for id in task.solutions), []
    if names := re.findall(r"^(\w+) = \.\.\.$", stubs, re.MULTILINE):
        steps = task.chapter.steps(task.solutions)
        with undisturbed(), scene(task.chapter.path.parent) as module:
            for place in sorted(
                needed(steps, [p for p, step in enumerate(steps) if step.cell in task.solutions])
            ):
                exec(compile(ast.Module([steps[place].node], []), task.id, "exec"), vars(module))
        given = [getattr(module, name, None) for name in names]
        values = [
            value
            for each in given
            for value in (each if isinstance(each, list | tuple) else [each])
        ]
    forms = ("", ",.0f", ".0f", ".1f", ".2f", ".3f", ".3g")
    texts = {f"{value:{form}}" for value in values if type(value) in (int, float) for form in forms}
    return {text for text in texts if len(re.sub(r"\D|e.*", "", text).strip("0")) > 2}


def printed(numbers: set[str], path: Path) -> set[str]:
    """Those numbers that a notebook's outputs hold."""
    text = "\n".join(
        words(cell.get("outputs", []))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    )
    return {
        number
        for number in numbers
        if re.search(rf"(?<![\d.,]){re.escape(number)}(?!\d|[.,]\d)", text)
    }


def test_no_output_holds_the_answer_to_an_exercise(handed_out):
    asked = {name: set().union(*map(answers, chapter.tasks)) for name, chapter in CHAPTERS.items()}
    assert sum(map(len, asked.values())) > 60
    assert {
        name: found
        for name in asked
        if (found := printed(asked[name], handed_out / "notebooks" / name))
    } == {}
    assert printed({"6.5625", "6.562"}, handed_out / "notebooks" / "07c_gguf.ipynb") == {"6.5625"}


def test_the_files_that_chapters_open_are_there(handed_out):
    cells = [cell for chapter in CHAPTERS.values() for cell in chapter.cells]
    named = {
        Path(name)
        for cell in cells
        for name in re.findall(r"[\"']\.\./([\w/.-]+)[\"']", cell.source)
    }
    # 7a names /etc/passwd
    named = {path for path in named if ".." not in path.parts and (ROOT / path).exists()}
    assert Path("data/studies/scaling.json") in named
    assert [path for path in sorted(named) if not (handed_out / path).exists()] == []


def test_prose_and_given_cells_are_kept(handed_out):
    for name, chapter in CHAPTERS.items():
        ours = [c for c in nbformat.read(chapter.path, as_version=4).cells if c.id != "colab"]
        theirs = nbformat.read(handed_out / "notebooks" / name, as_version=4).cells
        assert [cell.id for cell in ours] == [cell.id for cell in theirs]
        changed = {a.id for a, b in zip(ours, theirs, strict=True) if a.source != b.source}
        assert changed == set(chapter.solutions), name


def test_the_same_repository_gives_the_same_bytes(handed_out, tmp_path):
    assert assign.main([str(tmp_path / "again")]) == 0
    files = sorted(path.relative_to(handed_out) for path in handed_out.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "again")
        for path in (tmp_path / "again").rglob("*")
        if path.is_file()
    )
    assert all(
        (handed_out / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
        for file in files
    )


def test_one_chapter_comes_with_all_other_modules(tmp_path, capsys):
    assert assign.main([str(tmp_path / "one"), "--only", "03"]) == 0
    assert "1 notebooks with 9 tasks" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "one" / "notebooks").glob("*.ipynb")] == [
        "03_rope.ipynb"
    ]
    assert all(map(by_hand, modules_in(tmp_path / "one" / "minillama")))
    solve(tmp_path / "one", "03_rope.ipynb")
    done = python(tmp_path / "one", "-m", "course.check_work", "3")
    assert (
        done.returncode == 0 and done.stdout.count("right") == 9 and "21 of  21" in done.stdout
    ), done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--only", "99"], "there is no chapter 99; the chapters are 0, 1"),
        ([], "is not empty: name a new folder"),
    ],
)
def test_a_fault_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, words):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    out = tmp_path / "new" if arguments else tmp_path
    assert assign.main([str(out), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


STUBS = {  # a cell, the names that others use, what is handed out
    "in a function": (
        "def f(x):\n    y = x\n    # BEGIN SOLUTION\n    z = y\n    return z\n    # END SOLUTION",
        "def f(x):\n    y = x\n    raise NotImplementedError(\"exercise 1: 'f'\")",
    ),
    "answers": (
        "# BEGIN SOLUTION\nhelp_ = 1\na, b = help_, 2\n# END SOLUTION\nc = 3",
        "a = ...\nb = ...\nc = 3",
    ),
    "a definition": (
        "# BEGIN SOLUTION\ndef a(x):\n    y = x\n    return y\n# END SOLUTION",
        "a = ...",
    ),
    "two in one cell": (
        "def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION\n\n\n# BEGIN SOLUTION\nb "
        "= 2\n# END SOLUTION",
        "def f():\n    raise NotImplementedError(\"exercise 1: 'f'\")\n\n\nb = ...",
    ),
    "cases": (
        "match x:\n    # BEGIN SOLUTION\n    case 1:\n        pass\n    # END SOLUTION\n    case "
        "other:\n        pass",
        "match x:\n    case _ if True:  # put your cases here\n        raise "
        "NotImplementedError(\"exercise 1: 'f'\")\n"
        "    case other:\n        pass",
    ),
    "hidden tests": (
        "a = 1\n# BEGIN HIDDEN TESTS\nassert a\n# END HIDDEN TESTS\nb = 2",
        "a = 1\nb = 2",
    ),
}


@pytest.mark.parametrize("cell, left", STUBS.values(), ids=STUBS)
def test_stubs(cell, left):
    assert stub(cell, 'exercise 1: "f"', frozenset({"a", "b", "f"})) == left
    compile(left, "stub", "exec")


@pytest.fixture
def check(mine, monkeypatch, capsys):
    """check_work on `mine`, in this process, with the reference's package: its exit code and what
    it printed.
    """
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(*arguments):
        code = check_work.main(list(arguments), mine)
        return code, *capsys.readouterr()

    return run


def test_the_student_s_loop(mine, check):
    """Nothing, one mistake with its name and section, the right answer, the table; other chapters'
    results are kept.
    """
    rmsnorm = CHAPTERS["02_rmsnorm.ipynb"]
    (definition,) = next(task.solutions for task in rmsnorm.tasks if task.id == "rmsnorm-RMSNorm")
    right = rmsnorm.solutions[definition]
    _, out, _ = check("02")
    assert "to do  `RMSNorm`, Exercise 2.1: how many norms?" in out and "WRONG" not in out
    outside = right.replace(
        "torch.rsqrt(mean_square + self.eps)", "(1 / (mean_square.sqrt() + self.eps))"
    )
    solve(mine, "02_rmsnorm.ipynb", {definition: outside})
    _, out, _ = check("2")
    assert "  WRONG  `RMSNorm`\n         RMSNorm: is your eps inside the square root?\n" in out
    assert "         read again: 2.8 The exported definition\n" in out
    solve(mine, "02_rmsnorm.ipynb", {definition: right})
    code, out, _ = check("02")
    assert code == 0 and "  right  `RMSNorm`" in out
    lines = check("05")[1].splitlines()
    row = ["1", "of", "4", "3", "of", "9", "rmsnorm:", "yours"]
    assert [line.split()[-8:] for line in lines if line.startswith("2. RMSNorm")] == [row]
    assert (
        len(
            [line for line in lines if re.search(r"of +\d+( +\w+: (yours|finished|given))?$", line)]
        )
        == len(CHAPTERS) + 1
    )


def own_modules(folder: Path) -> set[str]:
    """The student's modules that are in use."""
    return {name for name in modules_in(folder / "minillama") if not by_hand(name)}


def test_a_module_takes_the_place_of_the_finished_one_once_its_definitions_are_right(mine, check):
    """Not half-solved, and only until it is wrong again; exercises do not count."""
    rope = CHAPTERS["03_rope.ipynb"]
    first, *_ = rope.definitions
    solve(mine, rope.path.name, {id: rope.solutions[id] for id in first.solutions})
    assert "rope: finished" in check("03")[1] and own_modules(mine) == set()
    definitions = {id: rope.solutions[id] for task in rope.definitions for id in task.solutions}
    solve(mine, rope.path.name, definitions)
    assert "rope: yours" in check("03")[1] and own_modules(mine) == {"rope"}
    assert (mine / "minillama/rope.py").read_bytes() == (ROOT / "minillama/rope.py").read_bytes()
    last = rope.definitions[-1].solutions[-1]
    solve(mine, rope.path.name, {last: definitions[last].replace("return ", "return 0 * ")})
    assert "rmsnorm: finished" in check("02")[1] and own_modules(mine) == {"rope"}, (
        "another chapter's check changes it"
    )
    assert "rope: finished" in check("03")[1] and own_modules(mine) == set()
    assert check("--export")[0] == 0 and "rope" in own_modules(mine), (
        "--export does not ask whether it is right"
    )


@pytest.mark.parametrize(
    "own, words",
    [
        ("UNIT = 1 / 0", "the finished rmsnorm.py stays in use: yours ends in ZeroDivisionError"),
        ("UNIT = 1", "rmsnorm: yours"),
    ],
)
def test_a_module_that_cannot_be_imported_stops_nothing(mine, check, own, words):
    solve(mine, "02_rmsnorm.ipynb")
    path = mine / "notebooks" / "02_rmsnorm.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(2, nbformat.v4.new_code_cell(own))
    nbformat.write(notebook, path)
    out = check("02")[1]
    assert words in out and out.count("  right  ") == 4
    assert own_modules(mine) == (set() if "finished" in words else {"rmsnorm"})


def test_a_module_must_have_all_its_names():
    assert check_work.importing({"rmsnorm": ""}, CHAPTERS["02_rmsnorm.ipynb"]) == "lacks `RMSNorm`"


ONE_PROCESS = """
import torch
import minillama
from minillama.rmsnorm import RMSNorm
from minillama import model, rope

block = model.Block(minillama.LlamaConfig(8, 1, 2, 1, 4, 8, 16))
print(isinstance(block.attention_norm, RMSNorm), RMSNorm is minillama.RMSNorm, RMSNorm.__module__)
for module in (minillama.rmsnorm, rope):
    print(module.__file__)
"""


def test_one_name_is_one_module_in_a_process(mine):
    """The student's RMSNorm is the one that finished modules use, unless the finished ones are
    asked for.
    """
    solve(mine, "02_rmsnorm.ipynb")
    assert "rmsnorm: yours" in python(mine, "-m", "course.check_work", "02").stdout
    archive = mine / "minillama" / ARCHIVE
    for using, norm in (("", mine / "minillama"), ("finished", archive)):
        done = python(mine, "-c", ONE_PROCESS, MINILLAMA_USING=using)
        assert done.stdout.split() == [
            "True",
            "True",
            "minillama.rmsnorm",
            str(norm / "rmsnorm.py"),
            str(archive / "rope.py"),
        ]


def test_one_chapter_alone_with_a_reference_build(withheld, tmp_path):
    """Attention, in a package whose other modules are stubs: only the reference's make it run."""
    mine = Path(shutil.copytree(withheld, tmp_path / "mine"))
    solve(mine, "04_attention.ipynb")
    done = python(mine, "-m", "course.check_work", "04")
    assert "still missing" in done.stdout and done.returncode == 0
    done = python(
        mine, "-m", "course.check_work", "04", "--using", "reference", MINILLAMA_REFERENCE=str(ROOT)
    )
    assert (
        done.stdout.count("  right  ") == len(CHAPTERS["04_attention.ipynb"].tasks)
        and "WRONG" not in done.stdout
    )
    assert "attention: yours" in done.stdout and "rmsnorm: yours, not finished" in done.stdout
    done = python(
        mine, "-m", "course.check_work", "04", "--using", "reference", "--reference", "nowhere"
    )
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "no finished build (nowhere)" in done.stderr
    )


def test_a_chapter_that_cannot_be_exported_does_not_stop_the_others(mine, check):
    solve(mine, "02_rmsnorm.ipynb")
    solve(
        mine,
        "03_rope.ipynb",
        dict.fromkeys(CHAPTERS["03_rope.ipynb"].solutions, "#| export\ndef f(:"),
    )
    code, out, _ = check("02", "03")
    assert code == 0 and own_modules(mine) == {"rmsnorm"}
    assert out.count("right  ") == 4 and "line 2: invalid syntax" in out
    code, out, _ = check("--export")
    assert (
        code == 0
        and "not exported: 03_rope.ipynb, cell" in out
        and "attention" in own_modules(mine)
    )


@pytest.mark.parametrize(
    "arguments, words",
    [(["99"], "there is no chapter 99"), (["--using", "both"], "invalid choice")],
)
def test_a_wrong_argument_is_one_line(mine, capsys, arguments, words):
    try:
        assert check_work.main(arguments, mine) == 2
    except SystemExit as exit:
        assert exit.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_the_project_itself_is_no_assignment(capsys, tmp_path):
    assert check_work.main([], tmp_path) == 2
    assert "holds no assignment" in capsys.readouterr().err


# How a student's cells are found again, in a notebook in whatever state it is.

ROPE = CHAPTERS["03_rope.ipynb"]
FIRST = ROPE.tasks[0].solutions[0]
ANSWER = "#| export\ndef rope_frequencies(head_dim, theta, scaling=None):\n    return 1"


@pytest.fixture
def damaged(handed_out, tmp_path):
    """damaged(change): what is collected from chapter 3 after change(cells, by_id) on the file's
    JSON.
    """

    def make(change=lambda cells, by_id: None, text=lambda text: text):
        notebook = json.loads(
            (handed_out / "notebooks" / "03_rope.ipynb").read_text(encoding="utf-8")
        )
        by_id = {cell["id"]: cell for cell in notebook["cells"]}
        by_id[FIRST]["source"] = ANSWER
        change(notebook["cells"], by_id)
        path = tmp_path / "03_rope.ipynb"
        path.write_text(text(json.dumps(notebook, indent=1)), encoding="utf-8")
        return collect(path, ROPE)

    return make


def test_a_cell_is_found_by_its_id(damaged):
    work = damaged()
    assert work.sources[FIRST] == ANSWER and work.notes == [] and work.extra == ""
    others = [id for id in ROPE.solutions if id != FIRST]
    assert all(work.untouched(ROPE, id) for id in others) and not work.untouched(ROPE, FIRST)


def test_ids_that_are_lost(damaged):
    def lose(cells, by_id):
        for cell in cells:
            cell.pop("id"), cell.update(metadata={})

    work = damaged(lose)
    assert work.sources[FIRST] == ANSWER and work.notes == []


def test_a_cell_that_is_there_twice(damaged):
    work = damaged(lambda cells, by_id: cells.append(dict(by_id[FIRST])))
    assert work.sources[FIRST] == ANSWER and work.notes == []
    work = damaged(lambda cells, by_id: cells.append(dict(by_id[FIRST], source=ANSWER + " + 1")))
    assert work.sources[FIRST] == ANSWER + " + 1"
    assert work.notes == ["`rope_frequencies`: 2 cells hold an answer; the last one counts"]
    work = damaged(lambda cells, by_id: cells.append(dict(by_id[FIRST], source=blank(ROPE, FIRST))))
    assert work.sources[FIRST] == ANSWER, "an empty copy below hides the answer"


def test_a_cell_that_is_gone(damaged):
    work = damaged(lambda cells, by_id: cells.remove(by_id[FIRST]))
    assert work.untouched(ROPE, FIRST) and work.notes == ["`rope_frequencies`: its cell is gone"]


def test_a_cell_that_was_split_or_lost_its_id(damaged):
    """Both halves of a split cell have its metadata; some editors give all cells new ids."""

    def split(cells, by_id):
        half = {
            "cell_type": "code",
            "id": "new",
            "metadata": by_id[FIRST]["metadata"],
            "source": "def helper():\n    return 1",
        }
        cells.insert(cells.index(by_id[FIRST]) + 1, half)

    work = damaged(split)
    assert (
        work.sources[FIRST] == ANSWER
        and work.notes == []
        and work.extra == "def helper():\n    return 1"
    )

    def renew(cells, by_id):
        by_id[FIRST]["source"] = ANSWER.replace("rope_frequencies", "mine")
        for number, cell in enumerate(cells):
            cell["id"] = f"new-{number}"

    assert damaged(renew).sources[FIRST] == ANSWER.replace("rope_frequencies", "mine")


def test_a_chapter_whose_exercises_were_renumbered_after_its_release(damaged):
    def renumber(cells, by_id):
        solved = [by_id[id]["metadata"]["nbgrader"] for id in ROPE.solutions]
        names = [each["grade_id"] for each in solved]
        for each, name in zip(solved, names[1:] + names[:1], strict=True):
            each["grade_id"] = name

    work = damaged(renumber)
    assert work.sources[FIRST] == ANSWER and work.notes == []
    assert all(work.untouched(ROPE, id) for id in ROPE.solutions if id != FIRST)


def test_an_answer_in_a_new_cell(damaged):
    def move(cells, by_id):
        by_id[FIRST]["source"] = blank(ROPE, FIRST)
        cells.insert(
            3,
            {
                "cell_type": "code",
                "id": "new",
                "metadata": {},
                "source": ANSWER.splitlines(keepends=True),
            },
        )

    assert damaged(move).sources[FIRST] == ANSWER


@pytest.mark.parametrize("style", ["merge", "diff3"])
def test_merge_markers(damaged, style):
    between = "||||||| base\n" if style == "diff3" else ""
    conflict = f'<<<<<<< mine\n   "nbformat_minor": 5,\n{between}=======\n   "nbformat_minor": 4,\n>>>>>>> theirs\n'
    work = damaged(text=lambda text: text.replace("{\n", "{\n" + conflict, 1))
    assert work.sources[FIRST] == ANSWER
    assert work.notes == [
        "03_rope.ipynb has merge markers: its first version was taken wherever there are two"
    ]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"cells": 3}', "null", '{"cells": [[]]}', "\x00\xff", "[" * 100_000]
)
def test_what_is_no_notebook(damaged, text):
    work = damaged(text=lambda _: text)
    assert all(work.untouched(ROPE, id) for id in ROPE.solutions)
    assert work.notes == ["03_rope.ipynb is not a notebook: not JSON, or without cells"]


def test_own_definitions_come_along_but_take_nobody_s_name(damaged):
    own = (
        "import math\nSCALE = 2\n\n\ndef helper():\n    return SCALE\n\n\ndef check(*a):\n    pass"
    )
    own += "\n\n\ndef isinstance(*a):\n    return True"

    def add(cells, by_id):
        cells.insert(1, {"cell_type": "code", "id": "new", "metadata": {}, "source": own})
        given = next(cell for cell in cells if "def turn(" in "".join(cell["source"]))
        given["source"] = (
            "".join(given["source"]) + "\n\n\ndef turn_back(x):\n    return x\n\n\nW = 3"
        )

    work = damaged(add)
    assert (
        work.extra
        == "SCALE = 2\n\n\ndef helper():\n    return SCALE\n\n\ndef turn_back(x):\n    return x"
    )


def test_own_definitions_keep_their_decorators(damaged):
    own = "from functools import cache\n\n\n@cache\ndef helper():\n    return 2"

    def add(cells, by_id):
        cells.insert(1, {"cell_type": "code", "id": "new", "metadata": {}, "source": own})

    assert damaged(add).extra == own


def test_own_definitions_go_into_the_modules_that_use_them():
    """A helper for sampling beside one for generation, which imports sampling; and one for both."""
    chapter = CHAPTERS["09_generation.ipynb"]
    cell = {name: id for task in chapter.definitions for id in task.solutions
            for name in chapter.names(id)}  # fmt: skip
    sources = dict(chapter.solutions)
    for name, call in {
        "sample": "softly()",
        "generate": "loudly()",
        "next_logits": "both()",
    }.items():
        sources[cell[name]] += f"\n\n\nOF_{name} = lambda: {call}"
    sources[cell["distribution"]] += "\n\n\nEITHER = lambda: both()"
    own = {
        "softly": "def softly():\n    return sample",
        "loudly": "def loudly():\n    return generate",
        "both": "def both():\n    return 1",
        "idle": "def idle():\n    return 0",
    }
    work = Work(sources, "\n\n\n".join(own.values()))
    texts = check_work.modules_of(chapter, work)
    holds = {name: [m for m, text in texts.items() if text_ in text] for name, text_ in own.items()}
    assert holds == {
        "softly": ["sampling"],
        "loudly": ["generation"],
        "both": ["generation", "sampling"],
        "idle": ["sampling"],
    }
    assert check_work.importing(texts, chapter) == ""
    assert with_own(chapter, sources, "", chapter.solutions) == sources

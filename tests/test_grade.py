"""The grader: layouts, archives that lie, damaged notebooks, limits, what is written, and that one
never stops all.
"""

import csv
import io
import json
import os
import pickle
import signal
import zipfile
from types import SimpleNamespace

import nbformat
import pytest

from course import demo, grade, report
from course.assign import assignment
from course.confine import Limits
from course.export import ROOT
from course.submissions import LARGEST, find_submissions, read_submission
from course.tasks import Chapter
from course.whole import write_whole


NAME = "02_rmsnorm.ipynb"
CHAPTER = Chapter(ROOT / "notebooks" / NAME)
OUTSIDE = ("torch.rsqrt(mean_square + self.eps)", "(1 / (mean_square.sqrt() + self.eps))")


def notebook(change=lambda source: source) -> str:
    """A student's chapter 2, solved but for a change."""
    made = assignment(CHAPTER)
    for cell in made.cells:
        cell.source = (
            change(CHAPTER.solutions[cell.id]) if cell.id in CHAPTER.solutions else cell.source
        )
    return nbformat.writes(made)


SOLVED = notebook()


def put(path, text=SOLVED):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def zipped(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in entries.items():
            archive.writestr(name, text)


def names(folder):
    return {each.student: sorted(each.notebooks) for each in find_submissions(folder, {NAME})}


# ruff: noqa: E501
LAYOUTS = {  # files of the folder of submissions, the students that are found
    "folders": (["ada/02_rmsnorm.ipynb", "ben/notebooks/02_rmsnorm.ipynb"], ["ada", "ben"]),
    "GitHub Classroom": (
        ["minillama-ada/notebooks/02_rmsnorm.ipynb", "minillama-ben/README.md"],
        ["minillama-ada"],
    ),
    "GitHub Classroom, in a folder": (
        ["minillama-submissions/minillama-ada/notebooks/02_rmsnorm.ipynb"],
        ["minillama-ada"],
    ),
    "notebooks": (["ada_02_rmsnorm.ipynb", "Ben B_02_rmsnorm.ipynb"], ["Ben B", "ada"]),
    "hidden files and the pristine copies": (
        [".git/x/02_rmsnorm.ipynb", "ada/course/assigned/02_rmsnorm.ipynb"],
        [],
    ),
}


@pytest.mark.parametrize("files, students", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, files, students):
    for file in files:
        put(tmp_path / file)
    assert [student for student, found in names(tmp_path).items() if found == [NAME]] == students


def test_zips_and_zips_in_folders(tmp_path):
    zipped(tmp_path / "ada.zip", {f"work/notebooks/{NAME}": SOLVED, f"__MACOSX/{NAME}": "x"})
    zipped(tmp_path / "Ben_123_assignsubmission_file_" / "mine.zip", {NAME: SOLVED})
    zipped(tmp_path / "windows.zip", {f"notebooks\\{NAME}": SOLVED})
    assert set(map(tuple, names(tmp_path).values())) == {(NAME,)} and len(names(tmp_path)) == 3


def test_the_one_in_notebooks_counts(tmp_path):
    put(tmp_path / "ada" / NAME, "old")
    put(tmp_path / "ada" / "copy" / "deep" / "notebooks" / NAME)
    (found,) = find_submissions(tmp_path, {NAME})
    assert found.notebooks[NAME] == SOLVED.encode()
    assert found.notes == [f"{NAME} is there 2 times; copy/deep/notebooks/{NAME} counts"]


def bomb(path):
    zipped(path, {NAME: b"\0" * (LARGEST // 2)})


def liar(path):
    """A zip whose directory says that its notebook is small."""
    zipped(path, {NAME: b" " * 3_000_000})
    data, size = bytearray(path.read_bytes()), (3_000_000).to_bytes(4, "little")
    path.write_bytes(bytes(data).replace(size, (1000).to_bytes(4, "little")))


def link(path):
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo(NAME)
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")


def cut_off(path):
    zipped(path, {NAME: SOLVED})
    path.write_bytes(path.read_bytes()[:-200])


ARCHIVES = {  # how it is made, what is noted
    "a path that leads out": (
        lambda path: zipped(path, {f"../../{NAME}": SOLVED}),
        "leads out of the zip",
    ),
    "a path from the root": (
        lambda path: zipped(path, {f"/tmp/{NAME}": SOLVED}),
        "leads out of the zip",
    ),
    "a link": (link, "leads out of the zip, or a link"),
    "a bomb": (bomb, "would unpack to 10,000,000 bytes"),
    "a size that lies": (liar, "it cannot be read"),
    "cut off": (cut_off, "it cannot be read: File is not a zip file"),
    "no zip": (lambda path: path.write_text("PK"), "it cannot be read: File is not a zip file"),
    "empty": (lambda path: path.write_bytes(b""), "it cannot be read"),
    "many files": (
        lambda path: zipped(path, {str(n): "" for n in range(20_001)}),
        "a zip of 20001 files",
    ),
    "other files": (lambda path: zipped(path, {"a.txt": ""}), "it holds no notebook of the course"),
}


@pytest.mark.parametrize("make, words", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_lie(tmp_path, make, words):
    make(tmp_path / "eve.zip")
    found = read_submission(tmp_path / "eve.zip", {NAME})
    assert found.notebooks == {} and len(found.notes) == 1 and words in found.notes[0]
    assert [path.name for path in tmp_path.iterdir()] == ["eve.zip"]


def test_links_are_not_followed(tmp_path):
    put(tmp_path / "secret" / NAME)
    (tmp_path / "all" / "eve").mkdir(parents=True)
    (tmp_path / "all" / "mal").symlink_to(tmp_path / "secret")
    (tmp_path / "all" / "eve" / NAME).symlink_to(tmp_path / "secret" / NAME)
    assert names(tmp_path / "all") == {"eve": [], "mal": []}


DAMAGED = {  # a student's notebook, points of 9, what is noted
    "merge markers": (
        SOLVED.replace("{\n", "{\n<<<<<<< a\n=======\n>>>>>>> b\n", 1),
        9,
        "02: 02_rmsnorm.ipynb has merge markers",
    ),
    "no JSON": ("Dear teacher", 0, "02: 02_rmsnorm.ipynb is not a notebook"),
    "no cells": ('{"cells": []}', 0, ""),
    "lost ids": (
        json.dumps(
            {
                "cells": [
                    {k: v for k, v in c.items() if k in ("cell_type", "source")}
                    for c in json.loads(SOLVED)["cells"]
                ]
            }
        ),
        9,
        "",
    ),
    "a cell twice": (
        json.dumps({"cells": [c for c in json.loads(SOLVED)["cells"] for _ in range(2)]}),
        9,
        "",
    ),
    "cells deleted": (
        json.dumps({"cells": json.loads(SOLVED)["cells"][:40]}),
        3,
        "02: Exercise 2.1: how many norms?: its cell is gone",
    ),
    "strange types": (
        '{"cells": [{"cell_type": "code", "source": 3, "metadata": 4, "id": []}, 7]}',
        0,
        "02: 02_rmsnorm.ipynb is not a notebook",
    ),
    "surrogates": (SOLVED.replace("RMSNorm", "\\ud800", 1), 9, ""),
}


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """A batch with damaged notebooks, a mistake, nothing at all and an odd name: (results by
    student, folder, main).
    """
    folder, out = tmp_path_factory.mktemp("batch"), tmp_path_factory.mktemp("grades")
    for name, (text, *_) in DAMAGED.items():
        (folder / name).mkdir()
        (folder / name / NAME).write_text(text, encoding="utf-8")
    put(folder / "Öz=+-@, <b>" / NAME)
    put(folder / "=cmd|' '!A0" / NAME)
    put(folder / "mistaken" / NAME, notebook(lambda source: source.replace(*OUTSIDE)))
    (folder / "nothing").mkdir()
    zipped(folder / "eve.zip", {f"../{NAME}": SOLVED})

    def main(*arguments):
        return grade.main([str(folder), "--out", str(out), "--only", "02", *arguments])

    assert main() == 0
    results = {
        row["student"]: row for row in json.loads((out / "scores.json").read_text(encoding="utf-8"))
    }
    return SimpleNamespace(results=results, folder=folder, out=out, main=main)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_notebooks_are_graded_as_far_as_they_can_be(batch, name):
    _, points, words = DAMAGED[name]
    result = batch.results[name]
    assert result["total"] == points, result
    assert (
        (words in "\n".join(result["notes"]))
        if words
        else not result["notes"] or name == "no cells"
    )


def test_a_mistake_is_named_with_its_section(batch):
    row = batch.results["mistaken"]["tasks"]["rmsnorm-RMSNorm"]
    assert (
        row["message"] == "RMSNorm: is your eps inside the square root?"
        and batch.results["mistaken"]["total"] == 6
    )
    page = (batch.out / "feedback" / "mistaken.md").read_text(encoding="utf-8")
    assert page.startswith("# mistaken: 6 of 9 points\n")
    words = "RMSNorm: is your eps inside the square root?. Read again: 2.8 The exported definition"
    assert f"| `RMSNorm` | 0 of 3 | {words} |" in page.replace("?. Read", "?. Read")


def test_the_table(batch):
    rows = list(csv.reader((batch.out / "scores.csv").open(encoding="utf-8")))
    assert rows[0] == [
        "student",
        "rmsnorm-RMSNorm",
        "rmsnorm-ex1",
        "rmsnorm-ex2",
        "rmsnorm-ex3",
        "total",
        "look",
    ]
    assert rows[1][1:6] == ["3", "2", "2", "2", "9"] and len(rows) == 2 + len(batch.results)
    assert not [row for row in rows if row[0][:1] in "=+-@"]  # a spreadsheet would run it
    assert {row[0]: row[5] for row in rows}["mistaken"] == "6" and {row[0]: row[5] for row in rows}[
        "nothing"
    ] == "0"


def test_a_file_for_every_student_whatever_the_name(batch):
    files = {path.name for path in (batch.out / "feedback").iterdir()}
    assert len(files) == len(batch.results) and all(
        name.isascii() and "=" not in name for name in files
    )
    page = (batch.out / "feedback" / (report.file_name("Öz=+-@, <b>") + ".md")).read_text(
        encoding="utf-8"
    )
    assert "<b>" not in page and "9 of 9" in page
    assert report.file_name("Ada") != report.file_name("ada") and report.file_name("con") != "con"


def test_resuming_grades_only_what_has_changed(batch, monkeypatch):
    put(batch.folder / "nothing" / NAME)
    graded, real = [], grade.grade
    monkeypatch.setattr(grade, "grade", lambda s, *rest: graded.append(s.student) or real(s, *rest))
    assert batch.main("--resume") == 0 and graded == ["nothing"]
    scores = json.loads((batch.out / "scores.json").read_text(encoding="utf-8"))
    assert {row["student"]: row["total"] for row in scores}["nothing"] == 9 and len(scores) == len(
        batch.results
    )
    monkeypatch.setattr(grade.Settings, "version", "the course has changed")
    monkeypatch.setattr(
        grade, "grade", lambda s, *rest: graded.append(s.student) or batch.results[s.student]
    )
    assert batch.main("--resume") == 0 and sorted(graded[1:]) == sorted(batch.results)


def test_the_limits_of_the_process_are_in_no_honest_student_s_way(tmp_path):
    """Files, devices, compiled and quantized layers: chapters that ask the most of the machine."""
    numbers = ["07a", "07b", "07d", "08", "12", "12a"]
    for number in numbers:
        (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        put(tmp_path / "all" / "ada" / path.name, path.read_text(encoding="utf-8"))
    assert grade.main([str(tmp_path / "all"), "--out", str(tmp_path), "--only", *numbers]) == 0
    (result,) = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert [row for row in result["tasks"].values() if not row["passed"]] == [] and len(
        result["tasks"]
    ) > 30


def test_with_the_student_s_own_package(tmp_path):
    put(tmp_path / "all" / "ada" / NAME)
    put(tmp_path / "all" / "ben" / NAME, SOLVED.replace("import torch", "import torch, nowhere"))
    assert (
        grade.main(
            [str(tmp_path / "all"), "--out", str(tmp_path), "--only", "02", "--using", "student"]
        )
        == 0
    )
    totals = {
        row["student"]: row["total"]
        for row in json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    }
    assert totals == {"ada": 9, "ben": 9}  # given cells are not the student's


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "No such file"),
        (["."], "holds no folder, zip or notebook"),
        ([".", "--only", "99"], "no chapter 99"),
    ],
)
def test_a_fault_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert grade.main([*arguments, "--out", "grades"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("course.grade: ") and words in err


class Died:
    """A process that ends with a code before it says anything."""

    def __init__(self, code, said=()):
        self.code, self.said = code, said

    def Pipe(self, duplex):
        said = list(self.said)

        def recv_bytes(longest):
            if said:
                return said.pop(0)
            raise EOFError

        ours = SimpleNamespace(poll=lambda seconds: True, recv_bytes=recv_bytes, close=lambda: None)
        return ours, SimpleNamespace(close=lambda: None)

    def Process(self, **arguments):
        nothing = lambda *a: None  # noqa: E731
        return SimpleNamespace(
            start=nothing, join=nothing, kill=nothing, pid=None, exitcode=self.code
        )


@pytest.mark.parametrize(
    "code, words",
    [
        (-signal.SIGKILL, "SIGKILL: out of memory?"),
        (-signal.SIGSEGV, "SIGSEGV"),
        (3, "code 3"),
        (None, "code None"),
    ],
)
def test_a_process_that_dies_stops_nobody(tmp_path, code, words):
    put(tmp_path / "ada" / NAME)
    (submission,) = find_submissions(tmp_path, {NAME})
    settings = grade.Settings((CHAPTER,))
    result = grade.grade(submission, settings, Died(code))
    assert result["total"] == 0 and words in result["notes"][0] and len(result["tasks"]) == 4
    start = json.dumps(["start", CHAPTER.tasks[0].id]).encode()
    result = grade.grade(submission, settings, Died(code, [start]))
    assert words in result["tasks"][CHAPTER.tasks[0].id]["message"] and result["look"]


class Evil:
    def __reduce__(self):
        return exec, ("import os; os.environ['A_PICKLE_WAS_READ'] = 'yes'",)


@pytest.mark.parametrize(
    "said",
    [pickle.dumps(Evil()), b"", b"[1]", b'["done", {}]', b'["done", 5]', b"\xff", b"[" * 10**5],
)
def test_what_a_process_never_says_ends_it(tmp_path, said):
    put(tmp_path / "ada" / NAME)
    (submission,) = find_submissions(tmp_path, {NAME})
    start = json.dumps(["start", CHAPTER.tasks[0].id]).encode()
    for messages in ([said], [start, said]):
        result = grade.grade(submission, grade.Settings((CHAPTER,)), Died(0, messages))
        assert result["total"] == 0 and result["look"], result["notes"]
        assert os.environ.pop("A_PICKLE_WAS_READ", None) is None


def test_what_comes_through_the_pipe_is_not_believed():
    task = CHAPTER.tasks[0]
    value = {"task": task.id, "passed": True, "points": 1000, "message": "x" * 9999, "section": "y"}
    row = grade.checked(value, task)
    assert (
        row["points"] == task.points
        and len(row["message"]) == 500
        and row["section"] == task.section
    )
    assert grade.checked(value | {"passed": "yes"}, task)["points"] == 0
    assert (
        grade.checked(value | {"message": "half a pair: \ud800"}, task)["message"].encode()
        == b"half a pair: ?"
    )


def test_limits_are_set_where_the_system_has_them():
    resource = pytest.importorskip("resource")
    code = "from course.confine import Limits; import resource; Limits(1 << 28, 7, 1000).set()\n"
    code += "print([resource.getrlimit(getattr(resource, 'RLIMIT_' + n))[0] for n in ('CPU', 'FSIZE', 'CORE', 'AS')])"
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    cpu, size, core, memory = json.loads(done.stdout)
    assert (cpu, size, core) == (7, 1000, 0) and 1 << 28 <= memory < 1 << 40 and resource
    assert Limits().memory == 4 << 30


def test_the_demonstration(tmp_path, capsys):
    assert demo.main([str(tmp_path / "class")]) == 0
    out = capsys.readouterr().out
    rows = {
        line.split()[0]: line.split()[1:4]
        for line in out.splitlines()
        if line[:12].strip() in demo.STUDENTS
    }
    assert rows == {
        "ada": ["9", "21", "30"],
        "ben": ["7", "9", "16"],
        "cleo": ["6", "21", "27"],
        "dan": ["0", "0", "0"],
        "eve": ["0", "0", "0"],
        "fay": ["9", "21", "30"],
    }
    assert "RMSNorm: is your eps inside the square root?" in out and "not graded: line" in out
    assert demo.main([str(tmp_path / "class")]) == 2


def test_csv_quotes_what_needs_it():
    result = {"student": 'a "b", c\nd', "tasks": {}, "look": ["x; y"], "notes": []}
    assert (
        next(csv.reader(io.StringIO(report.scores([result], [CHAPTER]).split("\n", 2)[2])))[0]
        == 'a "b", c\nd'
    )


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        write_whole({tmp_path / "scores.csv": "x"})
    assert not list(tmp_path.iterdir())

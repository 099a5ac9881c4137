"""course/export.py: what it writes, what it refuses, and that this repository's modules are up to
date.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course import export


ROOT = Path(__file__).resolve().parent.parent
NAME = "#| default_exp thing"
DOUBLE = '#| export\ndef double(x):\n    """Twice x."""\n    return 2 * x'


@pytest.fixture
def course(tmp_path):
    """A course of our own: write(name, *cells) makes a notebook, run(*options) is the command,
    package its folder.
    """

    class Course:
        notebooks, package = tmp_path / "notebooks", tmp_path / "minillama"

        def write(self, name, *cells, title="# 3. A thing: small"):
            cells = [new_markdown_cell(title), *map(new_code_cell, cells)]
            nbformat.write(new_notebook(cells=cells), self.notebooks / f"{name}.ipynb")

        def run(self, *options):
            return export.main(
                ["--notebooks", str(self.notebooks), "--package", str(self.package), *options]
            )

        def files(self):
            return {
                path.name: path.read_text(encoding="utf-8") for path in self.package.rglob("*.*")
            }

    Course.notebooks.mkdir()
    Course.package.mkdir()
    (Course.package / "__init__.py").write_text("", encoding="utf-8")
    return Course()


def test_a_module_reads_as_if_written_by_hand(course):
    course.write(
        "03_thing", NAME, "import torch  # only the text needs it", DOUBLE, "assert double(2) == 4"
    )
    assert course.run() == 0
    assert course.files()["thing.py"] == (
        '"""A thing: small.\n\nWritten by notebooks/03_thing.ipynb: edit it there.\n"""\n\n\n'
        'def double(x):\n    """Twice x."""\n    return 2 * x\n'
    )


def test_imports_are_hoisted_deduplicated_and_grouped(course):
    course.write(
        "03_thing",
        NAME,
        "#| export\nimport torch\nfrom torch import nn\n\nfrom minillama.rope import "
        "rope_table\n\n\nX = 1",
        "#| export\nimport math\nfrom collections.abc import (\n    Callable,\n)\n\nimport "
        "torch\n\n\n"
        "def f():\n    import json\n\n    return json",
        "#| export\nfrom torch import Tensor, nn\nfrom minillama import chat",
    )
    assert course.run() == 0
    assert course.files()["thing.py"].split('"""\n', 1)[1] == (
        "\nimport math\nfrom collections.abc import Callable\n\n"
        "import torch\nfrom torch import Tensor, nn\n\n"
        "from minillama import chat\nfrom minillama.rope import rope_table\n\n\n"
        "X = 1\n\n\ndef f():\n    import json\n\n    return json\n"
    )


def test_any_mix_of_cells_comes_out_as_ruff_would_write_it(course):
    names = ", ".join(f"some_rather_long_name_{i}" for i in range(6))
    course.write(
        "01_long",
        "#| default_exp long",
        f"#| export\nfrom minillama.thing import {names}, A, LONG, Short",
    )
    course.write(
        "02_bare", "#| default_exp bare", "#| export\nX = 1\nY = X", "#| export\nZ = 2", DOUBLE
    )
    course.write(
        "03_thing",
        NAME,
        DOUBLE,
        "#| export\n# why\nimport os\n\n\nW = os.sep  # kept",
        "#| export\nV = 1",
    )
    assert course.run() == 0
    ruff = [sys.executable, "-m", "ruff"]
    here = ["--config", str(ROOT / "pyproject.toml"), str(course.package)]
    subprocess.run([*ruff, "check", "--ignore=F401,F821", *here], check=True, cwd=course.package)
    subprocess.run([*ruff, "format", "--check", *here], check=True, cwd=course.package)


def test_markers_and_directives_stay_out(course):
    cell = "#| export\ndef half(x):\n    # BEGIN SOLUTION\n    return x / 2\n    # END SOLUTION"
    course.write(
        "03_thing", NAME, cell, "# BEGIN HIDDEN TESTS\nassert half(4) == 2\n# END HIDDEN TESTS"
    )
    assert course.run() == 0
    text = course.files()["thing.py"]
    assert "return x / 2" in text and "half(4)" not in text
    assert not [word for word in ("#|", "BEGIN", "END", "HIDDEN") if word in text]


def test_a_notebook_without_exports_writes_nothing(course):
    course.write("03_thing", NAME, DOUBLE)
    course.write("04_talk", "#| echo: false\nprint(1)")
    assert course.run() == 0
    assert sorted(course.files()) == ["__init__.py", "thing.py"]


BEGIN, END = "    # BEGIN SOLUTION\n", "    # END SOLUTION\n"
FAULTS = {  # cells of one notebook, words of the message
    "no default_exp": ([DOUBLE], "0 default_exp lines"),
    "two default_exp": ([NAME, "#| default_exp other", DOUBLE], "2 default_exp lines"),
    "nothing exported": ([NAME, "x = 1"], "0 export cells"),
    "a hand-written module": (
        ["#| default_exp checkpoints.hub", DOUBLE],
        "cannot export to 'checkpoints.hub'",
    ),
    "a path": (["#| default_exp ../setup", DOUBLE], "cannot export to '../setup'"),
    "no name": (["#| default_exp", DOUBLE], "cannot export to ''"),
    "line magic": ([NAME, "#| export\n%matplotlib inline\nx = 1"], "move the magic out"),
    "cell magic": ([NAME, "#| export\n%%time\nx = 1"], "move the magic out"),
    "shell": ([NAME, "#| export\nx = 1\n!ls"], "move the magic out"),
    "syntax error": ([NAME, "#| export\ndef f(:\n    pass"], "`def f(:` is not Python"),
    "relative import": ([NAME, "#| export\nfrom .rope import rope_table"], "write minillama.rope"),
    "relative import inside": (
        [NAME, "#| export\ndef f():\n    from . import rope"],
        "relative import of .",
    ),
    "import beside code": ([NAME, "#| export\nimport math; x = math.pi"], "a line of its own"),
    "never closed": ([NAME, f"#| export\ndef f():\n{BEGIN}    return 1"], "add END SOLUTION"),
    "never opened": (
        [NAME, f"#| export\ndef f():\n    return 1\n{END}"],
        "END SOLUTION does not pair up",
    ),
    "nested": (
        [NAME, f"#| export\ndef f():\n{BEGIN}{BEGIN}    return 1\n{END}{END}"],
        "BEGIN SOLUTION does not pair",
    ),
    "crossed": (
        [NAME, DOUBLE, "# BEGIN SOLUTION\n# END HIDDEN TESTS"],
        "END HIDDEN TESTS does not pair up",
    ),
    "three hashes": (
        [NAME, f"#| export\ndef f():\n    ### BEGIN SOLUTION\n    return 1\n{END}"],
        "one hash",
    ),
    "misspelled": (
        [NAME, f"#| export\ndef f():\n    # begin solution:\n    return 1\n{END}"],
        "nearly a marker",
    ),
}


@pytest.mark.parametrize("cells, words", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("option", [[], ["--check"]], ids=["write", "check"])
def test_a_fault_is_one_line_and_changes_nothing(course, capsys, cells, words, option):
    course.write("01_good", "#| default_exp good", DOUBLE)
    course.write("03_thing", *cells)
    before = course.files()
    assert course.run(*option) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.count("\n") == 1
        and err.startswith("course.export: 03_thing.ipynb")
        and words in err
    )
    assert course.files() == before


def test_one_notebook_may_write_several_modules(course):
    course.write(
        "03_thing",
        NAME + "\n#| export\nimport math\n\nimport torch\n\n\nHALF = 1 / 2",
        "#| export room.other\ndef root(x):\n    return math.sqrt(x) * HALF",
        DOUBLE,
    )
    assert course.run() == 0 and course.run("--check") == 0
    files = course.files()
    assert "import math" not in files["thing.py"] and "def double" in files["thing.py"]
    assert "import torch" not in files["other.py"]
    assert "import math\n\nfrom minillama.thing import HALF\n\n\ndef root" in files["other.py"]


def test_a_module_offers_names_of_another_of_its_notebook(course):
    course.write(
        "03_thing",
        NAME + '\n#| export\nimport math\n\n\n__all__ = ["double"]\n__all__ += ["half", "math"]',
        "#| export other\ndef half(x):\n    return x / 2",
        DOUBLE,
    )
    assert course.run() == 0 and course.run("--check") == 0
    files = course.files()
    assert "import math\n\nfrom minillama.other import half\n\n\n__all__" in files["thing.py"]
    assert "import" not in files["other.py"]


def test_modules_of_a_notebook_may_each_have_a_definition_of_their_own(course):
    """As those have that were written with a student's helper in front of both."""
    helper = "def helper(x):\n    return x\n\n\n"
    course.write(
        "03_thing",
        f"{NAME}\n#| export\n{helper}def f(x):\n    return helper(x)",
        f"#| export other\n{helper}def g(x):\n    return helper(x) + f(x)",
    )
    assert course.run() == 0
    files = course.files()
    assert "import" not in files["thing.py"]
    assert "from minillama.thing import f\n" in files["other.py"]


def test_modules_of_a_notebook_that_need_each_other_are_a_fault(course, capsys):
    course.write(
        "03_thing",
        NAME + "\n#| export\ndef f():\n    return g()",
        "#| export other\ndef g():\n    return f()",
    )
    assert course.run() == 2
    assert "thing and other need each other" in capsys.readouterr().err


def test_two_notebooks_cannot_claim_one_module(course, capsys):
    course.write("03_thing", NAME, DOUBLE)
    course.write("04_again", NAME, DOUBLE)
    assert course.run() == 2
    assert "04_again.ipynb and 03_thing.ipynb both claim thing;" in capsys.readouterr().err
    assert list(course.files()) == ["__init__.py"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nbformat": 4}', "<<<<<<< ours"])
def test_a_damaged_notebook_is_one_line(course, capsys, text):
    (course.notebooks / "03_thing.ipynb").write_text(text, encoding="utf-8")
    assert course.run() == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "03_thing.ipynb: not a notebook" in err


def test_an_empty_folder_is_a_fault(course, capsys):
    assert course.run() == 2
    assert "exports anything" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda package: (package / "thing.py").write_text("x = 1\n", encoding="utf-8"),
            "thing is stale",
        ),
        (lambda package: (package / "thing.py").unlink(), "thing is missing"),
        (lambda package: (package / "old.py").write_text("", encoding="utf-8"), "old is orphaned"),
    ],
    ids=["stale", "missing", "orphaned"],
)
def test_check_finds_what_differs_and_changes_nothing(course, capsys, change, words):
    course.write("03_thing", NAME, DOUBLE)
    assert course.run() == 0 and course.run("--check") == 0
    change(course.package)
    before, _ = course.files(), capsys.readouterr()
    assert course.run("--check") == 1
    out = capsys.readouterr().out
    assert words in out and out.count("\n") == 1
    assert course.files() == before


def test_hand_written_modules_are_not_orphans(course):
    course.write("03_thing", NAME, DOUBLE)
    (course.package / "commands").mkdir()
    for name in ("__main__", "cli", "commands/chat"):
        (course.package / f"{name}.py").write_text("# mine\n", encoding="utf-8")
    assert course.run() == 0 and course.run("--check") == 0
    assert course.files()["cli.py"] == "# mine\n"


def test_a_full_disk_leaves_every_module_as_it_was(course, capsys, monkeypatch):
    course.write("01_good", "#| default_exp good", DOUBLE)
    course.write("03_thing", NAME, DOUBLE)
    assert course.run() == 0
    before = course.files()
    course.write("01_good", "#| default_exp good", DOUBLE, "#| export\nmore = 1")
    course.write("03_thing", NAME, DOUBLE, "#| export\nmore = 1")
    write = Path.write_text

    def full(path, *args, **kwargs):
        if "thing" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    assert course.run() == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert course.files() == before


def test_the_command_runs_as_a_module():
    run = [sys.executable, "-m", "course.export"]
    done = subprocess.run([*run, "--check"], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert subprocess.run([*run, "--chekc"], cwd=ROOT, capture_output=True).returncode == 2


MODULES = [name for name in export.modules_in(ROOT / "minillama") if not export.by_hand(name)]


@pytest.mark.parametrize("name", MODULES)
def test_this_repository_s_modules_carry_no_trace_of_the_notebook(name):
    text = export.file_of(ROOT / "minillama", name).read_text(encoding="utf-8")
    found = [
        word
        for word in ("#|", "BEGIN SOLUTION", "END SOLUTION", "HIDDEN", "%%", "In [")
        if word in text
    ]
    assert not found, f"{name} contains {found}"
    assert text.split("\n")[2] == f"Written by notebooks/{notebook_of(name)}: edit it there."


def notebook_of(name):
    wanted = (f"#| default_exp {name}\\n", f"#| export {name}\\n")
    texts = {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "notebooks").glob("*.ipynb")}
    return next(each for each, text in texts.items() if any(word in text for word in wanted))


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_this_repository_s_modules_satisfy_ruff(command):
    paths = [str(export.file_of(ROOT / "minillama", name)) for name in MODULES]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, *paths], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""The pages in docs/ and the chapters: what exists, what is promised, one meaning for a letter."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "docs" / "book"))

import chapters  # noqa: E402
import colab  # noqa: E402

from minillama import LlamaConfig  # noqa: E402


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def prose(path: Path) -> str:
    return "\n\n".join(source(cell) for cell in cells(path) if cell["cell_type"] == "markdown")


def read(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_every_chapter_is_in_one_part():
    assert sorted(chapters.order()) == [path.stem.split("_")[0] for path in NOTEBOOKS]


def test_the_page_of_all_chapters_is_up_to_date():
    run = [sys.executable, ROOT / "docs" / "book" / "chapters.py", "--check"]
    assert subprocess.run(run, cwd=ROOT).returncode == 0, "python docs/book/chapters.py"


def test_no_text_names_a_chapter_that_does_not_exist():
    texts = {path.name: prose(path) for path in NOTEBOOKS}
    for path in [ROOT / "README.md", ROOT / "course" / "README.md", *(ROOT / "docs").glob("*.md")]:
        texts[path.name] = path.read_text(encoding="utf-8")
    for path in (ROOT / "minillama").rglob("*.py"):
        texts[path.name] = path.read_text(encoding="utf-8")
    known = set(chapters.order())
    wrong = [
        f"{name}: chapter {number}"
        for name, text in texts.items()
        for number in chapters.mentions(text)
        if number not in known
    ]
    assert not wrong, wrong


ENDS = ["## What we have now", "## Three questions", "## What to read next"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_chapter_ends_in_the_same_three_sections(path):
    headings = re.findall(r"^## .+$", prose(path), re.MULTILINE)
    assert headings[-3:] == ENDS, headings[-4:]
    end = prose(path).split(ENDS[1])[1]
    assert "<details>" in end, "the three questions have no answers"


TERM = re.compile(r"^\| \*\*(.+?)\*\*(?: \(.+?\))? \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def test_the_glossary_is_in_order_and_whole():
    rows = TERM.findall(read("glossary.md"))
    names = [re.sub(r"[^a-z0-9]+", " ", name.lower()) for name, *_ in rows]
    assert len(rows) > 80 and names == sorted(names) and len(set(names)) == len(names)
    assert not [row for row in rows if not row[1].rstrip().endswith((".", ")"))]


def test_every_term_of_the_glossary_occurs_in_a_chapter():
    text = re.sub(r"\s+", " ", " ".join(prose(path) for path in NOTEBOOKS)).lower()
    missing = [name for name, *_ in TERM.findall(read("glossary.md")) if name.lower() not in text]
    assert not missing, missing


BOLD = {
    "nonlinear", "activation function", "autoregressive", "residual", "MLP", "hidden size",
    "context window", "latency", "throughput", "batch size", "cross-entropy",
}  # fmt: skip


@pytest.mark.parametrize("term", sorted(BOLD))
def test_standard_terms_are_introduced(term):
    """In bold where they come in."""
    text = " ".join(prose(path) for path in NOTEBOOKS)
    assert re.search(rf"\*\*[^*]*{term}[^*]*\*\*", text, re.IGNORECASE)


SIZES = set(
    re.findall(r"^\| \*\*([A-Z])\*\* \| [^|]+ \| [^|]+ \| [^|]+ \|", read("notation.md"), re.M)
)
LOCAL = re.findall(r"^\| \*\*([A-Z])\*\* \| ([\da-d, ]+) \|", read("notation.md"), re.M)
SHAPE = re.compile(r"\((?:[A-Z]|\d+)(?:(?:, | \* )(?:[A-Z]|\d+))+,?\)")
BOLD_LETTERS = re.compile(
    r"\\(?:mathbf|mathcal|mathrm|text|operatorname)(?:\{[^}]*\}| [A-Z])|\\[a-zA-Z]+"
)


def letters(path: Path) -> set[str]:
    """Capitals that stand for a size or number: in shapes, and in equations if neither bold nor
    script.
    """
    shapes = SHAPE.findall("\n".join(source(cell) for cell in cells(path)))
    equations = re.findall(r"\$\$?([^$]+?)\$\$?", prose(path))
    plain = [BOLD_LETTERS.sub(" ", equation) for equation in equations]
    found = re.findall(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", "\n".join(plain))
    return set(re.findall("[A-Z]", " ".join(shapes))) | set(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_letter_means_what_the_notation_page_says(path):
    number = chapters.plain(path.stem.split("_")[0])
    own = {letter for letter, where in LOCAL if number in where.split(", ")}
    assert letters(path) <= SIZES | own, f"not on docs/notation.md: {letters(path) - SIZES - own}"


def test_the_sizes_are_those_of_the_config_and_of_the_figures():
    style = (ROOT / "notebooks" / "figures" / "style.py").read_text(encoding="utf-8")
    coloured = set(re.findall(r'^    "([A-Z])": "#', style, re.MULTILINE))
    told = set(re.findall(r"\b([A-Z]) ", LlamaConfig.__doc__.split("whole series:")[1]))
    assert SIZES - {"N", "C"} == told and coloured <= SIZES and len(coloured) == 10


def test_every_chapter_has_the_cell_for_colab():
    run = [sys.executable, ROOT / "docs" / "book" / "colab.py", "--check"]
    assert subprocess.run(run, cwd=ROOT).returncode == 0, "python docs/book/colab.py"


@pytest.mark.parametrize("where", ["elsewhere", "in Colab", "in Colab, run again"])
def test_the_cell_for_colab_does_nothing_elsewhere(where, tmp_path, monkeypatch):
    done = []
    shell = SimpleNamespace(
        system=done.append, run_line_magic=lambda *line: done.append(" ".join(line))
    )
    monkeypatch.chdir(tmp_path)
    if where != "elsewhere":
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    if where == "in Colab, run again":
        (tmp_path / "figures").mkdir()
    url = "https://github.com/someone/minillama"
    exec(colab.CELL.format(address=url), {"get_ipython": lambda: shell})
    if where == "in Colab":
        assert [line.split()[0] for line in done] == ["git", "pip", "cd"] and url in done[0]
    else:
        assert done == []

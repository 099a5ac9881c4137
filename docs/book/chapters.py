"""The chapters: their parts, what each needs, how long it takes.

python docs/book/chapters.py [--check]

Writes docs/the_whole.md and the picture in it from docs/chapters.toml and the notebooks themselves.
"""

import json
import re
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))
NAMED = 2  # a chapter whose number a text names so often is one that it builds on
EXPORT = re.compile(r"^#\| (?:default_exp|export) +([\w.]+)", re.MULTILINE)


def parts() -> list[dict]:
    """name, chapters and perhaps advanced, for each part in order."""
    return tomllib.loads((DOCS / "chapters.toml").read_text(encoding="utf-8"))["part"]


def order() -> list[str]:
    """The numbers of all chapters, as they are read."""
    return [number for part in parts() for number in part["chapters"]]


@cache
def cells(number: str) -> list[dict]:
    return json.loads(notebook(number).read_text(encoding="utf-8"))["cells"]


def notebook(number: str) -> Path:
    return next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))


def title(number: str) -> str:
    """What stands after the chapter's number in its heading."""
    return source(cells(number)[0]).split("\n")[0].split(". ", 1)[1]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def needs() -> dict[str, list[str]]:
    """Chapter -> the earlier chapters that it builds on: it imports what they export, or names
    them again and again. What follows from another of them is left out.
    """
    numbers = order()
    uses = {n: (imports(n) | named(n)) & set(numbers[: numbers.index(n)]) for n in numbers}
    return {n: sorted(direct(n, uses), key=numbers.index) for n in numbers}


def direct(number: str, uses: dict[str, set]) -> set:
    implied = set().union(*(everything(n, uses) for n in uses[number]))
    return uses[number] - implied


def everything(number: str, uses: dict[str, set]) -> set:
    """All that a chapter needs, at whatever distance."""
    return uses[number].union(*(everything(n, uses) for n in uses[number]))


@cache
def owners() -> dict[str, str]:
    """Module of the package -> the chapter that exports it."""
    return {
        module: number
        for number in order()
        for cell in cells(number)
        for module in EXPORT.findall(source(cell))
    }


def imports(number: str) -> set[str]:
    found = set()
    for cell in cells(number):
        if cell["cell_type"] == "code":
            for package, names in imported(source(cell)):
                full = [package, *(f"{package}.{n}".strip(".") for n in names)]
                found |= {owners()[m] for m in full if m in owners()}
    return found - {number}


def imported(code: str):
    """(module inside minillama, names) of each import in a cell."""
    for match in re.finditer(r"from minillama(?:\.([\w.]+))? import (\([^)]*\)|[^\n(]+)", code):
        yield match[1] or "", re.findall(r"\w+", match[2])
    for match in re.finditer(r"import minillama\.([\w.]+)", code):
        yield match[1], []


def named(number: str) -> set[str]:
    texts = [source(c) for c in cells(number) if c["cell_type"] == "markdown"]
    counts = Counter(n for text in texts for n in mentions(text))
    return {n for n, count in counts.items() if count >= NAMED} - {number}


def mentions(text: str) -> list[str]:
    """Numbers of the chapters that a text names: "chapters 4, 7a and 11" -> 04, 07a, 11."""
    found = []
    for match in re.finditer(
        r"[Cc]hapters?\s+\d+[a-d]?(?:(?:,| and| to| or)\s+\d+[a-d]?\b)*", text
    ):
        found += [two_digits(n) for n in re.findall(r"\d+[a-d]?", match[0])]
    return found


def two_digits(number: str) -> str:
    return re.sub(r"^(\d)(?!\d)", r"0\1", number)


def plain(number: str) -> str:
    """07a -> 7a, as the prose writes it."""
    return number[1:] if number[0] == "0" else number


INTRODUCTION = """\
Every chapter in order. *Needs* names the chapters that it builds on, apart from what those need
themselves; it is computed from what each notebook imports and from the chapters that its text
refers to. The hours are estimated from words and lines of code: for reading with the cells run,
and for the exercises. *Advanced* chapters can be left out; what later ones use of them is
imported."""


def the_whole() -> str:
    """The page: every chapter with what it needs and how long it takes."""
    from course.points import hours
    from course.tasks import Chapter

    lines = [
        "# The whole series",
        "",
        INTRODUCTION,
        "",
        "![" + alt() + "](chapters.png)",
    ]
    before = needs()
    for part in parts():
        lines += ["", f"## {part['name']}", "", "| | chapter | needs | reading | exercises |"]
        lines += ["|---|---|---|---:|---:|"]
        for number in part["chapters"]:
            reading, tasks = hours(Chapter(notebook(number)))
            mark = " *(advanced)*" if number in part.get("advanced", []) else ""
            link = f"[{title(number)}](../notebooks/{notebook(number).name})"
            need = ", ".join(plain(n) for n in before[number]) or "—"
            times = f"{halves(reading)} | {halves(tasks) if tasks else '—'}"
            lines.append(f"| {plain(number)} | {link}{mark} | {need} | {times} |")
    return "\n".join(lines) + "\n"


def halves(hours: float) -> str:
    """In half hours, so that an edited sentence does not change the page."""
    return f"{max(1, round(2 * hours)) / 2:g} h"


def alt() -> str:
    return (
        "The chapters as a graph, part by part from left to right: an arrow leads from each "
        "chapter to those that build on it."
    )


def draw(target: Path) -> None:
    """The graph of needs: a column for each part, advanced chapters in outline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import FancyArrowPatch

    columns = [part["chapters"] for part in parts()]
    advanced = {n for part in parts() for n in part.get("advanced", [])}
    place = {n: (1.75 * x, -y) for x, column in enumerate(columns) for y, n in enumerate(column)}
    colours = [
        "#0072B2",
        "#009E73",
        "#D55E00",
        "#CC79A7",
        "#8A6D00",
        "#00646B",
        "#56606B",
        "#7A5195",
    ]
    figure, axes = plt.subplots(figsize=(11.6, 5.2))
    for number, before in needs().items():
        for other in before:
            bend = 0.32 if place[number][0] == place[other][0] else 0.08
            if place[number][0] == place[other][0] and place[other][1] - place[number][1] == 1:
                bend = 0
            arrow = FancyArrowPatch(
                place[other],
                place[number],
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>",
                mutation_scale=9,
                shrinkA=13,
                shrinkB=14,
                color="#9AA3AD",
                lw=0.9,
            )
            axes.add_patch(arrow)
    for column, colour, part in zip(columns, colours, parts(), strict=True):
        axes.text(place[column[0]][0], 0.75, part["name"], ha="center", fontsize=9, color=colour)
        for number in column:
            face = "white" if number in advanced else colour
            box = dict(boxstyle="round,pad=0.35", fc=face, ec=colour, lw=1.4)
            ink = colour if number in advanced else "white"
            axes.text(*place[number], plain(number), ha="center", va="center", color=ink, bbox=box)
    axes.set(xlim=(-0.8, 1.75 * len(columns) - 0.6), ylim=(-6.6, 1.1))
    axes.axis("off")
    figure.savefig(
        target, dpi=150, bbox_inches="tight", facecolor="white", metadata={"Software": None}
    )


def main(arguments: list[str]) -> int:
    page = DOCS / "the_whole.md"
    if "--check" in arguments:
        return int(page.read_text(encoding="utf-8") != the_whole())
    page.write_text(the_whole(), encoding="utf-8")
    draw(DOCS / "chapters.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

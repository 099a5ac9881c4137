"""The book: the executed notebooks as committed, as a website that asks no other server.

python docs/book/build.py [--out build/book]

Lays out build/book-source (chapters with what a reader should know first, the routes, the glossary,
a reference from the docstrings) and runs Sphinx over it. Warnings are errors.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from chapters import DOCS, ROOT, notebook, parts


BOOK = Path(__file__).resolve().parent
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")
ROOMS = {
    "": "The core",
    "checkpoints": "Checkpoints",
    "inference": "Inference",
    "kernels": "Kernels",
    "training": "Training",
    "distributed": "Distributed",
    "studies": "Studies",
}


def repository() -> str | None:
    """The repository's address: of the workflow that builds, or pyproject.toml's; None while it
    has none.
    """
    if name := os.environ.get("GITHUB_REPOSITORY"):
        return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    url = project.get("urls", {}).get("Repository")
    return None if url is None or "OWNER" in url else url


def chapter(path: Path) -> dict:
    """A notebook as the book shows it: figures with their alt text, solutions folded."""
    text = path.read_text(encoding="utf-8").replace("../docs/", "../")
    book = json.loads(text)
    exercise = False
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            if heading := re.match(r"#+ (.*)", source):
                exercise = heading[1].startswith("Exercise")
            continue
        cell["metadata"].pop("nbgrader", None)
        tags = cell["metadata"].setdefault("tags", [])
        if exercise and "# BEGIN SOLUTION" in source:
            tags.append("hide-input")
        if "colab" in tags:
            tags.append("remove-cell")
        cell["outputs"] = [
            o for o in cell["outputs"] if not any("widget-view" in k for k in o.get("data", {}))
        ]
        for output in cell["outputs"]:
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    return book


def elsewhere(link: re.Match) -> str:
    """A link to a file that is no page: to the repository, or just the words while it has none."""
    url = repository()
    return f"[{link[1]}]({url}/blob/main/{link[2]})" if url else f"{link[1]} (`{link[2]}`)"


def slug(heading: str) -> str:
    """The anchor of a heading: "3.3" of "3.3 One frequency is not enough", else its words."""
    if number := re.match(r"\d+[a-d]?\.\d+", heading):
        return number[0]
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def lay_out(source: Path) -> None:
    """Everything that Sphinx reads, under `source`."""
    shutil.rmtree(source, ignore_errors=True)
    (source / "notebooks").mkdir(parents=True)
    for page in [*DOCS.glob("*.md"), *BOOK.glob("*.md")]:
        text = page.read_text(encoding="utf-8").replace("](../notebooks/", "](notebooks/")
        (source / page.name).write_text(LINK.sub(elsewhere, text), encoding="utf-8")
    for picture in DOCS.glob("*.png"):
        shutil.copy(picture, source / picture.name)
    shutil.copytree(BOOK / "_static", source / "_static")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = json.dumps(chapter(path), ensure_ascii=False, indent=1)
        (source / "notebooks" / path.name).write_text(text, encoding="utf-8")
    contents(source)
    reference(source)


def contents(source: Path) -> None:
    """The table of contents, a tree for each part, at the end of the front page."""
    trees = [tree("Routes", ["four_hours", "a_week", "the_whole"])]
    for part in parts():
        trees.append(
            tree(part["name"], [f"notebooks/{notebook(n).stem}" for n in part["chapters"]])
        )
    rooms = ["reference/" + (room or "core") for room in ROOMS]
    trees.append(
        tree(
            "Look things up",
            ["glossary", "notation", "speed", "install", "files", *rooms, "genindex"],
        )
    )
    with open(source / "index.md", "a", encoding="utf-8") as index:
        index.write("\n" + "\n\n".join(trees) + "\n")


def tree(caption: str, pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"])


def reference(source: Path) -> None:
    """A page for each room: its modules, from their docstrings."""
    (source / "reference").mkdir()
    for room, name in ROOMS.items():
        folder = ROOT / "minillama" / room
        modules = [p.stem for p in sorted(folder.glob("*.py")) if not p.stem.startswith("__")]
        dotted = [".".join(filter(None, ["minillama", room, m])) for m in modules if m != "cli"]
        lines = [f"# {name}", ""]
        for module in dotted:
            lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", "```", ""]
        page = source / "reference" / f"{room or 'core'}.md"
        page.write_text("\n".join(lines), encoding="utf-8")


def build(out: Path, source: Path) -> int:
    lay_out(source)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-c",
        str(BOOK),
    ]
    command += ["-W", "--keep-going", "-q", str(source), str(out)]
    environment = os.environ | {"MINILLAMA_ROOT": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    code = subprocess.run(command, env=environment).returncode
    if code == 0:
        print(f"the book: {out / 'index.html'}")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "book", help="where it goes")
    out = parser.parse_args().out.resolve()
    return build(out, out.parent / f"{out.name}-source")


if __name__ == "__main__":
    sys.exit(main())

"""Each chapter's first code cell, which prepares Colab and does nothing elsewhere.

python docs/book/colab.py [--check] [--repository https://github.com/OWNER/minillama]

Writes the cell into every notebook, with the address under [project.urls] in pyproject.toml;
--repository changes that address first.
"""

import argparse
import json
import re
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")
CELL = """\
# In Colab: fetch the series, install it, and go to its notebooks. Elsewhere this does nothing.
import sys
from pathlib import Path


if "google.colab" in sys.modules and not Path("figures").exists():
    get_ipython().system("git clone --depth=1 {address} minillama")
    get_ipython().system("pip install -q './minillama[notebooks,reference]'")
    get_ipython().run_line_magic("cd", "minillama/notebooks")"""


def address() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def with_cell(text: str, url: str) -> str:
    """A notebook with the cell after its title: outputs and all other cells as they were."""
    book = json.loads(text)
    cells = [cell for cell in book["cells"] if cell["id"] != "colab"]
    source = CELL.format(address=url).splitlines(keepends=True)
    cell = {"cell_type": "code", "execution_count": 1, "id": "colab"}
    cell |= {"metadata": {"tags": ["colab"]}, "outputs": [], "source": source}
    cells.insert(1, cell)
    number = 0
    for each in cells:
        if each["cell_type"] == "code" and each["execution_count"]:
            number += 1
            each["execution_count"] = number
            for output in each["outputs"]:
                if "execution_count" in output:
                    output["execution_count"] = number
    book["cells"] = cells
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if a cell differs")
    parser.add_argument("--repository", metavar="URL", help="the address on GitHub from now on")
    args = parser.parse_args()
    if args.repository and not ADDRESS.fullmatch(args.repository):
        parser.error(f"not of the form https://github.com/OWNER/NAME: {args.repository}")
    from course.whole import write_whole

    texts = {}
    url = args.repository or address()
    if args.repository:
        project = ROOT / "pyproject.toml"
        texts[project] = project.read_text(encoding="utf-8").replace(address(), url)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        if (new := with_cell(text, url)) != text:
            texts[path] = new
    if args.check:
        return int(bool(texts))
    write_whole(texts)
    return 0


if __name__ == "__main__":
    sys.exit(main())

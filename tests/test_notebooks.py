"""The committed chapters are executed and clean, and strict nbval, which re-runs them, does find a
wrong output.
"""

import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from helpers import table
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course import execute, export
from minillama.checkpoints import hub


ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TIMING = re.compile(
    r"\d ?(?:ns|µs|us|ms)\b|\d\.\d+ ?(?:s|sec|seconds|minutes)\b|\d ?(?:tokens|tok|it)/s\b"
)


@functools.cache
def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def texts(notebook) -> str:
    """All that the outputs say, as one text."""
    shown = [
        output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        for output in outputs(notebook)
    ]
    return "\n".join(shown)


def not_executed(notebook, path):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        return f"execution counts are not 1..{len(counts)}"


def errors(notebook, path):
    return [output.ename for output in outputs(notebook) if output.output_type == "error"]


def warnings_and_progress(notebook, path):
    return [output.text[:80] for output in outputs(notebook) if output.get("name") == "stderr"]


def too_large(notebook, path):
    return path.stat().st_size > 500_000 and f"{path.stat().st_size} bytes"


def folders(notebook, path):
    return (found := execute.FOLDER.search(texts(notebook))) and found[0]


def timings(notebook, path):
    return (found := TIMING.search(texts(notebook))) and found[0]


def figures_without_alt_text(notebook, path):
    wrong = []
    for output in outputs(notebook):
        if any(kind.startswith("image/") for kind in output.get("data", {})):
            alt = output.metadata.get("image/png", {}).get("alt", "")
            if len(alt) < 20 or output.data.get("text/plain") != alt:
                wrong.append(alt or "no alt text")
    return wrong


def invalid(notebook, path):
    try:
        nbformat.validate(json.loads(path.read_text(encoding="utf-8")))
    except nbformat.ValidationError as error:
        return str(error).split("\n")[0]


def ids(notebook, path):
    # nbformat repairs them
    found = [cell.get("id") for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    return [id for id in found if not id or found.count(id) > 1]


def metadata(notebook, path):
    if (
        notebook.metadata.get("language_info") != {"name": "python"}
        or notebook.metadata.kernelspec.name != "python3"
    ):
        return "run: make execute NB=notebooks/" + path.name


def markers(notebook, path):
    for cell in code_cells(notebook):
        export.strip_markers(cell.source, path.name)


def title(notebook, path):
    first = notebook.cells[0].source.split("\n")[0]
    number = path.stem.split("_")[0].removeprefix("0")
    return not first.startswith(f"# {number}. ") and f"the title is {first!r}"


FAULTS = [
    not_executed,
    errors,
    warnings_and_progress,
    too_large,
    folders,
    timings,
    figures_without_alt_text,
]
FAULTS += [invalid, ids, metadata, markers, title]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_chapter_is_clean(fault):
    with table() as row:
        for path in NOTEBOOKS:
            with row(path.name, fault.__name__.replace("_", " ")):
                found = fault(read(path), path)
                assert not found, found


TO_COME = {"16", "18", "19"}


def test_chapters_are_numbered_without_a_gap():
    """00, 01, ... and, in any of them, a, b, ...; but for the chapters that the plan has and nobody
    has written yet.
    """
    numbers = [path.stem.split("_")[0] for path in NOTEBOOKS]
    whole = [number for number in numbers if number.isdigit()]
    assert sorted([*whole, *TO_COME]) == [
        f"{number:02}" for number in range(len(whole) + len(TO_COME))
    ]
    for first in {number[:2] for number in numbers}:
        letters = [number[2:] for number in numbers if number[:2] == first]
        assert letters == ["", *"abcdefgh"][: len(letters)]


FIGURE = {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": "a line"}}
NAMED = {"image/png": {"alt": "a line that rises from left to right"}}


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


@pytest.mark.parametrize(
    "fault, cell",
    [
        (not_executed, {"execution_count": None}),
        (not_executed, {"execution_count": 2}),
        (
            errors,
            {"outputs": [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]},
        ),
        (warnings_and_progress, {"outputs": [stream("UserWarning", "stderr")]}),
        (folders, {"outputs": [stream("/ho" + "me/ada/model.gguf")]}),
        (timings, {"outputs": [stream("took 3.25 s")]}),
        (timings, {"outputs": [stream("17 tokens/s")]}),
        (timings, {"outputs": [stream("12 ms ± 1 ms per loop")]}),
        (figures_without_alt_text, {"outputs": [FIGURE | {"metadata": {}}]}),
        (figures_without_alt_text, {"outputs": [FIGURE | {"metadata": NAMED}]}),
        (ids, {"id": "title"}),
        (metadata, {}),
        (title, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_fault_is_found(fault, cell, tmp_path):
    notebook = new_notebook(
        cells=[new_markdown_cell("# 2. Two", id="title"), new_code_cell("1", execution_count=1)]
    )
    notebook.cells[1].update(cell)
    notebook.metadata = {
        "kernelspec": {"name": "python3"},
        "language_info": {"name": "python", "version": "3.11"},
    }
    path = tmp_path / "03_three.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert fault(nbformat.from_dict(notebook), path)


@pytest.mark.parametrize(
    "text", ["in the 1980s", "10 s of tokens", "131,072 tokens", "3.1 scales", "a 2 x 2 table"]
)
def test_ordinary_numbers_are_no_timings(text):
    assert not TIMING.search(text)


def nbval(folder: Path) -> subprocess.CompletedProcess:
    """Strict nbval over a folder, as `make test` runs it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    line = next(line for line in makefile.splitlines() if "--nbval " in line)
    options = line.split("-m pytest ", 1)[1].replace(
        "tests/nbval.cfg", str(ROOT / "tests" / "nbval.cfg")
    )
    options = options.replace(
        "$(TWO)", re.search(r"^TWO := ([^#]+)", makefile, re.MULTILINE)[1]
    ).replace("notebooks", ".")
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options.split(),
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "-rfp",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")


CELLS = [
    "x = 2",
    'print("x is", x, "at 0x7f0123456789")',
    "x * 21",
    'from IPython.display import display\ndisplay({"image/png": "AAAA", "text/plain": "a line"}, '
    "raw=True)",
    'print("said")',
]


def test_strict_nbval_passes_a_good_notebook_and_fails_every_corrupted_output(tmp_path):
    good = tmp_path / "good.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in CELLS]), good)
    assert execute.main([str(good)]) == 0
    bad = nbformat.read(good, as_version=4)
    bad.cells[1].outputs[0].text = "x is 3 at 0x7f0123456789\n"
    bad.cells[2].outputs[0].data["text/plain"] = "43"
    bad.cells[3].outputs[0].data["text/plain"] = "two lines"
    bad.cells[4].outputs = []
    nbformat.write(bad, tmp_path / "bad.ipynb")
    done = nbval(tmp_path)
    failed = re.findall(r"FAILED .*?(\w+)\.ipynb::Cell (\d+)", done.stdout)
    assert done.returncode == 1 and failed == [
        ("bad", "1"),
        ("bad", "2"),
        ("bad", "3"),
        ("bad", "4"),
    ], done.stdout


@pytest.mark.parametrize("required", ["", "1"], ids=["skipped", "required"])
def test_without_a_network_chapters_that_need_weights_are_skipped_unless_required(
    monkeypatch, required
):
    def no_network(name):
        raise hub.FetchError("no network")

    spec = importlib.util.spec_from_file_location("chapters", ROOT / "notebooks" / "conftest.py")
    spec.loader.exec_module(chapters := importlib.util.module_from_spec(spec))
    monkeypatch.setattr(hub, "fetch", no_network)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("MINILLAMA_REQUIRE_WEIGHTS", required)
    outcome = (pytest.fail if required else pytest.skip).Exception
    for path in NOTEBOOKS:
        cell = SimpleNamespace(path=path)
        if any(name in path.read_text(encoding="utf-8") for name in hub.ARTEFACTS):
            with pytest.raises(
                outcome, match=f"^{path.name} uses files that are not here: no network$"
            ):
                chapters.pytest_runtest_setup(cell)
        else:
            chapters.pytest_runtest_setup(cell)

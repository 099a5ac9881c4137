"""course/execute.py: notebooks are re-run in place, whole or not at all."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course.execute import FOLDER, main
from minillama.checkpoints import hub


def write(path: Path, *sources: str) -> Path:
    cells = [new_markdown_cell("# 1. Small"), *map(new_code_cell, sources)]
    nbformat.write(
        new_notebook(cells=cells, metadata={"language_info": {"name": "python", "version": "2.7"}}),
        path,
    )
    return path


def test_a_notebook_is_executed_in_place_and_keeps_its_ids(tmp_path):
    path = write(tmp_path / "01_small.ipynb", "x = 2", "print(x * 21)")
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    assert main([str(path)]) == 0
    notebook = nbformat.read(path, as_version=4)
    assert [cell.id for cell in notebook.cells] == ids
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2]
    assert notebook.cells[2].outputs[0].text == "42\n"
    assert notebook.metadata.language_info == {"name": "python"}
    assert all("execution" not in cell.metadata for cell in notebook.cells)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "source, words",
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import os; print(os.sep + 'home' + os.sep + 'someone')", "names a folder"),
    ],
    ids=["error", "folder"],
)
def test_a_failing_notebook_is_left_alone_and_the_others_run(tmp_path, capsys, source, words):
    bad, good = write(tmp_path / "01_bad.ipynb", source), write(tmp_path / "02_good.ipynb", "1 + 1")
    before = bad.read_bytes()
    assert main([str(bad), str(tmp_path / "03_none.ipynb"), str(good)]) == 1
    err = capsys.readouterr().err
    assert "01_bad.ipynb" in err and words in err and "03_none.ipynb" in err
    assert bad.read_bytes() == before
    assert nbformat.read(good, as_version=4).cells[1].execution_count == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01_bad.ipynb", "02_good.ipynb"]


@pytest.mark.parametrize(
    "text", ["/ho" + "me/ada/x.py", "/Us" + "ers/ada", "/tm" + "p/x", "C:" + r"\\Users\\ada"]
)
def test_folders_of_a_machine_are_recognised(text):
    assert FOLDER.search(f"saved {text} now")


@pytest.mark.parametrize(
    "text", ["a / b", "tokens/s", "data/cache/x.gguf", "8B: 4096", "https://example.org/tmp"]
)
def test_other_text_is_not(text):
    assert not FOLDER.search(text)


def test_what_a_notebook_names_is_fetched_first(tmp_path, capsys, monkeypatch):
    def no_network(name):
        raise hub.FetchError(f"no network for {name}")

    path = write(tmp_path / "01_real.ipynb", 'NAME = "llama-3.1-tokenizer"')
    before = path.read_bytes()
    monkeypatch.setattr(hub, "fetch", no_network)
    assert main([str(path)]) == 1 and path.read_bytes() == before
    assert "01_real.ipynb: no network for llama-3.1-tokenizer" in capsys.readouterr().err

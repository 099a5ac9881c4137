"""pyproject.toml, constraints.txt, environment.yml, Makefile, README.md, docs/ and CI say the same."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import minillama
from minillama.checkpoints import hub


ROOT = Path(__file__).resolve().parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(read("pyproject.toml"))["project"]
MINIMUM = re.search(r"\d+\.\d+", PROJECT["requires-python"])[0]
PINS = {
    canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
    for line in read("constraints.txt").splitlines()
    if (pin := line.strip() and not line.startswith("#") and Requirement(line))
}
WANTED = PROJECT["dependencies"] + [
    each for extra in PROJECT["optional-dependencies"].values() for each in extra
]


def installs(text: str) -> set[str]:
    """What follows `pip install` in a text, without the options that only make it quieter."""
    found = re.findall(r"-m pip install (.+)", text)
    return {
        re.sub(r"--quiet |--disable-pip-version-check |['\"]", "", line).strip() for line in found
    }


@pytest.mark.parametrize("wanted", [each for each in WANTED if not each.startswith("minillama")])
def test_every_dependency_is_pinned_within_its_range(wanted):
    requirement = Requirement(wanted)
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin, f"constraints.txt does not pin {requirement.name}"
    assert pin in requirement.specifier, (
        f"constraints.txt pins {requirement.name}=={pin}, outside of {wanted}"
    )


def test_every_pin_is_exact_and_holds_on_every_machine():
    assert PINS["torch"] == "2.13.0"
    lines = [
        line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")
    ]
    loose = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert not loose, (
        f"not of the form name==version, or a version that only some machines have: {loose}"
    )


def test_versions_and_licences_agree():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert PROJECT["version"] == minillama.__version__ == str(citation["version"])
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    assert "Apache License" in read("LICENSE") and PROJECT["license-files"] == ["LICENSE"]


def test_one_minimum_of_python():
    assert PROJECT["requires-python"] == f">={MINIMUM}"
    assert f"Python {MINIMUM} or newer" in read("README.md")
    assert f"Python {MINIMUM} or newer" in read("Makefile")
    assert f"version_info < ({MINIMUM.replace('.', ', ')})" in read("Makefile")
    steps = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["test"]["steps"]
    assert MINIMUM in [step.get("with", {}).get("python-version") for step in steps]
    assert f'target-version = "py{MINIMUM.replace(".", "")}"' in read("pyproject.toml")


def test_conda_and_binder_install_what_make_installs():
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["channels"] == ["conda-forge"]
    python, pip, from_pip = environment["dependencies"]
    assert python == f"python={MINIMUM}" and pip == "pip"
    assert " ".join(from_pip["pip"]) in installs(read("Makefile"))


def test_the_plain_commands_of_the_guide_are_those_of_make():
    plain, guide = {"-c constraints.txt -e .", "-c constraints.txt -e .[test]"}, "docs/install.md"
    assert installs(read(guide)) == plain
    assert installs(read("Makefile")) == plain | {
        "-c constraints.txt -e .[book]",
        "-c constraints.txt -e .[browser]",
        "-c constraints.txt llama-cpp-python>=0.3.16",
    }
    for command in (
        "-m venv .venv",
        "-m minillama generate",
        "jupyter lab notebooks/00_the_whole_llama.ipynb",
    ):
        assert command in read(guide) and command in read("Makefile"), command


def test_ci_runs_make_test():
    lines = [
        line
        for line in read(".ci/run").splitlines()
        if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert lines == ["make test"]
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    assert [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step] == [
        "bash .ci/run"
    ]


def test_contributing_shows_the_commands_that_make_runs():
    line = next(line.strip() for line in read("Makefile").splitlines() if "--nbval " in line)
    assert line.replace("$(BIN)", ".venv/bin").partition(" notebooks")[0] in read("CONTRIBUTING.md")
    texts = (read("CONTRIBUTING.md") + read("README.md") + read("course/README.md")).replace(
        "make check", ""
    )
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", texts, re.M):
        assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), (
            f"make {target} does not exist"
        )


PAGES = ["README.md", "CONTRIBUTING.md", "course/README.md"]
PAGES += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)#]+)\)", read(name)) + re.findall(r"src=\"([^\"]+)\"", read(name))
    missing = [
        link
        for link in links
        if not link.startswith("http") and not ((ROOT / name).parent / link).exists()
    ]
    assert not missing, f"{name} links to {missing}"


def file_tree() -> list[str]:
    """The paths of the annotated tree in docs/files.md."""
    block = read("docs/files.md").split("## The files", 1)[1].split("## ", 1)[0]
    paths, folders = [], {0: ""}  # indent -> the folder whose files have it
    for indent, name in re.findall(r"^    ( *)(\S+)  +\S", block, re.MULTILINE):
        paths.append(folders[len(indent)] + name)
        folders[len(indent) + 2] = paths[-1]
    return paths


def test_the_annotated_tree_is_the_tree():
    """Every file of the core and every room has a line, and a room's line names its modules."""
    tree, rooms = file_tree(), re.sub(r"\n {20,}", " ", read("docs/files.md"))
    assert [path for path in tree if not (ROOT / path).exists()] == []
    top = [path for path in (ROOT / "minillama").iterdir() if not path.stem.startswith("__")]
    assert {f"minillama/{path.name}" + "/" * path.is_dir() for path in top} - set(tree) == set()
    for room in (path for path in top if path.is_dir() and path.name != "commands"):
        line = re.search(rf"^ +{room.name}/ .*", rooms, re.MULTILINE)[0]
        missing = [
            path.stem
            for path in room.glob("*.py")
            if path.stem[:2] != "__" and path.stem not in line
        ]
        assert not missing, f"docs/files.md's line of {room.name}/ lacks {missing}"


def test_every_chapter_and_its_modules_are_listed():
    rows = {line.split("]", 1)[0]: line for line in read("docs/files.md").splitlines()}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = "\n".join("".join(cell["source"]) for cell in cells)
        modules = re.findall(r"^#\| (?:default_exp|export) ([\w.]+)$", sources, re.MULTILINE)
        link, writes = rows[f"| [{path.stem}"].split(" | ")[:2]
        assert link.endswith(f"](../notebooks/{path.name})")
        room = writes.partition("in `")[2].partition("`")[0]
        found = re.findall(r"`([\w/]+)\.py`", writes)
        listed = {*found} | {room + file for file in found}
        missing = {module.replace(".", "/") for module in modules} - listed
        assert not missing, f"docs/files.md's row of {path.stem} lacks {missing}"


def test_the_readme_names_the_size_of_the_download():
    megabytes = round(hub.ARTEFACTS["smollm2-135m-instruct"].wheel_bytes / 1e6)
    assert f"({megabytes} MB)" in read("README.md")


def test_pre_commit_runs_only_what_is_here():
    (repo,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repo["repo"] == "local" and {hook["language"] for hook in repo["hooks"]} == {"system"}
    assert all(hook["entry"].startswith("python -m ") for hook in repo["hooks"])


@pytest.mark.skipif(
    not shutil.which("git") or not (ROOT / ".git").exists(), reason="not a git checkout"
)
def test_nothing_fetched_or_foreign_is_tracked():
    git = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, encoding="utf-8"
    )
    names = git.stdout.split("\0")[:-1]
    foreign = r"(^data/cache/|\.(gguf|safetensors|pth|bin|whl)$|tokenizer\.(model|json)$|\.egg-info/|\.venv/)"
    trained_here = ("data/stories/", "data/studies/adapter/")  # 1.8 and 0.9 MB
    ours = [name for name in names if not name.startswith(trained_here)]
    assert [name for name in ours if re.search(foreign, name)] == []
    sizes = {name: (ROOT / name).stat().st_size for name in names if (ROOT / name).exists()}
    assert [name for name, size in sizes.items() if size > 2_000_000] == []


def test_specifiers_are_ranges():
    fixed = [
        each
        for each in WANTED
        if "==" in each or not (Requirement(each).specifier or "minillama" in each)
    ]
    assert not fixed and MINIMUM in SpecifierSet(PROJECT["requires-python"])

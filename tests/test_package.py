"""The package as a whole: layers, sizes, docstrings, and an import that costs little and changes
nothing.
"""

import ast
import functools
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minillama


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minillama"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A room may import itself, the core, and the rooms named here; the core knows no room.
ROOMS = {
    "checkpoints": set(),
    "kernels": {"inference.attention_backends"},
    "inference": {"checkpoints", "kernels"},
    "training": {"checkpoints", "inference"},
    "evaluation": {"checkpoints", "inference", "training.jsonl"},
    "distributed": {"checkpoints", "inference", "training"},
    "studies": {"checkpoints", "inference", "training"},
    "commands": {"checkpoints", "inference", "training", "evaluation", "distributed", "studies"},
}
FRONT = {"__init__", "__main__", "cli"}  # what a user calls: they reach into the rooms
# In the core, in the order of the data's way; a module may import only what stands before it.
CORE = """config strict_json bpe tokenizer chat_formats tool_calls interpreter chat rmsnorm rope
attention kv_cache feedforward model sampling generation""".split()


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imported(name: str) -> set[str]:
    """The minillama modules that a module imports, wherever in its text."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        dotted.removeprefix("minillama.") for dotted in found if dotted.startswith("minillama.")
    } & MODULES.keys()


def test_every_module_has_its_room():
    assert {name for name in MODULES if "." not in name} == {*CORE, *FRONT}
    assert {name.partition(".")[0] for name in MODULES if "." in name} == set(ROOMS)


def test_the_core_knows_no_room_and_imports_only_upward():
    place = {name: n for n, name in enumerate(CORE)}
    wrong = {name: [o for o in imported(name) if place.get(o, 99) >= place[name]] for name in CORE}
    assert {name: others for name, others in wrong.items() if others} == {}


def test_rooms_import_one_way():
    wrong = {}
    for name in MODULES:
        room = name.partition(".")[0]
        if room in ROOMS:
            allowed = {room, *ROOMS[room], *CORE, "__init__"}
            wrong[name] = [
                o for o in imported(name) if o not in allowed and o.partition(".")[0] not in allowed
            ]
    assert {name: others for name, others in wrong.items() if others} == {}


def test_no_module_imports_itself_round_about():
    def below(name, path=()):
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(imported(name)):
                below(other, (*path, name))
            done.add(name)

    done = set()
    for name in MODULES:
        below(name)


def test_the_front_page_imports_no_command():
    assert not [
        name
        for name in imported("__init__")
        if name.startswith(("cli", "commands", "__main__", "studies"))
    ]
    assert imported("commands.__init__") == set()
    assert imported("__main__") == {"cli"}


def test_the_public_names_exist_in_flow_order_and_explain_themselves():
    public = [getattr(minillama, name) for name in minillama.__all__]
    silent = [
        name
        for name, value in zip(minillama.__all__, public, strict=True)
        if not inspect.getdoc(value)
    ]
    assert not silent, f"no docstring: {silent}"
    own = [
        name
        for name, value in zip(minillama.__all__, public, strict=True)
        if inspect.isclass(value)
    ]
    undocumented = [name for name in own if "__doc__" not in vars(getattr(minillama, name))]
    assert not undocumented, f"only an inherited docstring: {undocumented}"


def test_public_functions_of_a_module_have_a_docstring():
    plain = []
    for name in MODULES:
        if not name.startswith(("cli", "commands.")):
            defined = [
                node for node in tree(name).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
            ]
            public = [node for node in defined if not node.name.startswith("_")]
            plain += [f"{name}.{node.name}" for node in public if not ast.get_docstring(node)]
    assert not plain, f"no docstring: {plain}"


PROBE = """
import json, os, random, signal, sys, warnings
import numpy, regex, torch, tqdm

def state():
    return {
        "default dtype": str(torch.get_default_dtype()), "device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(), "interop": torch.get_num_interop_threads(),
        "grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(), "sdpa": torch.backends.cuda.flash_sdp_enabled(),
        "torch seed": torch.random.get_rng_state().tolist(), "seed": str(random.getstate()),
        "numpy seed": str(numpy.random.get_state()), "numpy print": str(numpy.get_printoptions()),
        "environment": dict(os.environ), "warnings": str(warnings.filters), "folder": os.getcwd(),
        "ctrl-c": str(signal.getsignal(signal.SIGINT)), "path": sys.path[:],
    }

def packages():
    return {name.partition(".")[0] for name in sys.modules}

before, known = state(), packages()
import minillama
after = state()
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
operations = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("minillama::")]
print(json.dumps({
    "changed": [key for key in before if before[key] != after[key]],
    "added": sorted(packages() - known - sys.stdlib_module_names),
    "operations": operations, "on CUDA": [name for name in operations if has_kernel(name, "CUDA")],
    "kernels": list(minillama.kernels.tensor_cores.ATTENTION_KERNELS), "basic kernels": list(minillama.kernels.attention.BASIC_KERNELS),
    "asked for": sum(f.cache_info().currsize for f in (minillama.kernels.cuda.nvrtc, minillama.kernels.cuda.driver)),
    "compiled": minillama.kernels.attention.instantiate.cache_info().currsize,
}))
"""


@pytest.fixture(scope="module")
def fresh() -> dict:
    """What a process finds that has imported minillama and nothing else of it."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return json.loads(done.stdout)


def test_import_changes_no_setting_and_brings_nothing_heavy(fresh):
    # beyond torch, numpy, regex and tqdm
    assert fresh["changed"] == [] and fresh["added"] == ["minillama"]


def test_import_registers_every_kernel_and_compiles_none(fresh):
    """Whoever loads a model for CUDA finds our kernels there, whatever else is imported; no CUDA is
    needed for that.
    """
    operations = {f"minillama::{name}" for name in ("attend", "norm", "rope", "swiglu")}
    assert set(fresh["operations"]) == set(fresh["on CUDA"]) == operations
    assert fresh["kernels"] == ["warp", "tiles", "tensor", "wide", "split", "combine"]
    assert fresh["basic kernels"] == ["warp", "tiles"], "no module changes another's table"
    assert fresh["asked for"] == fresh["compiled"] == 0


def test_ruff_refuses_text_files_without_an_encoding():
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format=json",
        "--stdin-filename=minillama/x.py",
        "-",
    ]
    done = subprocess.run(
        ruff, input='open("x")\n', cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert [fault["code"] for fault in json.loads(done.stdout)] == ["PLW1514"]


def tracked_texts() -> dict[str, str]:
    """Every text file that git knows: path -> text."""
    git = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, encoding="utf-8"
    )
    texts = {}
    for name in git.stdout.split("\0")[:-1]:
        try:
            texts[name] = (ROOT / name).read_bytes().decode("utf-8")
        # a picture, or removed but not yet committed
        except (UnicodeDecodeError, FileNotFoundError):
            continue
    return texts


FOLDER = r"(?<![\w.$~])/(?:home|root|Users|work|tmp|opt|mnt|srv)/[\w.]+|\b[A-Z]:\\+Users\b"
INDEX = r"https?://(?!127\.0\.0\.1)[^\s\"']*(?:/simple\b|pypi|/whl/)|--(?:extra-)?index-url|trusted[-]host"
LOCAL = {"a folder of one machine": re.compile(FOLDER), "a package index": re.compile(INDEX)}


@pytest.mark.skipif(
    not shutil.which("git") or not (ROOT / ".git").exists(), reason="not a git checkout"
)
@pytest.mark.parametrize("what", LOCAL)
def test_nothing_tracked_names_one_machine(what):
    found = [
        f"{name}: {match[0]}"
        for name, text in tracked_texts().items()
        if (match := LOCAL[what].search(text))
    ]
    assert not found, found


@pytest.mark.parametrize(
    "text, what",
    [
        ("saved to /ho" + "me/ada/x", "a folder of one machine"),
        ("see '/tm" + "p/x'", "a folder of one machine"),
        ("C:" + "\\Users\\ada", "a folder of one machine"),
        ("https://mirror.example/si" + "mple", "a package index"),
        ("pip install --ind" + "ex-url x", "a package index"),
    ],
)
def test_the_patterns_find_what_they_should(text, what):
    assert LOCAL[what].search(text)

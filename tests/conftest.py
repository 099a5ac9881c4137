"""Fetched files and loaded models, once per session; the order of tests, what they leave behind,
and what they skip.
"""

import contextlib
import functools
import logging
import os
import random
import signal
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from allowed_skips import is_allowed

from minillama.checkpoints import hub
from minillama.inference.loading import load


GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden"


# The order: the longest files first, so that two workers end together; or any order, for no test
# may need another one

LONGEST = """parallel compilation cuda assign tasks stories adapters fused_attention hugging_face exploits gguf
instructions training generation reference mutations grade hub repository""".split()


def pytest_addoption(parser):
    parser.addoption(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="files, and the tests of a file, in a random order",
    )


# pytest itself then puts together again what shares an expensive fixture
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    place = {f"test_{name}.py": n for n, name in enumerate(LONGEST)}
    if (seed := config.getoption("shuffle")) is not None:
        drawn = random.Random(seed)
        place = {name: drawn.random() for name in sorted({item.path.name for item in items})}
        drawn.shuffle(items)
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


# What tests leave behind


def settings() -> dict:
    """What holds for a whole process."""
    os.umask(mask := os.umask(0))
    root = logging.getLogger()
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "folder": os.getcwd(),
        "umask": mask,
        "precision": torch.get_float32_matmul_precision(),
        "print": dict(vars(torch._tensor_str.PRINT_OPTS)),
        "process group": torch.distributed.is_available() and torch.distributed.is_initialized(),
        "path": [entry for entry in sys.path if "site-packages" not in entry],
        "logging": (root.level, root.disabled, root.manager.disable),
        # nbclient sets that of SIGINT anew where a parent had it ignored
        "signals": signal.getsignal(signal.SIGTERM),
        "environment": {
            name: value for name, value in os.environ.items() if not name.startswith(WRITTEN)
        },
        "replaced": [name for name, module in kept.items() if sys.modules.get(name) is not module],
    }


# pytest's own variable, the one of the grader's first process, and what PyTorch and transformers
# set for themselves
WRITTEN = ("PYTEST_", "MINILLAMA_GRADES", "TORCHINDUCTOR_", "KINETO", "TRITON", "KMP_", "TORCH")
kept = {}


@pytest.fixture(scope="module", autouse=True)
def no_trace():
    """A file's tests leave a process as they found it: whichever files share one must not
    matter.
    """
    kept.update(
        {
            name: module
            for name, module in sys.modules.items()
            if name.startswith(("minillama", "course"))
        }
    )
    before = settings()
    yield
    after = settings()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    changed = [
        f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]
    ]
    assert not changed, "left behind: " + "; ".join(changed)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers for a test, whatever ran before it."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)


# What is skipped must not be there

skipped = {}  # reason -> the first test


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        skipped.setdefault(report.longrepr[2].removeprefix("Skipped: "), report.nodeid)


def pytest_collectreport(report):
    if report.skipped:
        skipped.setdefault(str(report.longrepr[2]).removeprefix("Skipped: "), report.nodeid)


def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput") and not all(map(is_allowed, skipped)):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    for reason, test in skipped.items():
        if not is_allowed(reason):
            terminalreporter.line(
                f"SKIPPED BUT NEEDED: {test}: {reason} (see tests/allowed_skips.py)", red=True
            )


# Fetched files and loaded models


def fetched(name: str) -> Path:
    """The fetched file; without a network a skip, but in CI (or MINILLAMA_REQUIRE_WEIGHTS=1) a
    failure.
    """
    try:
        return hub.fetch(name)
    except hub.FetchError as error:
        required = os.environ.get("CI") or os.environ.get("MINILLAMA_REQUIRE_WEIGHTS")
        (pytest.fail if required else pytest.skip)(f"{name} is needed: {error}")


@pytest.fixture
def no_compiler():
    """PyTorch finds no C++ compiler. subtle: setattr on its configuration, undone, would take the
    setting away.
    """
    import torch._inductor.config

    with torch._inductor.config.patch(
        {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    ):
        yield


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return fetched("smollm2-135m-instruct")


@functools.cache
def gguf_reader(path: Path):
    """A file as the gguf package reads it, from plain arrays: np.memmap is slow where every field
    is a slice.
    """
    from gguf.gguf_reader import GGUFReader

    mapped = np.memmap
    with mock.patch.object(
        np, "memmap", lambda *args, **options: np.asarray(mapped(*args, **options))
    ):
        return GGUFReader(path)


@contextlib.contextmanager
def one_reader():
    """transformers reads a GGUF file once for each thing it wants and makes the table of names for
    every module.
    """
    import gguf

    with (
        mock.patch.object(gguf, "GGUFReader", lambda path: gguf_reader(Path(path).resolve())),
        mock.patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        yield


@pytest.fixture(scope="session")
def smollm2_gguf(smollm2_path):
    """The file as the gguf package reads it."""
    return gguf_reader(smollm2_path.resolve())


@pytest.fixture(scope="session")
def llama3_vocabulary() -> Path:
    return fetched("llama-3.1-tokenizer")


@pytest.fixture(scope="session")
def ours(smollm2_path):
    """Our model and tokenizer, float32."""
    return load(smollm2_path)


@pytest.fixture(scope="session")
def theirs(smollm2_path):
    """transformers' model from the same file, float32."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    folder, name = str(smollm2_path.parent), smollm2_path.name
    with one_reader():
        return transformers.LlamaForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.float32
        ).eval()


@pytest.fixture(scope="session")
def their_tokenizer(smollm2_path, tmp_path_factory):
    """transformers' conversion of the GGUF's tokenizer; from a folder of its own, for beside Meta's
    tokenizer.model it would silently take that.
    """
    import transformers

    folder = tmp_path_factory.mktemp("gguf")
    (folder / smollm2_path.name).symlink_to(smollm2_path.resolve())
    with one_reader():
        return transformers.AutoTokenizer.from_pretrained(str(folder), gguf_file=smollm2_path.name)


@pytest.fixture(scope="session")
def golden():
    """What Meta's own code computed, by name; data/golden/make_meta_logits.py made it."""
    with (
        np.load(GOLDEN / "meta_smollm2.npz") as smollm2,
        np.load(GOLDEN / "meta_llama31.npz") as llama31,
    ):
        return dict(smollm2) | dict(llama31)


@pytest.fixture(scope="session")
def meta_logits(smollm2_gguf, golden):
    """Meta's logits (T, V) from its hidden states and the embedding as the gguf package reads
    it.
    """
    import gguf

    tensor = next(t for t in smollm2_gguf.tensors if t.name == "token_embd.weight")
    embedding = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    return golden["hidden"].astype(np.float64) @ embedding.T

"""The skips that are allowed: what their reason says, and a look, taken anew, at whether this
machine makes it true.
"""

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

from minillama.checkpoints import hub


def missing(*modules: str) -> bool:
    return any(importlib.util.find_spec(name) is None for name in modules)


def no_compiler() -> bool:
    return not shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))


def no_cuda() -> bool:
    import torch

    return not torch.cuda.is_available()


def not_fetched(name: str = "smollm2-135m-instruct") -> bool:
    """Outside CI; conftest.fetched fails instead of skipping where a file is required."""
    return hub.find(name) is None and not (
        os.environ.get("CI") or os.environ.get("MINILLAMA_REQUIRE_WEIGHTS")
    )


def no_measure() -> bool:
    return not Path("/proc/self/clear_refs").exists()


def no_git() -> bool:
    return not shutil.which("git") or not (Path(__file__).parent.parent / ".git").exists()


def windows() -> bool:
    return sys.platform == "win32"


ALLOWED = {  # the whole reason, as an expression; its groups are the look's arguments
    "no CUDA device": no_cuda,
    "Triton is not installed, so nothing can be allowed": lambda: missing("triton"),
    "no compiler: .*": no_compiler,
    "no C\\+\\+ compiler": lambda: not shutil.which(os.environ.get("CXX", "g++")),
    "NVRTC, which compiles CUDA C\\+\\+, is not there: .*": lambda: sys.platform == "darwin",
    "([\\w.-]+) is needed: .*": not_fetched,
    "SmolLM2 is not in the cache; .*": not_fetched,
    "opt-in: MINILLAMA_CHECKPOINT=folder or \\.gguf": lambda: (
        "MINILLAMA_CHECKPOINT" not in os.environ
    ),
    "opt-in: pip install lm_eval": lambda: missing("lm_eval"),
    "pip install -e '\\.\\[classroom\\]'": lambda: missing("nbgrader") or missing("otter"),
    "could not import 'ipywidgets': .*": lambda: missing("ipywidgets"),
    "could not import 'resource': .*": windows,
    "MINILLAMA_ELSEWHERE names no Python with llama-cpp-python": lambda: (
        "MINILLAMA_ELSEWHERE" not in os.environ
    ),
    "memory is measured as Linux does": no_measure,
    "this system does not tell": no_measure,
    "only Linux keeps a process's memory limit": lambda: not sys.platform.startswith("linux"),
    "only Linux and macOS swap in one step": lambda: sys.platform not in ("linux", "darwin"),
    "needs make": lambda: windows() or not shutil.which("make"),
    "not a git checkout": no_git,
    "bubblewrap is not installed": lambda: not shutil.which("bwrap"),
    "the environment lies below /tmp": lambda: str(Path(sys.prefix).resolve()).startswith("/tmp/"),
    "no fork here": lambda: not hasattr(os, "fork"),
    "Windows (has no|cannot) .*": lambda _: windows(),
    "gloo's interfaces have other names there": windows,
}


def is_allowed(reason: str) -> bool:
    found = [
        (look, match)
        for text, look in ALLOWED.items()
        if (match := re.fullmatch(text, reason, re.DOTALL))
    ]
    return any(look(*match.groups()) for look, match in found)

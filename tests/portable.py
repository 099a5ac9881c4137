"""Notebooks and numeric tests under other instruction sets, which PyTorch and its libraries can
pretend to have.

    python tests/portable.py [notebooks/03_rope.ipynb tests/test_rope.py ...] [--sets SSE AVX2 ...] [--threads 1 2]

Without files: every notebook, and every test that compares numbers. `rounding` runs notebooks
alone, with last digits turned over (other_rounding.py): what still prints the same should hold on
processors that cannot be pretended here.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
SETS = {
    "SSE": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "own": {},
    "rounding": {
        "MINILLAMA_ROUNDING": "1",
        "PYTHONSTARTUP": str(ROOT / "tests" / "other_rounding.py"),
    },
}
FILES = "assign atomic classroom cli course_check execute exploits export grade hostile hub notebooks package"
# no numbers in them
OF_FILES = {f"test_{name}.py" for name in (FILES + " project_files repository").split()}
NBVAL = "--nbval --nbval-sanitize-with tests/nbval.cfg --nbval-current-env --nbval-cell-timeout=600".split()


def run(name: str, threads: int, notebooks: list[str], tests: list[str]) -> dict[str, bool]:
    """What passed under one set: row of the table -> passed. The tests' own output goes to the
    terminal.
    """
    environment = os.environ | SETS[name] | {"OMP_NUM_THREADS": str(threads)}
    workers = ["-n", "2" if threads == 1 else "1", "--dist", "loadfile"]
    passed = {}
    for what, words in (
        ("tests", tests if name != "rounding" else []),
        ("notebooks", notebooks and [*NBVAL, *notebooks]),
    ):
        if words:
            row = f"{name:9} {threads} thread{'s' * (threads > 1)}, {what}"
            print(f"\n[{row}]", flush=True)
            start = time.monotonic()
            command = [sys.executable, "-m", "pytest", *workers, *words]
            passed[row] = subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
            print(f"[{row}: {time.monotonic() - start:.0f} s]", flush=True)
    return passed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python tests/portable.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "files", nargs="*", help="notebooks and tests (default: all with numbers in them)"
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="(all)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="(1 2)")
    args = parser.parse_args(argv)
    files = args.files or [str(path) for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
    files += (
        []
        if args.files
        else [str(p) for p in sorted(ROOT.glob("tests/test_*.py")) if p.name not in OF_FILES]
    )
    notebooks, tests = (
        [file for file in files if file.endswith(kind)] for kind in (".ipynb", ".py")
    )
    passed = {}
    for name in args.sets:
        for threads in args.threads[: 1 if name == "rounding" else None]:
            passed |= run(name, threads, notebooks, tests)
    print(
        "\n" + "\n".join(f"{'passed' if good else 'FAILED'}  {row}" for row, good in passed.items())
    )
    return int(not all(passed.values()))


if __name__ == "__main__":
    sys.exit(main())

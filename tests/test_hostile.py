"""Every broken file of the three formats' tables costs little and touches nothing else; mutated ones never surprise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import test_gguf


FORMATS = {"gguf": test_gguf}
MEGABYTES = 200


def open_all(good, paths: dict) -> dict[str, dict]:
    """What open_all.py, in a process of its own, says of each path."""
    script = Path(__file__).with_name("open_all.py")
    done = subprocess.run(
        [sys.executable, str(script)], input="\n".join(map(str, [good, *paths.values()])),
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(paths, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux does")
@pytest.mark.parametrize("module", FORMATS.values(), ids=FORMATS.keys())
def test_every_broken_file_is_refused_cheaply(tmp_path, module):
    good, paths = module.hostile(tmp_path)
    for name, found in open_all(good, paths).items():
        assert found["known"] and "\n" not in found["text"], (name, found)
        assert found["text"].startswith(f"{found['path']}: "), (name, found["text"])
        assert found["seconds"] < 1 and found["bytes"] < MEGABYTES * 1e6, (name, found)
        for event, path, mode in found["touched"]:
            assert event == "open" and mode in ("r", "rb") and Path(path).is_relative_to(tmp_path), (name, event, path)

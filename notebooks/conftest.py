"""nbval over the chapters: fetch what a chapter names first.

Without a network its cells are skipped and say so, but in CI, or with MINILLAMA_REQUIRE_WEIGHTS=1,
a missing file is a failure.
"""

import functools
import os

import pytest

from course.execute import fetch_what_it_names
from minillama.checkpoints import hub


@functools.cache
def obstacle(path) -> str:
    """Why a notebook's files could not be fetched, or nothing."""
    try:
        fetch_what_it_names(path)
    except hub.FetchError as error:
        return f"{path.name} uses files that are not here: {error}"
    return ""


def pytest_runtest_setup(item):
    if item.path.suffix == ".ipynb" and (reason := obstacle(item.path)):
        if os.environ.get("CI") or os.environ.get("MINILLAMA_REQUIRE_WEIGHTS"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)

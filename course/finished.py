"""Finished modules for the chapters that are not solved yet: minillama/finished.zip, behind the student's own.

A module is looked for in minillama/ first, so that each name stands for one module in a process. The archive keeps
solutions out of sight, no more: the package is public.
"""

import os
from pathlib import Path

from course import waiting


ARCHIVE = "finished.zip"


def join(package: list[str]) -> None:
    """Add the archive, where there is one, to the folders of the package `minillama`, which calls this.

    With MINILLAMA_USING=finished in the environment, its modules go before the student's.
    """
    archive = Path(package[0]) / ARCHIVE
    if archive.exists():
        package.insert(0 if os.environ.get("MINILLAMA_USING") == "finished" else len(package), str(archive))
    waiting.watch()

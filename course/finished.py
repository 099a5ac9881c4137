"""Finished modules for the chapters that are not solved yet: minillama/finished.zip, behind the
student's own.

A module is looked for in minillama/ first, so that each name stands for one module in a process.
The archive keeps solutions out of sight, no more: the package is public.
"""

import os
from pathlib import Path

from course import waiting


ARCHIVE = "finished.zip"


def join(package: list[str]) -> None:
    """Add the archive, where there is one, to the folders of `minillama` or one of its rooms, which
    calls this.

    With MINILLAMA_USING=finished in the environment, its modules go before the student's.
    """
    folder = Path(package[0])
    places = {
        folder / ARCHIVE: folder / ARCHIVE,
        folder.parent / ARCHIVE: folder.parent / ARCHIVE / folder.name,
    }
    for archive, inside in places.items():
        if archive.exists():
            package.insert(
                0 if os.environ.get("MINILLAMA_USING") == "finished" else len(package), str(inside)
            )
    waiting.watch()

"""Find students' notebooks: folders, zips, GitHub Classroom's clones, a zip or a notebook in a
folder.

Nothing is unpacked but notebooks of the course, under their own names, so no path in an archive
matters.
"""

import hashlib
import stat
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from course.collect import LARGEST


ENTRIES, RATIO = 20_000, 200  # files of a zip; how much smaller than its contents it may be
SKIPPED = {".ipynb_checkpoints", ".git", ".venv", "__pycache__", "__MACOSX", "assigned"}


@dataclass
class Submission:
    """One student's notebooks by file name, as bytes, and what was odd."""

    student: str
    notebooks: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Changes with any notebook."""
        parts = [
            f"{name} {hashlib.sha256(data).hexdigest()}"
            for name, data in sorted(self.notebooks.items())
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def offer(self, found: dict[str, list[tuple[str, object]]], read) -> None:
        """Take one notebook of each name, the one in notebooks/ or the least deep if there are
        several.
        """
        for name, places in sorted(found.items()):
            places.sort(
                key=lambda place: (
                    "notebooks" not in place[0].split("/")[:-1],
                    place[0].count("/"),
                    place[0],
                )
            )
            if len(places) > 1:
                self.notes.append(f"{name} is there {len(places)} times; {places[0][0]} counts")
            data = read(places[0][1])
            if data is not None:
                self.notebooks[name] = data


def find_submissions(folder: Path, wanted: set[str]) -> list[Submission]:
    """All submissions in a folder, by name; wanted: the course's notebooks. OSError if the folder
    cannot be read.
    """
    entries = [
        path
        for path in sorted(Path(folder).iterdir())
        if not path.name.startswith(".") and path.name not in SKIPPED
    ]
    folders = [path for path in entries if path.is_dir() and not path.is_symlink()]
    if len(entries) == len(folders) == 1 and any(path.is_dir() for path in folders[0].iterdir()):
        if not any(
            (folders[0] / inside / name).exists() for name in wanted for inside in ("", "notebooks")
        ):
            # GitHub Classroom: one folder around all clones
            return find_submissions(folders[0], wanted)
    return [
        read_submission(path, wanted)
        for path in entries
        if path.is_dir() or path.suffix in (".zip", ".ipynb")
    ]


def read_submission(path: Path, wanted: set[str]) -> Submission:
    """What one student handed in; never raises for what is in it."""
    submission = Submission(path.stem if path.is_file() else path.name)
    try:
        if path.is_symlink():
            submission.notes.append("it is a link; links are not followed")
        elif path.is_dir():
            read_folder(path, submission, wanted)
        elif path.suffix == ".zip":
            read_zip(path, submission, wanted)
        else:
            name = next((name for name in wanted if path.name.endswith(name)), None)
            submission.student = (
                path.name.removesuffix(name).strip("_- ") or path.stem if name else path.stem
            )
            submission.offer(
                {name: [(path.name, path)]} if name else {}, lambda p: read_file(p, submission)
            )
    except (
        OSError,
        RuntimeError,
        ValueError,
        NotImplementedError,
        zipfile.BadZipFile,
        EOFError,
    ) as error:
        submission.notes.append(
            f"it cannot be read: "
            f"{getattr(error, 'strerror', None) or error or type(error).__name__}"
        )
    except Exception as error:  # zlib and its like have errors of their own
        submission.notes.append(f"it cannot be read: {type(error).__name__}")
    if not submission.notebooks and not submission.notes:
        submission.notes.append("it holds no notebook of the course")
    return submission


def walk(folder: Path, wanted: set[str], depth: int = 6) -> dict[str, list[tuple[str, Path]]]:
    """The course's notebooks below a folder: name -> (path as text, path). Links are not
    followed.
    """
    found, todo = {}, [(folder, 0)]
    while todo:
        here, level = todo.pop()
        for path in sorted(here.iterdir())[:ENTRIES]:
            if path.is_symlink() or path.name in SKIPPED:
                continue
            if path.is_dir() and level < depth:
                todo.append((path, level + 1))
            elif path.name in wanted and path.is_file():
                found.setdefault(path.name, []).append((path.relative_to(folder).as_posix(), path))
    return found


def read_folder(folder: Path, submission: Submission, wanted: set[str]) -> None:
    found = walk(folder, wanted)
    submission.offer(found, lambda path: read_file(path, submission))
    archives = [
        path for path in sorted(folder.iterdir()) if path.suffix == ".zip" and not path.is_symlink()
    ]
    if not found and archives:
        read_zip(archives[-1], submission, wanted)


def read_file(path: Path, submission: Submission) -> bytes | None:
    if path.stat().st_size > LARGEST:
        submission.notes.append(
            f"{path.name} has more than {LARGEST // 1_000_000} MB: clear its outputs"
        )
        return None
    return path.read_bytes()


def read_zip(path: Path, submission: Submission, wanted: set[str]) -> None:
    """Notebooks of a zip; others, links and what unpacks to far more than it promises, are left in
    it.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > ENTRIES:
            raise ValueError(f"a zip of {len(entries)} files")
        found = {}
        for entry in entries:
            place = PurePosixPath(entry.filename.replace("\\", "/"))
            if place.name not in wanted or entry.is_dir() or SKIPPED & set(place.parts):
                continue
            if (
                place.is_absolute()
                or ".." in place.parts
                or stat.S_ISLNK(entry.external_attr >> 16)
            ):
                submission.notes.append(
                    f"{place.name}: a path that leads out of the zip, or a link, is not read"
                )
            else:
                found.setdefault(place.name, []).append((place.as_posix(), entry))
        submission.offer(found, lambda entry: read_entry(archive, entry, submission))


def read_entry(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, submission: Submission
) -> bytes | None:
    name = PurePosixPath(entry.filename).name
    too_dense = (
        entry.file_size > RATIO * max(entry.compress_size, 1) and entry.file_size > 1_000_000
    )
    if entry.file_size > LARGEST or too_dense:
        submission.notes.append(f"{name} would unpack to {entry.file_size:,} bytes; it is not read")
        return None
    with archive.open(entry) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        submission.notes.append(f"{name} is larger than its zip says; it is not read")
        return None
    return data

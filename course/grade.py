"""Grade a folder of submissions, each in a process of its own.

python -m course.grade SUBMISSIONS --out GRADES [--only 03] [--using reference|student] [--jobs 2]
[--resume] [--apart]

SUBMISSIONS holds a folder, a zip or a notebook per student, or GitHub Classroom's clones. GRADES
gets scores.csv, scores.json, a page per student in feedback/, and what --resume needs in students/.
Only the cells that students are to write are taken from them. This is no sandbox: for code that you
do not trust, run it in a container without a network. With --apart, students' code runs in
processes that hold no check and no expected value, in bubblewrap where it is installed.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from course import report
from course.assign import chapters as find_chapters
from course.confine import Limits
from course.export import ROOT, ExportError
from course.grade_one import grade_one
from course.submissions import Submission, find_submissions
from course.tasks import Chapter, Task
from course.whole import write_whole


LONGEST = 1 << 20  # bytes of one message from a student's process
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass(frozen=True)
class Settings:
    """What holds for all submissions: whose other modules, seconds per task and per submission,
    bytes of memory.
    """

    chapters: tuple[Chapter, ...]
    using: str = "reference"
    seconds: float = 60
    total: float = 900
    memory: int = 4 << 30
    apart: bool = False  # students' code in processes that know no check (course/apart.py)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(chapter.path.name for chapter in self.chapters)

    @property
    def tasks(self) -> dict[str, Task]:
        return {task.id: task for chapter in self.chapters for task in chapter.tasks}

    @cached_property
    def version(self) -> str:
        """Changes with the course: these chapters' notebooks, the package, the grader."""
        files = [chapter.path for chapter in self.chapters]
        files += sorted(
            path for name in ("minillama", "course") for path in (ROOT / name).rglob("*.py")
        )
        return hashlib.sha256(
            b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)
        ).hexdigest()


def context(settings: Settings):
    """How processes start: from one that has everything loaded where the system can, anew
    elsewhere.
    """
    found = multiprocessing.get_context(START)
    if START == "forkserver":
        os.environ["MINILLAMA_GRADES"] = "/".join(settings.names)
        found.set_forkserver_preload(["course.grade_one"] + ["course.grade_apart"] * settings.apart)
    return found


def grade(submission: Submission, settings: Settings, ctx, door: str = "") -> dict:
    """One submission's result; never raises for what is in it. door: of a course.box.Box, for
    settings.apart.
    """
    outcomes, notes, deadline = {}, list(submission.notes), time.monotonic() + settings.total
    folder = Path(tempfile.mkdtemp(prefix="grading-"))
    try:
        for name, data in submission.notebooks.items():
            (folder / name).write_bytes(data)
        while len(outcomes) < len(settings.tasks) and submission.notebooks:
            before = len(outcomes)
            current, reason = attempt(folder, settings, ctx, outcomes, notes, deadline, door)
            if current:
                outcomes[current] = lost(settings.tasks[current], reason)
            if len(outcomes) == before:
                notes.append(f"it could not be graded to the end: {reason}")
                break
    except Exception as error:
        notes.append(f"it could not be graded to the end: {type(error).__name__}: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for id, task in settings.tasks.items():
        outcomes.setdefault(
            id,
            lost(task, "not graded" if submission.notebooks else f"{task.title} is still missing"),
        )
    look = [
        f"{id}: {row['message']}"
        for id, row in outcomes.items()
        if row["message"].startswith("not graded")
    ]
    return {
        "student": submission.student,
        "fingerprint": mark(submission, settings),
        "total": sum(row["points"] for row in outcomes.values()),
        "notes": notes,
        "look": look,
        "tasks": {id: outcomes[id] for id in settings.tasks},
    }


def lost(task: Task, message: str) -> dict:
    return {
        "task": task.id,
        "passed": False,
        "points": 0,
        "message": message,
        "section": task.section,
    }


def attempt(folder, settings, ctx, outcomes, notes, deadline, door="") -> tuple[str, str]:
    """Run a process until it ends, dies or takes too long; the task at which it did not end well,
    and why.
    """
    ours, theirs = ctx.Pipe(duplex=False)
    limits = Limits(settings.memory, int(settings.total) + 60)
    arguments = (theirs, folder, settings.names, settings.using, set(outcomes), limits)
    target = grade_one
    if settings.apart:
        from course.grade_apart import grade_apart

        target, arguments = grade_apart, (*arguments, door)
    process = ctx.Process(target=target, args=arguments, daemon=True)
    process.start()
    theirs.close()
    # it has to start first
    current, until = "", min(time.monotonic() + settings.seconds + 60, deadline)
    try:
        while True:
            if not ours.poll(max(0, until - time.monotonic())):
                whole = time.monotonic() >= deadline
                return (
                    current,
                    f"not finished within {settings.total if whole else settings.seconds:g} "
                    f"seconds",
                )
            kind, value = json.loads(ours.recv_bytes(LONGEST))
            if kind == "note":
                notes.append(legible(value)[:300])
            elif kind == "start":
                current, until = value, min(time.monotonic() + settings.seconds, deadline)
            elif kind == "done" and value["task"] == current:
                outcomes[current], current = checked(value, settings.tasks[current]), ""
            elif kind == "end":
                return "", ""
    # it ended, or said what it never says
    except (EOFError, OSError, ValueError, TypeError, KeyError, RecursionError):
        process.join(5)
        return current, f"not graded: the process ended ({how(process.exitcode)})"
    finally:
        end(process)
        ours.close()


def checked(value: dict, task: Task) -> dict:
    """An outcome whose points are the task's or none."""
    passed = value["passed"] is True
    return {
        "task": task.id,
        "passed": passed,
        "points": task.points if passed else 0,
        "message": legible(value["message"])[:500],
        "section": task.section,
    }


def legible(text) -> str:
    """Text that can be written to a file: half of a surrogate pair cannot."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def how(code: int | None) -> str:
    """An exit code in words."""
    if code is None or code >= 0:
        return f"code {code}"
    name = signal.Signals(-code).name
    return {"SIGKILL": "SIGKILL: out of memory?", "SIGXCPU": "too much processor time"}.get(
        name, name
    )


def end(process) -> None:
    """End a process and all that it started."""
    if process.pid and hasattr(os, "killpg"):
        try:
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    process.kill()
    process.join()


def mark(submission: Submission, settings: Settings) -> str:
    """Changes when a submission has to be graded again."""
    return (
        f"{submission.fingerprint} {settings.version} {settings.using} {' '.join(settings.names)}"
        f"{' apart' if settings.apart else ''}"
    )


def grade_all(
    submissions: list[Submission], settings: Settings, out: Path, jobs: int, resume: bool
) -> list[dict]:
    """Grade all, some at a time, and write each result as soon as it is there."""
    results, todo = [], []
    for submission in submissions:
        old = stored(out, submission) if resume else None
        (results if old and old["fingerprint"] == mark(submission, settings) else todo).append(
            old or submission
        )
        if old and results[-1:] != [old]:
            todo[-1] = submission
    ctx = context(settings)
    with box_for(settings) as box, ThreadPoolExecutor(jobs) as pool:
        door = box.path if box else ""
        running = [pool.submit(grade, submission, settings, ctx, door) for submission in todo]
        for future in tqdm(
            as_completed(running), "grading", len(running), unit="submission", disable=None
        ):
            result = future.result() | ({"confined": box.sentence} if box else {})
            results.append(result)
            name = report.file_name(result["student"])
            page = report.feedback(result, settings.chapters)
            text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
            write_whole(
                {out / "students" / f"{name}.json": text, out / "feedback" / f"{name}.md": page}
            )
            report.write_all(results, settings.chapters, out)
    report.write_all(results, settings.chapters, out)
    return results


def box_for(settings: Settings):
    """The process that students' processes come from, or None without --apart. ExportError."""
    if not settings.apart:
        return contextlib.nullcontext()
    from course.box import Box

    return Box(settings.memory, int(settings.seconds) + 10)


def stored(out: Path, submission: Submission) -> dict | None:
    """What an earlier run wrote for this student."""
    try:
        path = out / "students" / f"{report.file_name(submission.student)}.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        return (
            found
            if {"student", "fingerprint", "total", "notes", "look", "tasks"} <= found.keys()
            else None
        )
    except (OSError, ValueError, AttributeError):
        return None


def how_confined(results: list[dict]) -> str:
    """For the last line: what kept students' code apart; nothing without --apart."""
    return "".join(sorted({f"; {each['confined']}" for each in results if "confined" in each}))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course.grade", description=__doc__.split("\n")[0]
    )
    parser.add_argument("submissions", type=Path, help="a folder with one entry per student")
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder for scores and feedback"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="03", help="these chapters instead of all"
    )
    parser.add_argument(
        "--using", choices=("reference", "student"), default="reference", help="whose other modules"
    )
    parser.add_argument("--jobs", type=int, default=2, help="submissions at a time")
    parser.add_argument("--seconds", type=float, default=60, help="for one task")
    parser.add_argument("--total", type=float, default=900, help="seconds for one submission")
    parser.add_argument("--memory", type=float, default=4, help="GB for one submission")
    parser.add_argument(
        "--resume", action="store_true", help="keep what was graded and has not changed"
    )
    parser.add_argument(
        "--apart",
        action="store_true",
        help="students' code in processes that hold no check, in bubblewrap where it is installed",
    )
    args = parser.parse_args(argv)
    try:
        found = find_chapters(args.only)
        submissions = find_submissions(args.submissions, {chapter.path.name for chapter in found})
        if not submissions:
            raise ExportError(
                f"{args.submissions} holds no folder, zip or notebook: nothing to grade"
            )
        chosen = tuple(chapter for chapter in found if chapter.tasks)
        settings = Settings(
            chosen, args.using, args.seconds, args.total, int(args.memory * (1 << 30)), args.apart
        )
        results = grade_all(submissions, settings, args.out, max(1, args.jobs), args.resume)
    except (ExportError, OSError, ValueError) as error:
        print(f"course.grade: {error}", file=sys.stderr)
        return 2
    look = sum(bool(result["look"]) for result in results)
    print(
        f"{len(results)} submissions graded into {args.out}; {look} to look at, see the column "
        f"`look`{how_confined(results)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

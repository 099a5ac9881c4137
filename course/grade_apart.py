"""Grade one student's work with `course.grade --apart`: the checks here, the student's code in a
process of its own that knows none of them (course/apart.py).
"""

import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from course.apart import run_apart
from course.collect import Work, with_own
from course.confine import Limits
from course.export import ExportError, build_modules, by_hand
from course.grade_one import chapters, load_reference, say, work_of
from course.run_tasks import Outcome, failed
from course.screen import refused
from course.tasks import Chapter, Task


def grade_apart(
    pipe,
    folder: Path,
    names: tuple[str, ...],
    using: str,
    done: set[str],
    limits: Limits,
    door: str,
) -> None:
    """What course.grade_one.grade_one says. door: where processes for the student's code are to be
    had.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # so that the parent can end all that this process starts
    torch.set_num_threads(1)
    load_reference()
    found = {chapter.path.name: work_of(Path(folder), chapter) for chapter in chapters(names)}
    for name, work in found.items():
        for note in work.notes if not done else ():
            say(pipe, "note", f"{name.partition('_')[0]}: {note}")
    limits.set()
    tempfile.tempdir = str(Path(folder) / "scratch")
    Path(tempfile.tempdir).mkdir(exist_ok=True)
    package, hidden = package_of(found, names) if using == "student" else ({}, frozenset())
    for chapter in chapters(names):
        for task in chapter.tasks:
            if task.id not in done:
                say(pipe, "start", task.id)
                work = found[chapter.path.name]
                outcome = outcome_of(task, work, using, door, package, hidden)
                say(pipe, "done", asdict(outcome))
    say(pipe, "end", None)


def outcome_of(task: Task, work: Work, using: str, door: str, package, hidden) -> Outcome:
    """One task's outcome. With the reference, only the task's own cells are the student's."""
    if all(work.untouched(task.chapter, id) for id in task.solutions):
        return failed(task, f"{task.title} is still missing")
    sources = {
        id: text for id, text in work.sources.items() if using == "student" or id in task.solutions
    }
    try:
        outcome = run_apart(task, sources, work.extra, door, package, hidden)
    except BaseException as error:  # of the checks; what a student's code does is an outcome
        return failed(task, f"not graded: it ended the run with {type(error).__name__}")
    hint = "" if outcome.passed else refused(task, work.sources, work.extra)
    if hint:
        outcome = replace(outcome, message=f"{outcome.message[:400]} (a hint: {hint})")
    return outcome


def package_of(found: dict[str, Work], names: tuple[str, ...]) -> tuple[dict[str, str], frozenset]:
    """The texts of the modules that a student's solutions make, and the names that they define."""
    package, hidden = {}, set()
    for chapter in chapters(names):
        try:
            work = found[chapter.path.name]
            texts = build_modules(chapter.path, solved(chapter, work))
        except (ExportError, SyntaxError):  # the task's own outcome says why
            no = 'raise ImportError("this module is no Python yet")\n'
            texts = dict.fromkeys(chapter.modules, no)
        package |= {name: text for name, text in texts.items() if not by_hand(name)}
        for id in chapter.solutions:
            if module := chapter.exports(id):
                hidden |= {f"minillama.{module}.{name}" for name in chapter.names(id)}
    return package, frozenset(hidden)


def solved(chapter: Chapter, work: Work) -> dict[str, str]:
    """A chapter's solution cells as the student's package gets them."""
    sources = {id: work.sources[id] for task in chapter.tasks for id in task.solutions}
    theirs = [id for id in sources if not work.untouched(chapter, id)]
    return with_own(chapter, sources, work.extra, theirs)

"""Grade one student's work, in a process of its own; what it found goes through a pipe to the
parent.
"""

import importlib
import json
import linecache
import os
import pkgutil
import shutil
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from course.collect import Work, blank, collect, with_own
from course.confine import Limits, Snapshot, confine
from course.export import ROOT, ExportError, build_modules, by_hand, file_of
from course.run_tasks import Outcome, failed, run_task
from course.screen import refused
from course.tasks import Chapter, Task


@cache
def chapters(names: tuple[str, ...]) -> list[Chapter]:
    """The reference's chapters, read once per process; a forkserver reads them before it forks."""
    return [Chapter(ROOT / "notebooks" / name) for name in names]


def load_reference() -> None:
    """Import every module of the reference and keep its text, since afterwards its files cannot be
    opened.
    """
    # subtle: imported later, it would put its own manual_seed into torch
    import torch._dynamo.pgo as profiles

    import minillama

    for module in pkgutil.walk_packages(minillama.__path__, "minillama."):
        # the last needs lm_eval, which no student has to have
        if module.name not in ("minillama.__main__", "minillama.evaluation.harness"):
            file = importlib.import_module(module.name).__file__
            linecache.getlines(file)  # torch.compile looks at both
            getattr(profiles, "_hash_containing_file", len)(file)


def warm(names: tuple[str, ...]) -> None:
    """Everything that is the same for all students."""
    load_reference()
    for chapter in chapters(names):
        for task in chapter.tasks:
            refused(task, task.reference)


if names := os.environ.get("MINILLAMA_GRADES"):  # a forkserver imports this module to be warm
    warm(tuple(names.split("/")))


def work_of(folder: Path, chapter: Chapter) -> Work:
    """A student's work in a chapter; all blank if there is no notebook."""
    path = folder / chapter.path.name
    if path.exists():
        return collect(path, chapter)
    return Work(
        {id: blank(chapter, id) for id in chapter.solutions},
        notes=[f"{chapter.path.name} was not handed in"],
    )


def grade_one(
    pipe, folder: Path, names: tuple[str, ...], using: str, done: set[str], limits: Limits
) -> None:
    """Say ("note", text), ("start", task id), ("done", outcome) and ("end", None); tasks in `done`
    are left out.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # so that the parent can end all that this process starts
    torch.set_num_threads(1)
    load_reference()
    found = {chapter.path.name: work_of(Path(folder), chapter) for chapter in chapters(names)}
    for name, work in found.items():
        for note in work.notes if not done else ():
            say(pipe, "note", f"{name.partition('_')[0]}: {note}")
    why = {task.id: refusal(task, found[c.path.name]) for c in chapters(names) for task in c.tasks}
    scratch = Path(folder) / "scratch"
    scratch.mkdir(exist_ok=True)
    if using == "student":
        limits.set()  # its modules run when they are imported
        use_package_of(found, names, Path(folder))
    confine(limits, scratch)
    snapshot = Snapshot()
    for chapter in chapters(names):
        for task in chapter.tasks:
            if task.id not in done:
                say(pipe, "start", task.id)
                outcome = outcome_of(task, found[chapter.path.name], using, why[task.id])
                say(pipe, "done", asdict(fair(outcome, snapshot, task)))
    say(pipe, "end", None)


def say(pipe, kind: str, value) -> None:
    """JSON, not the pipe's own pickles: what a student's process sends must not be able to run in
    the parent.
    """
    pipe.send_bytes(json.dumps([kind, value]).encode())


def refusal(task: Task, work: Work) -> str:
    return (
        ""
        if all(work.untouched(task.chapter, id) for id in task.solutions)
        else refused(task, work.sources, work.extra)
    )


def outcome_of(task: Task, work: Work, using: str, why: str) -> Outcome:
    """One task's outcome. With the reference, only the task's own cells are the student's."""
    if all(work.untouched(task.chapter, id) for id in task.solutions):
        return failed(task, f"{task.title} is still missing")
    if why:
        return failed(task, f"not graded: {why}")
    sources = {
        id: text for id, text in work.sources.items() if using == "student" or id in task.solutions
    }
    try:
        return run_task(task, sources, work.extra)
    # KeyboardInterrupt, or what a student's code left behind in the machinery
    except BaseException as error:
        return failed(task, f"not graded: it ended the run with {type(error).__name__}")


def fair(outcome: Outcome, snapshot: Snapshot, task: Task) -> Outcome:
    """The outcome, unless the task changed what the checks rely on."""
    changed = snapshot.changed()
    return failed(task, f"not graded: it changes {', '.join(changed[:3])}") if changed else outcome


def use_package_of(found: dict[str, Work], names: tuple[str, ...], folder: Path) -> None:
    """Put a package in place of the reference's whose modules hold the student's solutions; refused
    ones stay stubs.
    """
    package = folder / "student" / "minillama"
    shutil.copytree(
        ROOT / "minillama",
        package,
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    for chapter in chapters(names):
        try:
            texts = build_modules(chapter.path, solved(chapter, found[chapter.path.name]))
        except ExportError:  # the task's own outcome says why
            no = 'raise ImportError("this module is no Python yet")\n'
            texts = dict.fromkeys(chapter.modules, no)
        for name, text in texts.items():
            if not by_hand(name):
                file_of(package, name).write_text(text, encoding="utf-8")
    for name in [
        name
        for name in sys.modules
        if name.partition(".")[0] == "minillama" or name == "course.cuda_on_cpu"
    ]:
        del sys.modules[name]
    sys.path.insert(0, str(folder / "student"))
    try:
        load_reference()
    except BaseException as error:
        print(f"the student's package cannot be imported: {error}", file=sys.stderr)


def solved(chapter: Chapter, work: Work) -> dict[str, str]:
    """A chapter's solution cells as the student's package gets them."""
    sources, theirs = {}, []
    for task in chapter.tasks:
        bad = refusal(task, work)
        for id in task.solutions:
            sources[id] = blank(chapter, id) if bad else work.sources[id]
            theirs += [id] if not bad and not work.untouched(chapter, id) else []
    return with_own(chapter, sources, work.extra, theirs)

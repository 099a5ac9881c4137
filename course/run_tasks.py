"""Run tasks: the checks of the notebooks on a student's cells, each in a namespace of its own.

Only the cells that a student is to write are taken from the student; the checks and all they need
come from the reference's notebook. Fetched weights are not used, so that the outcome is the same on
every machine.
"""

import ast
import contextlib
import copy
import linecache
import os
import random
import sys
import traceback
import types
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from course.tasks import Task


MISSING = "still missing"
STUDENT = "your cell"  # what a student's code is called in a traceback


@dataclass(frozen=True)
class Outcome:
    """How a task went: the points it earned, and one line that says what is wrong and where to
    reread.
    """

    task: str
    passed: bool
    points: int
    message: str = ""
    section: str = ""


def run_task(
    task: Task, sources: dict[str, str] | None = None, extra: str = "", folder: Path | None = None
) -> Outcome:
    """Run one task with `sources` (cell id -> text) in place of the reference's cells; never raises
    for what they do.

    extra: further definitions of the student's that the sources use. folder: where it runs, by
    default the task's.
    """
    theirs, folder = Theirs(), folder or task.chapter.path.parent
    try:
        with undisturbed(), scene(folder) as module:
            theirs.run(task, sources or {}, extra, vars(module))
        if theirs.changed and (changed := theirs.changed - changed_by_reference(task, folder)):
            return failed(
                task, f"your code changes `{min(changed)}`, which it was only given: work on a copy"
            )
    except SyntaxError as error:
        return failed(task, f"line {error.lineno}: {error.msg}" if error.lineno else str(error))
    except (Exception, SystemExit) as error:
        return failed(task, explain(error, theirs))
    return Outcome(task.id, True, task.points)


@lru_cache
def changed_by_reference(task: Task, folder: Path) -> frozenset:
    """The names whose values the reference's solution changes while it is checked, as a cache's
    `truncate` does.
    """
    theirs = Theirs()
    with undisturbed(), scene(folder) as module:
        theirs.run(task, task.reference, "", vars(module))
    return frozenset(theirs.changed)


class Theirs(dict):
    """The namespace of a student's code. What the reference's cells bind is copied into it, never
    the other way, except the names that the reference's solution binds too: so a `check` or `len`
    of the student's is for the student alone.
    """

    def run(self, task: Task, sources: dict[str, str], extra: str, ours: dict) -> None:
        """Run a task, the reference's cells in `ours`. `changed`: names whose values the student's
        code changed there.

        subtle: zeros in place of an input turn what is computed from it afterwards, the right
        answer, into zeros too.
        """
        self.update(ours)
        self.changed, own = set(), set()
        for step in task.program(sources, extra):
            text = {"extra": extra, **sources}.get(step.cell)
            name = (
                f"{task.chapter.path.name} {step.cell}"
                if text is None
                else f"{STUDENT} {step.cell}"
            )
            lines = (text or task.chapter[step.cell].source).splitlines(keepends=True)
            linecache.cache[name] = (None, None, lines, name)  # what a traceback shows
            code = compile(ast.Module([step.node], []), name, "exec")
            if text is None:
                before = {name: contents(value) for name, value in ours.items()} if own else {}
                exec(code, ours)
                free = own | step.binds | step.changes
                self.changed |= {
                    name
                    for name in before
                    if name not in free and contents(ours.get(name)) != before[name]
                }
                self.update({name: ours[name] for name in step.binds - own if name in ours})
            else:
                exec(code, self)
                own |= step.binds
                given = task.chapter.names(step.cell) if step.cell != "extra" else frozenset()
                ours.update({name: self[name] for name in step.binds & given if name in self})

    def missing(self) -> str | None:
        """A name that is still as it was assigned: `answer = ...`."""
        return next((name for name, value in self.items() if value is Ellipsis), None)


def contents(value, depth: int = 3):
    """What a tensor, an array, a module or a container of them holds, in short; None for other
    things.
    """
    if (
        isinstance(value, torch.Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
    ):
        value = (
            torch.view_as_real(value.detach().resolve_conj())
            if value.is_complex()
            else value.detach()
        )
        return zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    if isinstance(value, torch.nn.Module):
        return [contents(tensor) for tensor in (*value.parameters(), *value.buffers())]
    if depth and type(value) in (list, tuple, dict):
        return [
            contents(each, depth - 1) for each in (value.values() if type(value) is dict else value)
        ]
    return value if type(value) in (int, float, str, bytes, bool) else None


def failed(task: Task, message: str) -> Outcome:
    return Outcome(task.id, False, 0, message, task.section)


def explain(error: BaseException, theirs: Theirs) -> str:
    """One line: the check's own words, or the student's line that went wrong."""
    words = " ".join(str(error)[:500].split())
    if isinstance(error, NotImplementedError):
        return f"{words or 'the exercise'} is {MISSING}"
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if frame.filename.startswith(STUDENT)]
    if isinstance(error, AssertionError) and not (mine and frames[-1] is mine[-1]):
        return words or f"`{frames[-1].line or 'an assertion'}` does not hold"
    if name := theirs.missing():
        return f"`{name}` is {MISSING}"
    kind = type(error).__name__ + (f": {words}" if words else "")
    return f"line {mine[-1].lineno} of {STUDENT}, `{mine[-1].line}`: {kind}" if mine else kind


@contextlib.contextmanager
def scene(notebooks: Path):
    """The notebook's namespace, in the notebook's folder, without fetched weights or output."""
    from minillama.checkpoints import (
        hub,  # not above, where a student's package that cannot be imported would end everything
    )

    module = types.ModuleType("notebook")
    folder, path = os.getcwd(), sys.path[:]
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            with patch.object(hub, "find", lambda name: None):
                try:
                    os.chdir(notebooks)
                    sys.path.insert(0, os.getcwd())
                    sys.modules["notebook"] = module  # dataclasses look their module up
                    yield module
                finally:
                    os.chdir(folder)
                    sys.path[:] = path
                    sys.modules.pop("notebook", None)


@contextlib.contextmanager
def undisturbed():
    """Put back afterwards what one task could leave behind for the next: settings, seeds, the
    package's tables.
    """
    grad, dtype, printing = (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch._tensor_str.PRINT_OPTS,
    )
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    printing, tables = copy.copy(printing), snapshot()
    try:
        torch.manual_seed(0)
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch._tensor_str.PRINT_OPTS = printing
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        restore(tables)


def snapshot() -> list[tuple]:
    """(owner, its attributes, copies of those that are tables) for the package's modules and their
    classes.
    """
    modules = [
        module
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] in ("minillama", "course")
    ]
    classes = {
        value
        for m in modules
        for value in vars(m).values()
        if isinstance(value, type) and value.__module__ == m.__name__
    }
    tables = []
    for owner in (*modules, *classes):
        kept = dict(vars(owner))
        copies = {
            name: copy.copy(value)
            for name, value in kept.items()
            if type(value) in (dict, list, set) and name[:2] != "__"
        }
        tables.append((owner, kept, copies))
    return tables


def restore(tables: list[tuple]) -> None:
    """Undo what was assigned, added or put into a table since the snapshot."""
    for owner, kept, copies in tables:
        for name in [
            name for name in vars(owner) if name not in kept and name[:2] != "__"
        ]:  # those are torch.compile's
            delattr(owner, name)
        for name, value in kept.items():
            if vars(owner).get(name) is not value:
                setattr(owner, name, value)
        for name, value in copies.items():
            if kept[name] != value:
                kept[name].clear()
                (kept[name].extend if isinstance(value, list) else kept[name].update)(value)

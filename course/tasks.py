"""The tasks of the course, found in the notebooks: what a student writes, and the cells that check
it.

A task is a cell with `# BEGIN SOLUTION` (or, in an exercise, all of them) and the cells behind it
that assert something about what it defines. Names and points follow from the text; course/points.py
writes them into the metadata.
"""

import ast
import json
import re
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import nbformat

from course.export import DIRECTIVE, MARKER, ROOT
from course.slices import Statement, is_check, needed, statements, whole


EXERCISE = re.compile(r"^### Exercise (\w+\.(\d+)): (.+)$", re.MULTILINE)
HEADING = re.compile(r"^#{1,3} .+$", re.MULTILINE)
POINTS_EXERCISE, POINTS_DEFINITION = 2, 3
BEGIN = "# BEGIN SOLUTION"
DEFINITION = (ast.FunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Cell:
    """A code cell, with the headings above it."""

    id: str
    source: str
    section: str  # the nearest `##` heading
    heading: str  # the nearest heading
    exercise: tuple[str, str, str] | None  # ("3.5", "5", "Llama 3.2") below such a heading
    grade_id: str = field(compare=False)  # its name in nbgrader's metadata


@dataclass(frozen=True)
class Task:
    """What a student is to write, and how it is checked. Cells are named by their ids."""

    id: str
    title: str
    points: int
    section: str  # where to reread
    solutions: tuple[str, ...]
    checks: tuple[str, ...]
    chapter: "Chapter" = field(repr=False, compare=False)

    def listed(self) -> dict:
        """Itself as an assignment's metadata names it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "chapter"}

    @property
    def reference(self) -> dict[str, str]:
        """The reference's solution cells: id -> source."""
        return {id: self.chapter[id].source for id in self.solutions}

    def program(self, sources: dict[str, str] | None = None, extra: str = "") -> list[Statement]:
        """The statements to run, in order: the checks and what they need, with `sources` in place
        of those cells.

        extra: definitions of the student's own, which count as if they stood before the first
        solution. SyntaxError.
        """
        steps = self.chapter.steps(
            (*self.solutions, *self.checks), sources or {}, self.solutions[0], extra
        )
        own = [place for place, step in enumerate(steps) if step.cell in self.solutions]
        asserts = [place for place, step in enumerate(steps) if step.cell in self.checks]
        roots = own + [place for place in asserts if not needs_weights(steps, place)]
        return [steps[place] for place in sorted(needed(steps, roots))]


class Chapter:
    """A notebook's code cells and tasks."""

    def __init__(self, path: Path):
        self.path, self.cells, exercise = path, [], None
        # validating would take seconds
        notebook = nbformat.from_dict(json.loads(path.read_text(encoding="utf-8")))
        # in an assignment, whose solutions are gone
        self.listed = notebook.metadata.get("course", {}).get("tasks")
        self.title = section = heading = (
            "".join(notebook.cells[0].source).split("\n")[0].lstrip("# ")
        )
        for cell in notebook.cells:
            cell.source = "".join(cell.source)
            if cell.cell_type == "code" and "colab" not in cell.metadata.get("tags", []):
                name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
                self.cells.append(Cell(cell.id, cell.source, section, heading, exercise, name))
            for line in HEADING.findall(cell.source) if cell.cell_type == "markdown" else ():
                heading, found = line.lstrip("# "), EXERCISE.match(line)
                section = heading if line.startswith("## ") else section
                exercise = found.groups() if found else None
        said = {
            word: value for cell in self.cells for word, value in DIRECTIVE.findall(cell.source)
        }
        self.module = said.get("default_exp", path.stem)
        # that its tasks' names begin with
        self.name = said.get("tasks", self.module.rpartition(".")[2])
        said = [pair for cell in self.cells for pair in DIRECTIVE.findall(cell.source)]
        exported = [value or self.module for word, value in said if word == "export"]
        # that the notebook writes, its own first; chapter 20 writes none
        self.modules = sorted(dict.fromkeys(exported), key=lambda name: name != self.module)
        self.place = {cell.id: place for place, cell in enumerate(self.cells)}

    def __getitem__(self, id: str) -> Cell:
        return self.cells[self.place[id]]

    def names(self, id: str) -> frozenset:
        """The names that a cell binds."""
        return frozenset().union(*(step.binds for step in statements(id, self[id].source, True)))

    @cached_property
    def solutions(self) -> dict[str, str]:
        """All cells that a student is to write: id -> source."""
        return {id: self[id].source for task in self.tasks for id in task.solutions}

    @cached_property
    def tasks(self) -> list[Task]:
        """In the notebook's order. ValueError for a solution that nothing checks."""
        if self.listed is not None:
            return [
                Task(
                    **{k: tuple(v) if isinstance(v, list) else v for k, v in t.items()},
                    chapter=self,
                )
                for t in self.listed
            ]
        groups: dict[object, list[Cell]] = {}
        for cell in self.cells:
            if BEGIN in cell.source:
                groups.setdefault(cell.exercise or cell.id, []).append(cell)
        return [self.task(cells) for cells in groups.values()]

    @cached_property
    def definitions(self) -> list[Task]:
        """The tasks that write the module."""
        return [task for task in self.tasks if any(self.exports(id) for id in task.solutions)]

    def exports(self, id: str) -> str | None:
        """The module that a cell goes into, None if it stays in the notebook."""
        said = dict(DIRECTIVE.findall(self[id].source))
        return said["export"] or self.module if "export" in said else None

    @cached_property
    def waiting(self) -> frozenset[str]:
        """The cells that need a solution: they use what it binds, or what a cell binds that stops
        for want of it.
        """
        steps = [step for cell in self.cells for step in whole(cell.id, cell.source)]
        theirs = {
            place
            for place, step in enumerate(steps)
            if holds_solution(self[step.cell].source, step.node)
        }
        late: set[int] = set()
        for place, step in enumerate(steps):
            stopped = place - 1 in late and steps[place - 1].cell == step.cell
            runs = place not in theirs and not isinstance(step.node, DEFINITION)
            if stopped or (runs and needed(steps, [place]) & (theirs | late)):
                late.add(place)
        return frozenset(steps[place].cell for place in late)

    def task(self, cells: list[Cell]) -> Task:
        first, ids = cells[0], tuple(cell.id for cell in cells)
        number, last, title = first.exercise or ("", "", "")
        name = f"ex{last}" if number else definition(cells[-1].source)
        checks = self.checks(ids, bool(number))
        points = POINTS_EXERCISE if number else POINTS_DEFINITION
        title = f"Exercise {number}: {title}" if number else f"`{name}`"
        return Task(
            f"{self.name}-{name}",
            title,
            points,
            self.reread(ids, checks, bool(number)),
            ids,
            checks,
            self,
        )

    def checks(self, solutions: tuple[str, ...], is_exercise: bool) -> tuple[str, ...]:
        """Ids of the cells that assert something about a solution; those of the first section that
        has any.
        """
        found, solved = [], set(solutions)
        for cell in self.cells[self.place[solutions[0]] + 1 :]:
            if cell.id in solved:
                continue
            if found and (cell.heading != self[found[-1]].heading or BEGIN in cell.source):
                break
            if is_exercise and cell.exercise != self[solutions[0]].exercise:
                break
            if self.asserts(cell, solved):
                found.append(cell.id)
        if not found:
            raise ValueError(
                f"{self.path.name}: nothing checks the solution in cell {solutions[0]} without the "
                f"real weights"
            )
        return tuple(found)

    def steps(self, whole, sources=None, first=None, extra="") -> list[Statement]:
        """All statements up to the last of the cells `whole`, which alone keep what they assert."""
        sources, steps, last = sources or {}, [], max(self.place[id] for id in whole)
        for cell in self.cells[: last + 1]:
            if extra and cell.id == first:
                steps += [replace(step, certain=False) for step in statements("extra", extra, True)]
            new = statements(cell.id, sources.get(cell.id, cell.source), cell.id in whole)
            if (
                cell.id in sources
                # the student's own names are for the student: the checks have them from elsewhere
            ):
                new = [
                    step if step.binds <= self.names(cell.id) else replace(step, certain=False)
                    for step in new
                ]
            steps += new
        return without_weights(steps)

    def asserts(self, cell: Cell, solved: set[str]) -> bool:
        """Whether what a cell asserts needs one of these solutions, and not the fetched weights."""
        if not any(is_check(node) for node in ast.walk(ast.parse(cell.source))):
            return False
        steps = self.steps([cell.id])
        for place, step in enumerate(steps):
            if (
                step.cell == cell.id
                and any(map(is_check, ast.walk(step.node)))
                and not needs_weights(steps, place)
            ):
                if solved & {steps[p].cell for p in needed(steps, [place])}:
                    return True
        return False

    def reread(self, solutions, checks, is_exercise) -> str:
        """The heading of what a solution rests on: a definition's section; for an exercise the last
        that it uses.
        """
        own = self[solutions[0]].section
        if not is_exercise:
            return own
        steps = self.steps((*solutions, *checks))
        roots = [p for p, step in enumerate(steps) if step.cell in (*solutions, *checks)]
        ideas = [
            steps[p].cell
            for p in sorted(needed(steps, roots))
            if isinstance(steps[p].node, DEFINITION)
        ]
        used = [self[cell].section for cell in ideas]
        return ([section for section in used if section != own] or [self.title])[-1]


def needs_weights(steps: list[Statement], place: int) -> bool:
    """Whether a statement rests on one that loads fetched files and cannot do without."""
    return any(loads_weights(steps[p].node) for p in needed(steps, [place]))


def loads_weights(node: ast.stmt) -> bool:
    """Whether a statement loads fetched weights by name, here or not:
    `load("smollm2-135m-instruct")`.
    """
    return any(
        isinstance(call, ast.Call)
        and ast.unparse(call.func) in ("load", "hub.load", "minillama.load")
        and isinstance(call.args[0], ast.Constant)
        for call in ast.walk(node)
    )


def without_weights(steps: list[Statement]) -> list[Statement]:
    """Statements without those that do nothing where no weights are: `if real: ...`."""
    absent, kept = set(), []  # names that are None, or False, then
    for step in steps:
        if "hub.find(" in step.text or ("bool(" in step.text and step.now & absent):
            absent |= step.binds
        if not (isinstance(step.node, ast.If) and demands(step.node.test, absent)):
            kept.append(step)
    return kept


def demands(test: ast.expr, names: set[str]) -> bool:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(demands(value, names) for value in test.values)
    return isinstance(test, ast.Name) and test.id in names


def holds_solution(source: str, node: ast.stmt) -> bool:
    """Whether a solution lies within a statement of a cell, or the statement within a solution."""
    pairs = zip(
        *[iter(n for n, line in enumerate(source.split("\n"), 1) if MARKER.fullmatch(line))] * 2,
        strict=True,
    )
    return any(first <= node.end_lineno and node.lineno <= last for first, last in pairs)


def definition(source: str) -> str:
    """The name of the last definition that holds a solution."""
    lines = source.split("\n")
    marked = [number for number, line in enumerate(lines, 1) if line.strip() == BEGIN]
    body = ast.parse(source).body
    names = [
        getattr(node, "name", None)
        for node in body
        if any(node.lineno <= n <= node.end_lineno for n in marked)
    ]
    return next((name for name in reversed(names) if name), "answer")


def tasks_of(notebook: Path) -> list[Task]:
    """The tasks of one notebook."""
    return Chapter(Path(notebook)).tasks


def all_tasks(folder: Path = ROOT / "notebooks") -> list[Task]:
    """The tasks of the series."""
    return [task for path in sorted(Path(folder).glob("*.ipynb")) for task in tasks_of(path)]

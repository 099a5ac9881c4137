"""A student's cells, out of a notebook in whatever state: cells twice or gone, merge markers, no
JSON.
"""

import ast
import builtins
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from course.stubs import stub
from course.tasks import Chapter


LARGEST = 20_000_000  # bytes of a notebook
CONFLICT = re.compile(
    r"^<{7}.*\n((?:.*\n)*?)(?:\|{7}.*\n(?:.*\n)*?)?={7}.*\n((?:.*\n)*?)>{7}.*\n?", re.MULTILINE
)
BINDS = re.compile(r"^(?:(?:def|class) +(\w+)|(\w+)(?: *, *\w+)* *(?::.*)?=)", re.MULTILINE)


@dataclass
class Work:
    """What a student wrote in one chapter: solution cells by the reference's ids, own definitions,
    and what was odd.
    """

    sources: dict[str, str]
    extra: str = ""
    notes: list[str] = field(default_factory=list)

    def untouched(self, chapter: Chapter, id: str) -> bool:
        """Whether a cell is as it was handed out, or gone."""
        return self.sources[id].strip() == blank(chapter, id).strip()


@dataclass(frozen=True)
class Found:
    """A code cell of a student's notebook."""

    id: str
    grade_id: str
    source: str

    @property
    def names(self) -> set[str]:
        return {name for match in BINDS.findall(self.source) for name in match if name}


def blank(chapter: Chapter, id: str) -> str:
    """A solution cell of the reference as it is handed out."""
    task = next(task for task in chapter.tasks if id in task.solutions)
    rest = chapter.cells[chapter.place[id] :]
    used = {
        name
        for cell in rest
        for name in re.findall(r"\w+", cell.source if cell.id in task.checks else "")
    }
    return stub(chapter[id].source, task.title.replace("`", ""), frozenset(used))


def read_cells(path: Path) -> tuple[list[Found], list[str]]:
    """The code cells of a notebook, and what is wrong with the file; never raises for what is in
    it.
    """
    notes = []
    try:
        if path.stat().st_size > LARGEST:
            return [], [f"{path.name} has more than {LARGEST // 1_000_000} MB: clear its outputs"]
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        return [], [f"{path.name} cannot be read: {error.strerror}"]
    if CONFLICT.search(text):
        notes.append(
            f"{path.name} has merge markers: its first version was taken wherever there are two"
        )
    for version in (text, CONFLICT.sub(r"\1", text), CONFLICT.sub(r"\2", text)):
        try:
            cells = json.loads(version)["cells"]
            return [found for cell in cells if (found := code_cell(cell))], notes
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return [], [f"{path.name} is not a notebook: not JSON, or without cells"]


def code_cell(cell: dict) -> Found | None:
    """A cell of the file, if it holds code."""
    source = cell.get("source", "")
    source = "".join(map(str, source)) if isinstance(source, list) else str(source)
    metadata = cell.get("metadata") if isinstance(cell.get("metadata"), dict) else {}
    grader = metadata.get("nbgrader") if isinstance(metadata.get("nbgrader"), dict) else {}
    if cell.get("cell_type") != "code" or not source.strip() or cell.get("id") == "colab":
        return None  # the cell for Colab is not the student's, and does nothing here
    return Found(str(cell.get("id", "")), str(grader.get("grade_id", "")), source)


def collect(path: Path, chapter: Chapter) -> Work:
    """Match a student's cells with a chapter's: by cell ids, by nbgrader's names, and by what they
    define.
    """
    cells, notes = read_cells(path)
    work, used = Work({}, notes=notes), set()
    for task in chapter.tasks:
        for id in task.solutions:
            empty, matches = blank(chapter, id), candidates(cells, chapter, id)
            filled = [cell for cell in matches if cell.source.strip() != empty.strip()]
            if len(filled) > 1 and len({cell.source for cell in filled}) > 1:
                work.notes.append(
                    f"{task.title}: {len(filled)} cells hold an answer; the last one counts"
                )
            if not matches and cells:
                work.notes.append(f"{task.title}: its cell is gone")
            used |= set(map(id_of, matches))
            work.sources[id] = filled[-1].source if filled else empty
    work.extra = own_definitions([cell for cell in cells if id_of(cell) not in used], chapter)
    return work


id_of = id  # subtle: cells are told apart as objects, since their contents may be equal


def candidates(cells: list[Found], chapter: Chapter, id: str) -> list[Found]:
    """A student's cells that may hold the answer to one of the reference's, in the notebook's
    order.
    """
    grade_id, names = chapter[id].grade_id, chapter.names(id)
    by_id = [cell for cell in cells if cell.id == id]
    strange = [cell for cell in cells if cell.id not in chapter.place]  # copied, or ids were lost
    by_grade = [cell for cell in strange if grade_id and cell.grade_id == grade_id]
    nameless = [cell for cell in strange if not cell.grade_id]
    by_name = [cell for cell in nameless if cell.names & names & defined_once(chapter, id)]
    chosen = by_id + by_grade
    # half of a cell that was split has its names
    chosen = [cell for cell in chosen if cell.names & names] or chosen
    return [cell for cell in cells if any(cell is other for other in (*chosen, *by_name))]


def defined_once(chapter: Chapter, id: str) -> set[str]:
    """The names of a solution cell that no other cell of the chapter binds, so that they betray
    it.
    """
    others = set().union(*(chapter.names(cell.id) for cell in chapter.cells if cell.id != id))
    return set(chapter.names(id)) - others


def own_definitions(cells: list[Found], chapter: Chapter) -> str:
    """Functions, classes and imports with names that neither the chapter nor Python has, and
    constants of new cells.
    """
    taken, kept = set(dir(builtins)), []
    taken |= set().union(*(chapter.names(cell.id) for cell in chapter.cells))
    for cell in cells:
        try:
            body = ast.parse(cell.source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
        kinds += () if cell.id in chapter.place else (ast.Assign,)
        for node in body:
            names = bound(node)
            if isinstance(node, kinds) and names and not names & taken:
                kept.append(text_of(cell.source, node))
    return "\n\n\n".join(kept)


def text_of(source: str, node: ast.stmt) -> str:
    """A statement as it is written, decorators included."""
    if above := getattr(node, "decorator_list", []):
        return "\n".join(source.splitlines()[above[0].lineno - 1 : node.end_lineno])
    return ast.get_source_segment(source, node) or ast.unparse(node)


def with_own(chapter: Chapter, sources: dict[str, str], extra: str, at) -> dict[str, str]:
    """Solution cells with a student's own definitions before them.

    In each module that uses them they stand before the first of the cells `at`; those that no
    module uses stand before the first of all.
    """
    own = [(bound(node), text_of(extra, node)) for node in ast.parse(extra).body]
    first, picked = {}, {}
    for id in at:
        if module := chapter.exports(id):
            first.setdefault(module, id)
    for module in first:
        cells = [cell for cell in chapter.cells if chapter.exports(cell.id) == module]
        texts, picked[module] = [sources.get(cell.id, cell.source) for cell in cells], set()
        while texts:
            words = set(re.findall(r"\w+", "\n".join(texts)))
            new = {n for n, (names, _) in enumerate(own) if names & words} - picked[module]
            picked[module], texts = picked[module] | new, [own[n][1] for n in new]
    if first:
        unused = set(range(len(own))).difference(*picked.values())
        picked[next(iter(first))] |= unused
    return sources | {
        id: "\n\n\n".join([*(own[n][1] for n in sorted(picked[module])), sources[id]])
        for module, id in first.items()
    }


def bound(node: ast.stmt) -> set[str]:
    """The names that a definition, an import or an assignment binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return {
        name.id
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }

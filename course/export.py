"""Write the package's modules from the notebooks, or check that they are up to date.

python -m course.export            write minillama/ from notebooks/*.ipynb
python -m course.export --check    change nothing; exit 1 if a module is stale, missing or orphaned

A notebook names its module once with `#| default_exp NAME`, in a room with `#| default_exp
ROOM.NAME`; cells that start with `#| export` go into it. Everything else in the notebook stays
there. `#| tasks NAME` names its tasks, if not as the module.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

import nbformat

from course.whole import write_whole


ROOT = Path(__file__).resolve().parent.parent
HAND_WRITTEN = {
    "__main__",
    "chat_formats",
    "cli",
    "evaluation.harness",
    "evaluation.runs",
    "inference.loading",
    "training.adapters",
    "training.jsonl",
    "training.runs",
}
HAND_WRITTEN |= {
    f"checkpoints.{name}"
    for name in "atomic formats hub repository verify verify_checks verify_references".split()
}
DIRECTIVE = re.compile(r"^#\| *(\w+) *(.*?) *$\n?", re.MULTILINE)
MARKER = re.compile(r" *# (BEGIN|END) (SOLUTION|HIDDEN TESTS)")
LIKE_MARKER = re.compile(r"\s*#.*\b(BEGIN|END)\W+(SOLUTION|HIDDEN)", re.IGNORECASE)


def by_hand(name: str) -> bool:
    """Whether no notebook writes this module: rooms' own files, the commands, and HAND_WRITTEN."""
    return (
        name in HAND_WRITTEN
        or name.startswith("commands.")
        or name.rpartition(".")[2] == "__init__"
    )


def file_of(package: Path, name: str) -> Path:
    """Where a module lies: `training.runs` is training/runs.py."""
    return package.joinpath(*name.split(".")).with_suffix(".py")


def modules_in(package: Path) -> dict[str, Path]:
    """Module name -> file, of all that lie in a package's folder."""
    files = sorted(package.rglob("*.py"))
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in files}


class ExportError(Exception):
    """A notebook that cannot be exported; the message names it and says what to do."""


def strip_markers(source: str, where: str) -> str:
    """`source` without solution markers, which must be spelled exactly, come in pairs and not
    nest.
    """
    kept, open_kind = [], None
    for line in source.split("\n"):
        if marker := MARKER.fullmatch(line):
            edge, kind = marker.groups()
            if (edge == "BEGIN") == (open_kind is not None) or (
                edge == "END" and kind != open_kind
            ):
                raise ExportError(
                    f"{where}: {edge} {kind} does not pair up; give every BEGIN its END"
                )
            open_kind = kind if edge == "BEGIN" else None
        elif LIKE_MARKER.match(line):
            raise ExportError(
                f"{where}: `{line.strip()}` is nearly a marker; write `# BEGIN SOLUTION`, one hash"
            )
        else:
            kept.append(line)
    if open_kind:
        raise ExportError(f"{where}: BEGIN {open_kind} is never closed; add END {open_kind}")
    return "\n".join(kept)


def split_imports(source: str, where: str) -> tuple[list[ast.stmt], str]:
    """The top-level imports of a cell and the rest of its text."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        line = (error.text or "").strip()
        hint = (
            "move the magic out of the export cell"
            if line[:1] in ("%", "!")
            else "repair it and run the cell"
        )
        raise ExportError(f"{where}: `{line}` is not Python ({error.msg}); {hint}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ExportError(
                f"{where}: relative import of {node.module or '.'}; write "
                f"minillama.{node.module or ''}"
            )
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    gone = {number for node in imports for number in range(node.lineno, node.end_lineno + 1)}
    if any({node.lineno, node.end_lineno} & gone for node in tree.body if node not in imports):
        raise ExportError(
            f"{where}: an import shares its line with other code; give it a line of its own"
        )
    rest = (line for number, line in enumerate(source.split("\n"), 1) if number not in gone)
    return imports, "\n".join(rest).strip("\n")


def merge_imports(imports: list[ast.stmt]) -> str:
    """Deduplicated import lines, grouped and sorted as ruff does: standard library, other packages,
    minillama.
    """
    plain, names = set(), {}
    for node in imports:
        for alias in node.names:
            if isinstance(node, ast.Import):
                plain.add(ast.unparse(alias))
            else:
                names.setdefault(node.module, set()).add(ast.unparse(alias))
    lines = [(name, f"import {name}") for name in sorted(plain, key=str.lower)]
    for module in sorted(names, key=str.lower):
        ordered = sorted(
            names[module], key=lambda n: (not (n.isupper() and len(n) > 1), not n[0].isupper(), n)
        )
        line = f"from {module} import {', '.join(ordered)}"
        wrapped = f"from {module} import (\n    " + ",\n    ".join(ordered) + ",\n)"
        lines.append((module, line if len(line) <= 100 else wrapped))
    groups = [[], [], []]
    for module, line in lines:
        package = re.split(r"\W", module)[0]
        groups[2 if package == "minillama" else package not in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(group) for group in groups if group)


def build_module(path: Path, sources: dict[str, str] | None = None) -> tuple[str | None, str]:
    """(name, text) of a notebook's module, or of the first of several; None if it has none."""
    return next(iter(build_modules(path, sources).items()), (None, ""))


def build_modules(path: Path, sources: dict[str, str] | None = None) -> dict[str, str]:
    """Module name -> text, of all modules that a notebook writes; its `default_exp` comes first.

    sources: cell id -> text in place of the cell's own; whether it is exported is the notebook's to
    say. Imports go where their names are used; names of a module that another of the same notebook
    uses, or lists in its `__all__`, are imported there.
    """
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise ExportError(
            f"{path.name}: not a notebook ({type(error).__name__}); restore it from git"
        ) from None
    sources, names, exported, imports, bodies = sources or {}, [], 0, [], {}
    for number, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        where, found = f"{path.name}, cell {number}", DIRECTIVE.findall(cell.source)
        source = strip_markers(DIRECTIVE.sub("", sources.get(cell.get("id"), cell.source)), where)
        names += [value for word, value in found if word == "default_exp"]
        for module in (value for word, value in found if word == "export"):
            exported += bool(source.strip())
            cell_imports, body = split_imports(source, where)
            imports += cell_imports
            bodies.setdefault(module, []).extend([body] if body else [])
    if len(names) != bool(exported):
        raise ExportError(
            f"{path.name}: {exported} export cells, {len(names)} default_exp lines; it needs "
            f"exactly one"
        )
    if not names:
        return {}
    named = {names[0]: bodies.pop("", [])} | bodies
    for name in named:
        if not all(part.isidentifier() for part in name.split(".")) or by_hand(name):
            raise ExportError(
                f"{path.name}: cannot export to {name!r}; default_exp takes a new module's name"
            )
    first = docstring(cells, path)
    if len(named) == 1:
        return {names[0]: put_together(first, imports, named[names[0]])}
    among = imports_among(named, path.name)
    return {
        name: put_together(first, used(imports, body) + among[name], body)
        for name, body in named.items()
    }


def put_together(first: str, imports: list[ast.stmt], bodies: list[str]) -> str:
    """A module's text from its docstring, imports and definitions."""
    parts = [merge_imports(imports)] * bool(imports) + bodies
    gap = "\n\n\n" if re.match(r"def |class |@", parts[0]) else "\n\n"
    return first + gap + "\n\n\n".join(part.rstrip() for part in parts) + "\n"


def mentioned(bodies: list[str]) -> set[str]:
    """The names that a module's text uses or lists in its `__all__`, without those that a
    definition binds for itself.
    """
    found = set()
    for statement in ast.parse("\n".join(bodies)).body:
        nodes = list(ast.walk(statement))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        if "__all__" in names:
            names = {node.value for node in nodes if isinstance(node, ast.Constant)}
        if isinstance(statement, ast.FunctionDef):
            names -= {node.arg for node in nodes if isinstance(node, ast.arg)}
            names -= {
                node.id
                for node in nodes
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
        found |= names
    return found


def used(imports: list[ast.stmt], bodies: list[str]) -> list[ast.stmt]:
    """The imports, of which each keeps the names that a module uses."""
    names, kept = mentioned(bodies), []
    for node in imports:
        found = [a for a in node.names if (a.asname or a.name.partition(".")[0]) in names]
        if found:
            kept.append(
                ast.Import(found)
                if isinstance(node, ast.Import)
                else ast.ImportFrom(node.module, found, 0)
            )
    return kept


def imports_among(named: dict[str, list[str]], notebook: str) -> dict[str, list[ast.stmt]]:
    """What each of a notebook's modules imports from the others. ExportError if in a ring."""
    owner, own = {}, {name: set() for name in named}
    for name, body in named.items():
        for node in ast.parse("\n".join(body)).body:
            targets = [node.name] if hasattr(node, "name") else []
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = [
                    n.id
                    for n in ast.walk(node)
                    if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
                ]
            owner |= dict.fromkeys(targets, name)
            own[name] |= set(targets)
    needs = {
        name: {each for each in mentioned(body) - own[name] if each in owner}
        for name, body in named.items()
    }
    for name, wanted in needs.items():
        for other in {owner[each] for each in wanted}:
            if any(owner[each] == name for each in needs[other]):
                raise ExportError(
                    f"{notebook}: {name} and {other} need each other; move a definition"
                )
    return {
        name: [
            ast.ImportFrom(f"minillama.{owner[each]}", [ast.alias(each)], 0)
            for each in sorted(wanted)
        ]
        for name, wanted in needs.items()
    }


def docstring(cells, path: Path) -> str:
    """The module's docstring: the notebook's title and where to edit it."""
    titles = (
        re.match(r"# (?:\d+\. )?(.+)", cell.source)
        for cell in cells
        if cell.cell_type == "markdown"
    )
    title = next((match[1] for match in titles if match), path.stem)
    end = "" if title.endswith("?") else "."
    return f'"""{title.rstrip(".")}{end}\n\nWritten by notebooks/{path.name}: edit it there.\n"""'


def build_all(notebooks: Path) -> dict[str, str]:
    """Module name -> text for every notebook in the folder that exports something."""
    modules, owner = {}, {}
    for path in sorted(notebooks.glob("*.ipynb")):
        for name, text in build_modules(path).items():
            if name in owner:
                raise ExportError(
                    f"{path.name} and {owner[name]} both claim {name}; rename one default_exp"
                )
            modules[name], owner[name] = text, path.name
    if not modules:
        raise ExportError(f"no notebook in {notebooks} exports anything")
    return modules


def write_all(modules: dict[str, str], package: Path) -> None:
    """Write every module: all or, if the disk is full, none."""
    write_whole({file_of(package, name): text for name, text in modules.items()})


def problems(modules: dict[str, str], package: Path) -> list[str]:
    """What differs between the notebooks' modules and the package on disk."""
    fix = "run: python -m course.export"
    found = []
    for name, text in modules.items():
        path = file_of(package, name)
        if not path.exists():
            found.append(f"{name} is missing; {fix}")
        elif path.read_text(encoding="utf-8") != text:
            found.append(f"{name} is stale: it differs from its notebook; {fix}")
    for name in modules_in(package):
        if name not in modules and not by_hand(name):
            found.append(
                f"{name} is orphaned: no notebook exports it; delete it or write its notebook"
            )
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if anything is out of date"
    )
    parser.add_argument(
        "--notebooks", type=Path, default=ROOT / "notebooks", help="folder of notebooks"
    )
    parser.add_argument(
        "--package", type=Path, default=ROOT / "minillama", help="folder of modules"
    )
    args = parser.parse_args(argv)
    try:
        modules = build_all(args.notebooks)
        if not args.check:
            write_all(modules, args.package)
    except (ExportError, OSError) as error:
        print(f"course.export: {error}", file=sys.stderr)
        return 2
    found = problems(modules, args.package)
    print("\n".join(found) or f"{len(modules)} modules match their notebooks")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

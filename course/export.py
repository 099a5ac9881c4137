"""Write the package's modules from the notebooks, or check that they are up to date.

python -m course.export            write minillama/*.py from notebooks/*.ipynb
python -m course.export --check    change nothing; exit 1 if a module is stale, missing or orphaned

A notebook names its module once with `#| default_exp NAME`; cells that start with `#| export`
go into it. Everything else in the notebook stays there.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

import nbformat


ROOT = Path(__file__).resolve().parent.parent
HAND_WRITTEN = {"__init__", "__main__", "cli", "hub"}
DIRECTIVE = re.compile(r"^#\| *(\w+) *(\S*)", re.MULTILINE)
MARKER = re.compile(r"^ *#+ *(BEGIN|END) (SOLUTION|HIDDEN TESTS) *$")


class ExportError(Exception):
    """A notebook that cannot be exported; the message names it and says what to do."""


def strip_markers(source: str, where: str) -> str:
    """`source` without solution markers, which must come in pairs and must not nest."""
    kept, open_kind = [], None
    for line in source.splitlines():
        if marker := MARKER.match(line):
            edge, kind = marker.groups()
            if (edge == "BEGIN") == (open_kind is not None) or (edge == "END" and kind != open_kind):
                raise ExportError(f"{where}: {edge} {kind} does not pair up; give every BEGIN its END")
            open_kind = kind if edge == "BEGIN" else None
        else:
            kept.append(line)
    if open_kind:
        raise ExportError(f"{where}: BEGIN {open_kind} is never closed; add END {open_kind}")
    return "\n".join(kept)


def split_imports(source: str, where: str) -> tuple[list[str], str]:
    """The top-level imports of a cell, one line each, and the rest of its text."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        line = (error.text or "").strip()
        hint = "move the magic out of the export cell" if line[:1] in ("%", "!") else "repair it and run the cell"
        raise ExportError(f"{where}: `{line}` is not Python ({error.msg}); {hint}") from None
    lines, imports = source.splitlines(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ExportError(f"{where}: relative import of {node.module or '.'}; write minillama.{node.module or ''}")
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(ast.unparse(node))
            lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    return imports, "\n".join(line for line in lines if line is not None).strip("\n")


def merge_imports(imports: list[str]) -> str:
    """Deduplicated import lines in three groups: standard library, other packages, minillama."""
    plain, names = set(), {}
    for node in ast.parse("\n".join(imports)).body:
        for alias in node.names:
            spelled = alias.name + (f" as {alias.asname}" if alias.asname else "")
            if isinstance(node, ast.Import):
                plain.add(spelled)
            else:
                names.setdefault(node.module, set()).add(spelled)
    lines = [(name.split(".")[0], 0, f"import {name}") for name in plain]
    for module, wanted in names.items():
        ordered = sorted(wanted, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
        lines.append((module.split(".")[0], 1, f"from {module} import {', '.join(ordered)}"))
    groups = {0: [], 1: [], 2: []}
    for package, _, line in sorted(lines, key=lambda item: (item[1], item[2])):
        groups[0 if package in sys.stdlib_module_names else 2 if package == "minillama" else 1].append(line)
    return "\n\n".join("\n".join(group) for group in groups.values() if group)


def build_module(path: Path) -> tuple[str | None, str]:
    """(module name, module text) of one notebook; the name is None if it exports nothing."""
    cells = nbformat.read(path, as_version=4).cells
    title = next((m[1] for c in cells if c.cell_type == "markdown" and (m := re.match(r"# (?:\d+\. )?(.+)", c.source))), path.stem)
    names, imports, bodies = [], [], []
    for number, cell in enumerate(cells):
        where = f"{path.name}, cell {number}"
        if cell.cell_type != "code":
            continue
        found = DIRECTIVE.findall(cell.source)
        source = strip_markers(DIRECTIVE.sub("", cell.source), where).strip("\n")
        names += [value for word, value in found if word == "default_exp"]
        if any(word == "export" for word, _ in found):
            cell_imports, body = split_imports(source, where)
            imports += cell_imports
            bodies += [body] if body.strip() else []
    if bodies and len(names) != 1:
        raise ExportError(f"{path.name}: exports cells but has {len(names)} default_exp lines; it needs exactly one")
    if not names:
        return None, ""
    head = f'"""{title.rstrip(".")}.\n\nWritten by notebooks/{path.name}: edit it there.\n"""'
    parts = [head + ("\n\n" + merge_imports(imports) if imports else ""), *bodies]
    return names[0], "\n\n\n".join(parts) + "\n"


def build_all(notebooks: Path) -> dict[str, str]:
    """Module name -> text for every notebook in the folder that exports something."""
    modules, owner = {}, {}
    for path in sorted(notebooks.glob("*.ipynb")):
        name, text = build_module(path)
        if name in owner:
            raise ExportError(f"{path.name} and {owner[name]} both claim minillama/{name}.py; rename one default_exp")
        if name is not None:
            modules[name], owner[name] = text, path.name
    return modules


def problems(modules: dict[str, str], package: Path) -> list[str]:
    """What differs between the notebooks' modules and the package on disk."""
    fix = "run: python -m course.export"
    found = []
    for name, text in modules.items():
        path = package / f"{name}.py"
        if not path.exists():
            found.append(f"{path.name} is missing; {fix}")
        elif path.read_text(encoding="utf-8") != text:
            found.append(f"{path.name} is stale: it differs from its notebook; {fix}")
    for path in sorted(package.glob("*.py")):
        if path.stem not in modules and path.stem not in HAND_WRITTEN:
            found.append(f"{path.name} is orphaned: no notebook exports it; delete it or write its notebook")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course.export", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if anything is out of date")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="folder of notebooks")
    parser.add_argument("--package", type=Path, default=ROOT / "minillama", help="folder of modules")
    args = parser.parse_args(argv)
    try:
        modules = build_all(args.notebooks)
    except ExportError as error:
        print(f"course.export: {error}", file=sys.stderr)
        return 2
    if args.check:
        found = problems(modules, args.package)
        print("\n".join(found) or f"{len(modules)} modules match their notebooks")
        return 1 if found else 0
    for name, text in modules.items():
        (args.package / f"{name}.py").write_text(text, encoding="utf-8", newline="\n")
    print(f"wrote {len(modules)} modules to {args.package.name}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())

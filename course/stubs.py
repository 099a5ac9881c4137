"""What a student finds where the solution was: an error that names what is missing, or `answer =
...`.
"""

import ast
import re

from course.export import MARKER


HIDDEN = re.compile(
    r"^ *# BEGIN HIDDEN TESTS\n.*?^ *# END HIDDEN TESTS\n?", re.MULTILINE | re.DOTALL
)


def blocks(source: str) -> list[tuple[int, int]]:
    """First and last line, the markers', of every solution in a cell, counted from 0."""
    marked = [
        (number, match[1])
        for number, line in enumerate(source.split("\n"))
        if (match := MARKER.fullmatch(line))
    ]
    return [
        (a, b) for (a, kind), (b, _) in zip(marked, marked[1:], strict=False) if kind == "BEGIN"
    ]


def stub(source: str, what: str, wanted: frozenset) -> str:
    """A cell without its solutions. what: its name in the error; wanted: the answers that other
    cells use.
    """
    source = HIDDEN.sub("", source)
    lines, found = source.split("\n"), blocks(source)
    for first, last in reversed(found):
        body = lines[first + 1 : last]
        indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
        error = f'{indent}raise NotImplementedError("{what.replace(chr(34), chr(39))}")'
        if body[0].startswith(f"{indent}case "):
            lines[first : last + 1] = [
                f"{indent}case _ if True:  # put your cases here",
                f"    {error}",
            ]
        elif re.match(r" *def __post_init__", inside(lines[:first])):
            # an error here would stop all that needs the class
            lines[first : last + 1] = [f"{indent}pass  # {what}"]
        elif indent:
            lines[first : last + 1] = [error]
        else:
            lines[first : last + 1] = [
                f"{name} = ..." for name in answers("\n".join(body)) if name in wanted
            ]
    return "\n".join(lines)


def inside(above: list[str]) -> str:
    """The nearest line above that begins a function."""
    return next((line for line in reversed(above) if re.match(r" *def ", line)), "")


def answers(source: str) -> list[str]:
    """The names that statements bind, in order."""
    names = []
    for statement in ast.parse(source).body:
        inner = ast.walk(statement)
        found = [n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        names += (
            [statement.name] if isinstance(statement, ast.FunctionDef | ast.ClassDef) else found
        )
    return list(dict.fromkeys(names))

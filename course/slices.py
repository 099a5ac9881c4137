"""Which statements of a notebook a cell needs: a backward walk over the names they define and use.

Drawing, printing and the assertions of other cells are left out, so that one exercise can be run in
a moment.
"""

import ast
import copy
import dis
import types
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache


SHOWN = {"draw", "print", "display", "show", "plt"}  # roots of calls that only show something
KEEPING = {"append", "extend", "insert", "add", "update"}
# run where they stand, as class bodies do
INSIDE = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
COMPOUND = (ast.For, ast.While, ast.If, ast.With, ast.Try)
LASTING = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
LOADS, STORES = (
    {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"},
    {"STORE_NAME", "STORE_GLOBAL"},
)


@dataclass(frozen=True)
class Statement:
    """A top-level statement of a cell: the names it binds, changes, uses at once and uses when it
    is called.
    """

    cell: str
    node: ast.stmt
    binds: frozenset
    changes: frozenset
    now: frozenset
    late: frozenset
    text: str  # of an assignment
    # it binds its names, whatever happens, so that what bound them earlier is forgotten
    certain: bool = True


def root(node: ast.expr) -> str | None:
    """The name in front of all dots, brackets and calls: `a` of a.b[0].c()."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred | ast.Await):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def is_check(node: ast.AST) -> bool:
    """Whether a statement asserts: `assert`, `raise AssertionError` or a call of `check`."""
    calls = (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and root(node.value) == "check"
    )
    return (
        calls
        or isinstance(node, ast.Assert)
        or (isinstance(node, ast.Raise) and "AssertionError" in ast.dump(node))
    )


def prune(body: list[ast.stmt], checks: bool) -> list[ast.stmt]:
    """Statements without those that only show something and, unless `checks`, without those that
    assert.
    """
    return [node for statement in body if (node := pruned(statement, checks))]


def pruned(node: ast.stmt, checks: bool) -> ast.stmt | None:
    """What is left of one statement."""
    if isinstance(node, ast.Expr) and (
        root(node.value) in SHOWN or not any(map(acts, ast.walk(node)))
    ):
        return None
    if not checks and is_check(node):
        return None
    if not isinstance(node, COMPOUND):
        return node
    node = copy.copy(node)
    for field in ("body", "orelse", "finalbody"):
        setattr(node, field, prune(getattr(node, field, []), checks))
    if isinstance(node, ast.Try):
        silent = not any(prune(handler.body, checks) for handler in node.handlers)
        if silent and not checks and all(isinstance(inner, ast.Expr) for inner in node.body):
            return None  # it shows an error
    if not node.body and not node.orelse:
        return None
    node.body = node.body or [ast.copy_location(ast.Pass(), node)]
    return node


def acts(node: ast.AST) -> bool:
    return isinstance(node, ast.Call | ast.Yield | ast.Await)


def names_of(code: types.CodeType, late: bool, found: dict[bool, set]) -> dict[bool, set]:
    """Names that compiled code reads from the notebook: found[False] at once, found[True] when it
    is called later.
    """
    found[late] |= {step.argval for step in dis.get_instructions(code) if step.opname in LOADS}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            # subtle: class bodies have no fast locals
            at_once = inner.co_name in INSIDE or not inner.co_flags & 2
            names_of(inner, late or not at_once, found)
    return found


def changed(node: ast.stmt) -> set[str]:
    """Names whose objects a statement may change: what it assigns into, and what it hands to calls
    for their effect.
    """
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute | ast.Subscript) and not isinstance(inner.ctx, ast.Load):
            found.add(root(inner))
        elif (
            isinstance(inner, ast.Expr)
            and isinstance(inner.value, ast.Call)
            and root(inner.value) != "check"
        ):
            found |= handed(inner.value)
    for loop in ast.walk(node):  # what is changed may be an element of what is looped over
        if isinstance(loop, ast.For) and found & loaded(loop.target):
            found |= loaded(loop.iter)
    return found - {None}


def handed(call: ast.Call) -> set[str]:
    """Names that a call made for its effect may change: its object and, but for `append` and its
    like, arguments.
    """
    found, method = set(), call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if method:
        found |= (
            handed(call.func.value)
            if isinstance(call.func.value, ast.Call)
            else {root(call.func.value)}
        )
    for argument in (
        (*call.args, *(keyword.value for keyword in call.keywords)) if method not in KEEPING else ()
    ):
        found |= loaded(argument) - {
            root(c.func) for c in ast.walk(argument) if isinstance(c, ast.Call)
        }
    return found


def loaded(node: ast.expr) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def own(node: ast.stmt, steps: list[dis.Instruction]) -> set[str]:
    """Names that a loop, a `with` or a `try` binds before it uses them, as `for x in y: print(x)`
    does with x.
    """
    first = {}
    for step in steps:
        if step.opname in LOADS | STORES:
            first.setdefault(step.argval, step.opname)
    bound = {inner.name for inner in ast.walk(node) if isinstance(inner, ast.ExceptHandler)}
    for inner in ast.walk(node) if isinstance(node, ast.For | ast.With | ast.Try) else ():
        targets = [inner.target] if isinstance(inner, ast.For) else []
        targets += (
            [item.optional_vars for item in inner.items if item.optional_vars]
            if isinstance(inner, ast.With)
            else []
        )
        straight = inner.body if isinstance(inner, ast.For | ast.With | ast.Try) else []
        targets += [
            target
            for simple in straight
            if isinstance(simple, ast.Assign)
            for target in simple.targets
        ]
        bound |= set().union(*map(loaded, targets))
    return {name for name in bound if first.get(name) in STORES}


@lru_cache(maxsize=4096)
def parsed(cell: str, source: str) -> ast.Module:
    """A cell's tree; one for one source, so that its statements are looked at once. SyntaxError."""
    return ast.parse(source, filename=cell)


@lru_cache(maxsize=1 << 14)
def statement(cell: str, node: ast.stmt) -> Statement:
    """One statement with its names."""
    code = compile(ast.Module([node], []), cell, "exec")
    found, steps = (
        names_of(code, False, {False: set(), True: set()}),
        list(dis.get_instructions(code)),
    )
    binds = {step.argval for step in steps if step.opname in STORES}
    is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
    changes = set() if is_definition else changed(node)
    text = ast.unparse(node) if isinstance(node, ast.Assign) else ""
    now = found[False] - own(node, steps)
    return Statement(
        cell,
        node,
        *map(frozenset, (binds, changes - binds | (changes & now), now, found[True])),
        text,
        not isinstance(node, COMPOUND),
    )


@lru_cache(maxsize=4096)
def statements(cell: str, source: str, checks: bool) -> tuple[Statement, ...]:
    """A cell's statements, pruned. SyntaxError."""
    return tuple(statement(cell, node) for node in prune(parsed(cell, source).body, checks))


@lru_cache(maxsize=4096)
def whole(cell: str, source: str) -> tuple[Statement, ...]:
    """A cell's statements, those too that only show something, which change nothing.
    SyntaxError.
    """
    steps = [(node, statement(cell, node)) for node in parsed(cell, source).body]
    return tuple(
        step if pruned(node, True) else replace(step, changes=frozenset()) for node, step in steps
    )


def needed(
    program: list[Statement], roots: list[int], late: list[tuple[int, int]] | None = None
) -> set[int]:
    """Places of all statements that those at the places `roots` need, with the roots themselves.

    late: (place, a later moment at which what is defined there is called).
    """
    binders, changers = defaultdict(list), defaultdict(list)
    for place, step in enumerate(program):
        for name in step.binds:
            binders[name].append(place)
        for name in step.changes:
            changers[name].append(place)
    # (statement, the moment at which it is used)
    done, todo = set(), [*((place, place) for place in roots), *(late or ())]
    while todo:
        place, moment = todo.pop()
        if (place, moment) in done:
            continue
        done.add((place, moment))
        step = program[place]
        wanted = [(name, place) for name in step.now] + [(name, moment) for name in step.late]
        if not isinstance(step.node, ast.FunctionDef | ast.ClassDef):
            wanted += [(name, place) for name in step.late]
        for name, moment in wanted:
            first = 0
            for binder in reversed([p for p in binders[name] if p < moment]):
                todo.append((binder, moment))
                if program[binder].certain:
                    first = binder
                    break
            made = [p for p in changers[name] if first < p < moment]
            if isinstance(program[first].node, LASTING):  # changed only on purpose
                made = [p for p in made if not isinstance(program[p].node, COMPOUND)]
            todo += [(changer, changer) for changer in made]
    return {place for place, _ in done}

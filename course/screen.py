"""Refuse what no solution needs: a student's code is read, not run, before it is graded.

No sandbox: it stops what would cheat a check or a careless loop that deletes files, not a determined attacker. What the
reference's own solution of the same task does is allowed there.
"""

import ast
import builtins
import re
from functools import lru_cache

from course.tasks import Chapter, Task


MODULES = """bisect cmath collections collections.abc contextlib copy dataclasses decimal enum fractions functools heapq
itertools json math numbers numpy operator random re regex statistics string struct textwrap time torch torch.nn
torch.nn.functional tqdm typing unicodedata""".split()
NAMES = """__import__ breakpoint compile delattr draw eval exec exit getattr globals help hub input load locals
memoryview mock open patch quit setattr vars""".split()
ATTRIBUTES = """ANY _C attrgetter builtins cpp_extension cr_frame ctypes distributed f_back f_builtins f_globals
f_locals fromfile gc gi_code gi_frame hub importlib inspect io jit library load loadtxt lib memmap methodcaller mock
multiprocessing ops os overrides package pathlib pickle save savetxt savez serialization shutil signal socket subprocess
sys tb_frame tb_next testing threading tofile types unittest warnings""".split()
METHODS = {f"__{name}__" for name in "init call len iter next getitem setitem contains repr str post_init".split()}
GLOBAL = re.compile(r"register_module_\w+|register_forward\w*|set_default_\w+|use_deterministic\w+|set_printoptions")
FOREIGN = re.compile(r"#\s*(include|pragma|define|import)|\b(asm|system|popen|exec\w+|fopen|syscall|dlopen|fork)\s*\(")
DUNDER = re.compile(r"__\w+__")


def refused(task: Task, sources: dict[str, str], extra: str = "") -> str:
    """Why a student's cells are not run, or nothing: `line 3 assigns np.allclose`. Code that is no Python passes."""
    allowed = {deed for source in task.reference.values() for _, deed in deeds(source, task.chapter)}
    for id, source in (*((id, sources[id]) for id in task.solutions), ("extra", extra)):
        for line, deed in deeds(source, task.chapter):
            if deed not in allowed:
                return f"line {line} {deed}" if id != "extra" else f"one of your own definitions {deed}"
    return ""


def deeds(source: str, chapter: Chapter) -> list[tuple[int, str]]:
    """(line, what it does) for all that is out of the ordinary in a text."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # it cannot run either
    closed = out_of_reach(chapter)
    try:
        found = [(getattr(node, "lineno", 0), deed) for node in ast.walk(tree) for deed in deed_of(node, closed)]
    except RecursionError:
        return [(1, "is nested too deeply")]
    return sorted(found)


def deed_of(node: ast.AST, closed: dict[str, str]) -> list[str]:
    """What one node of a syntax tree does that a solution has no need of."""
    match node:
        case ast.Import(names=names):
            return [f"imports {alias.name}" for alias in names if alias.name not in MODULES]
        case ast.ImportFrom(module=module, names=names):
            bad = [
                alias.name for alias in names if alias.name in ATTRIBUTES or alias.name in NAMES or alias.name == "*"
            ]
            foreign = module not in MODULES and f"imports {module}"
            return [foreign] if foreign else [f"imports {module}.{name}" for name in bad]
        case ast.Attribute(attr=attr, ctx=ctx, value=value):
            if isinstance(ctx, ast.Load):
                return [f"uses .{attr}"] * is_closed(attr, value)
            shared = attr in SHARED and not (isinstance(value, ast.Name) and value.id == "self")
            return [f"assigns {ast.unparse(node)}"] * (shared or is_closed(attr, value))
        case ast.Name(id=name, ctx=ctx):
            if name in closed:
                return [f"uses {name}, which is {closed[name]}"]
            dunder = DUNDER.fullmatch(name) and not (name == "__name__" and isinstance(ctx, ast.Load))
            return [f"uses {name}"] * bool(dunder or name in NAMES)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [f"defines {name}"] * bool(DUNDER.fullmatch(name) and name not in METHODS)
        case ast.ClassDef(keywords=[_, *_]):
            return ["chooses a metaclass"]
        case ast.Call(func=ast.Name(id="type"), args=args) if len(args) != 1:
            return ["makes a class with type()"]
        case ast.Constant(value=str(text)):
            dunder = [f"holds the text {text!r}"] * bool(DUNDER.fullmatch(text))
            return dunder + ["holds C++ that reaches out of the kernel"] * bool(FOREIGN.search(text))
        case ast.Global() | ast.Nonlocal():
            return []
        case ast.MatchClass(kwd_attrs=names):
            return [f"uses .{name}" for name in names if is_closed(name, None)]
    return []


def is_closed(attr: str, value: ast.expr | None) -> bool:
    """Whether an attribute leads out of what a solution works with."""
    own = isinstance(value, ast.Name) and value.id in ("self", "cls")
    if attr == "__name__" or (attr == "__init__" and isinstance(value, ast.Call)):  # super().__init__()
        return False
    return attr in ATTRIBUTES or bool(GLOBAL.fullmatch(attr) or DUNDER.fullmatch(attr)) or (attr[:1] == "_" and not own)


def shared_names() -> frozenset:
    """Names in the modules that checks compare with: whoever assigns one of them, changes it for the check too."""
    import numpy
    import torch

    import course.check

    modules = (torch, torch.nn.functional, torch.linalg, numpy, numpy.linalg, course.check, builtins)
    return frozenset().union(*(vars(module) for module in modules)) | {"forward"}


SHARED = shared_names()


@lru_cache
def out_of_reach(chapter: Chapter) -> dict[str, str]:
    """Names that a notebook imports from the reference's solution of its own chapter, or of a later one."""
    import minillama

    order = chapter_order(chapter)
    closed = {}
    for cell in chapter.cells:
        for node in ast.walk(ast.parse(cell.source)) if "minillama" in cell.source else ():
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "minillama":
                for alias in node.names:
                    value = getattr(minillama, alias.name, None) if node.module == "minillama" else None
                    home = node.module if value is None else getattr(value, "__module__", None) or value.__name__
                    if home.removeprefix("minillama.") in order:
                        closed[alias.asname or alias.name] = f"the reference's minillama.{alias.name}"
            if isinstance(node, ast.Import):
                names = {alias.asname or "minillama" for alias in node.names if alias.name.startswith("minillama")}
                closed |= dict.fromkeys(names & {"minillama"}, "the reference itself")
    return closed


def chapter_order(chapter: Chapter) -> set[str]:
    """Modules of this chapter and the later ones."""
    later = [path for path in sorted(chapter.path.parent.glob("*.ipynb")) if path.name >= chapter.path.name]
    found = (re.search(r"default_exp (\w+)", path.read_text(encoding="utf-8")) for path in later)
    return {match[1] for match in found if match}

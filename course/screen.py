"""Refuse what no solution needs: a student's code is read, not run, before it is graded.

No sandbox: it stops what would cheat a check or a careless loop that deletes files, not a
determined attacker. What the reference's own solution of the same task does is allowed there.
"""

import ast
import builtins
import importlib
import re
import sys
from functools import lru_cache
from types import FunctionType, ModuleType

from course.tasks import Chapter, Task


MODULES = """bisect cmath collections collections.abc contextlib copy dataclasses decimal enum
fractions functools heapq itertools json math numbers numpy operator random re regex statistics
string struct textwrap time torch torch.nn torch.nn.functional tqdm typing unicodedata""".split()
NAMES = """__import__ breakpoint compile delattr draw eval exec exit getattr globals help hub input
load locals memoryview mock open patch quit setattr vars""".split()
ATTRIBUTES = """ANY Formatter ForwardRef _C attrgetter builtins classes codecs copyreg
cpp_extension cr_frame ctypes ctypeslib distributed evaluate_forward_ref export_chrome_trace f_back
f_builtins f_globals f_locals from_file fromfile fx gc get_annotations get_args get_field
get_type_hints gi_code gi_frame global_enum global_enum_repr hub import_module importlib inspect io
jit lib library load load_library loadtxt make_dataclass memmap methodcaller mock multiprocessing
onnx ops os overrides package pathlib pickle popen profiler save savetxt savez serialization shutil
signal singledispatch singledispatchmethod socket subprocess sys system tb_frame tb_next testing
threading tofile types unittest update_wrapper warnings weakref wraps""".split()
METHODS = {
    f"__{name}__"
    for name in "init call len iter next getitem setitem contains repr str post_init".split()
}
GLOBAL = re.compile(
    r"register_module_\w+|register_forward\w*|set_default_\w+|use_deterministic\w+|set_printoptions"
)
FOREIGN = re.compile(
    r"#\s*(include|pragma|define|import)|\b(asm|system|popen|exec\w+|fopen|syscall|dlopen|fork)\s*\("
)
FUNCTIONS = (FunctionType, classmethod, staticmethod, type)
DUNDER = re.compile(r"__\w+__")


def refused(task: Task, sources: dict[str, str], extra: str = "") -> str:
    """Why a student's cells are not run, or nothing: `line 3 assigns np.allclose`. Code that is no
    Python passes.
    """
    allowed = {
        deed for source in task.reference.values() for _, deed in deeds(source, task.chapter)
    }
    for id, source in (*((id, sources[id]) for id in task.solutions), ("extra", extra)):
        for line, deed in deeds(source, task.chapter):
            if deed not in allowed:
                return (
                    f"line {line} {deed}"
                    if id != "extra"
                    else f"one of your own definitions {deed}"
                )
    return ""


def deeds(source: str, chapter: Chapter) -> list[tuple[int, str]]:
    """(line, what it does) for all that is out of the ordinary in a text."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # it cannot run either
    closed, given = out_of_reach(chapter), imported(chapter)
    try:
        found = [
            (getattr(node, "lineno", 0), deed)
            for node in ast.walk(tree)
            for deed in deed_of(node, closed, given)
        ]
    except RecursionError:
        return [(1, "is nested too deeply")]
    return sorted(found)


def deed_of(node: ast.AST, closed: dict[str, str], given: frozenset) -> list[str]:
    """What one node of a syntax tree does that a solution has no need of; given: names that the
    chapter imports.
    """
    match node:
        case ast.Import(names=names):
            return [f"imports {alias.name}" for alias in names if alias.name not in MODULES]
        case ast.ImportFrom(module=module, names=names):
            bad = [
                alias.name
                for alias in names
                if alias.name in ATTRIBUTES or alias.name in NAMES or alias.name == "*"
            ]
            foreign = module not in MODULES and f"imports {module}"
            return [foreign] if foreign else [f"imports {module}.{name}" for name in bad]
        case ast.Attribute(attr=attr, ctx=ctx, value=value):
            if isinstance(ctx, ast.Load):
                return [f"uses .{attr}"] * is_closed(attr, value)
            name = root(value)
            shared = name in given or (
                attr in SHARED and not (isinstance(value, ast.Name) and name == "self")
            )
            return [f"assigns {ast.unparse(node)}"] * (shared or is_closed(attr, value))
        case ast.Name(id=name, ctx=ctx):
            if name in closed:
                return [f"uses {name}, which is {closed[name]}"]
            dunder = DUNDER.fullmatch(name) and not (
                name == "__name__" and isinstance(ctx, ast.Load)
            )
            return [f"uses {name}"] * bool(dunder or name in NAMES)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [f"defines {name}"] * bool(DUNDER.fullmatch(name) and name not in METHODS)
        case ast.ClassDef(keywords=[_, *_]):
            return ["chooses a metaclass"]
        case ast.Call(func=ast.Name(id="type"), args=args) if len(args) != 1:
            return ["makes a class with type()"]
        case ast.Constant(value=str(text)):
            dunder = [f"holds the text {text!r}"] * bool(DUNDER.fullmatch(text))
            return dunder + ["holds C++ that reaches out of the kernel"] * bool(
                FOREIGN.search(text)
            )
        case ast.Global() | ast.Nonlocal():
            return []
        case ast.MatchClass(kwd_attrs=names):
            return [f"uses .{name}" for name in names if is_closed(name, None)]
    return []


def root(node: ast.expr) -> str:
    """What a chain of attributes begins with: `torch` for torch.nn.init; nothing for what is no
    name.
    """
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_closed(attr: str, value: ast.expr | None) -> bool:
    """Whether an attribute leads out of what a solution works with."""
    own = isinstance(value, ast.Name) and value.id in ("self", "cls") and attr not in PRIVATE
    # super().__init__()
    if attr == "__name__" or (attr == "__init__" and isinstance(value, ast.Call)):
        return False
    return (
        attr in ATTRIBUTES
        or bool(GLOBAL.fullmatch(attr) or DUNDER.fullmatch(attr))
        or (attr[:1] == "_" and not own)
    )


def shared_names() -> frozenset:
    """Names in the modules that checks compare with: whoever assigns one of them, changes it for
    the check too.
    """
    import numpy
    import torch

    import course.check

    modules = (
        torch,
        torch.nn.functional,
        torch.linalg,
        numpy,
        numpy.linalg,
        course.check,
        builtins,
    )
    return frozenset().union(*(vars(module) for module in modules)) | {"forward"}


SHARED = shared_names()


def private_names() -> frozenset:
    """Names with an underscore that lead out of what solutions may import, also from something that
    is called `self`.

    These are modules, Python's own functions (one of dataclasses runs text), and methods of typing
    and enum.
    """
    kept = set()
    for name in MODULES:
        if not name.startswith(("numpy", "torch")):  # theirs compute, or are modules
            module = importlib.import_module(name)
            owners = [module, *(vars(module).values() if name in ("enum", "typing") else ())]
            found = [
                pair
                for owner in owners
                if isinstance(owner, ModuleType | type)
                for pair in vars(owner).items()
            ]
            kept |= {
                name for name, value in found if name[0] == "_" and isinstance(value, FUNCTIONS)
            }
    for module in filter(None, list(sys.modules.values())):
        kept |= {
            name
            for name, value in dict(vars(module)).items()
            if name[0] == "_" and isinstance(value, ModuleType)
        }
    return frozenset(kept)


PRIVATE = private_names()


@lru_cache
def imported(chapter: Chapter) -> frozenset:
    """Names that a notebook's cells import: a solution changes none of these things for others."""
    nodes = (node for cell in chapter.cells for node in ast.walk(ast.parse(cell.source)))
    aliases = (
        alias
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    )
    return frozenset((alias.asname or alias.name).partition(".")[0] for alias in aliases)


@lru_cache
def out_of_reach(chapter: Chapter) -> dict[str, str]:
    """Names that a notebook imports from the reference's solution of its own chapter, or of a later
    one.
    """
    import minillama

    order = chapter_order(chapter)
    closed = {}
    for cell in chapter.cells:
        for node in ast.walk(ast.parse(cell.source)) if "minillama" in cell.source else ():
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.partition(".")[0] == "minillama"
            ):
                for alias in node.names:
                    value = (
                        getattr(minillama, alias.name, None) if node.module == "minillama" else None
                    )
                    home = (
                        node.module
                        if value is None
                        else getattr(value, "__module__", None) or value.__name__
                    )
                    if order & {
                        home.removeprefix("minillama."),
                        f"{home}.{alias.name}".removeprefix("minillama."),
                    }:
                        closed[alias.asname or alias.name] = (
                            f"the reference's minillama.{alias.name}"
                        )
            if isinstance(node, ast.Import):
                names = {
                    alias.asname or "minillama"
                    for alias in node.names
                    if alias.name.startswith("minillama")
                }
                closed |= dict.fromkeys(names & {"minillama"}, "the reference itself")
    return closed


def chapter_order(chapter: Chapter) -> set[str]:
    """Modules of this chapter and the later ones."""
    later = [
        path
        for path in sorted(chapter.path.parent.glob("*.ipynb"))
        if path.name >= chapter.path.name
    ]
    named = re.compile(r"#\| (?:default_exp|export) ([\w.]+)")
    return {name for path in later for name in named.findall(path.read_text(encoding="utf-8"))}

"""Run a task's checks here, and the student's code in a process of its own that knows none of them.

The checks, and all that they need of the notebook, run in this process; what the student defined is
a stand-in whose calls go to the student's process (course/student.py) and come back as plain data
(course/wire.py).
"""

import ast
import contextlib
import enum
import importlib
import linecache
import os
import socket
import sys
import tempfile
import types
from collections import OrderedDict
from functools import cache
from pathlib import Path, PurePath, PurePosixPath
from unittest.mock import patch

import numpy as np
import torch

from course.collect import with_own
from course.export import ROOT, ExportError, build_modules
from course.run_tasks import (
    MISSING,
    Outcome,
    changed_by_reference,
    contents,
    failed,
    scene,
    undisturbed,
)
from course.slices import needed, parsed, pruned
from course.student import without_magics
from course.tasks import Task
from course.wire import (
    DTYPES,
    Garbled,
    Peer,
    StandIn,
    StandInClass,
    Theirs,
    digest,
    raw,
    set_state,
    state_of,
    tensor_of,
)


OPEN = """torch numpy math builtins operator functools itertools collections random re regex string
statistics cmath fractions decimal dataclasses typing json minillama course pathlib time struct
types contextlib heapq bisect _operator _functools _collections _regex _io""".split()
TEMPORARY = os.path.realpath(tempfile.gettempdir()) + os.sep
# helpers of checks that record what a student's function does, in the process where it runs
TOGETHER = {"room_after", "mask_after", "times_found"}
SHUT = {"builtins.open", "builtins.exec", "builtins.eval", "builtins.__import__"}


class Grader(Peer):
    """The grader's end of the pipe: strict about what it takes."""

    strict = True
    tags = frozenset(
        "ref E N i b c z u f nt dt dv sl rg n a y l s q d m r x t M o om P path".split()
    )

    def __init__(self, connection, task: Task, modules):
        super().__init__(connection, 0)
        self.task, self.modules = task, modules

    # ---- what a student's process may ask for

    def do(self, op: str, values: list):
        if op == "module":
            return self.modules(values[0])
        if op not in ("call", "special", "get") or id(values[0]) not in self.owned_ids:
            raise Garbled("a deed of no kind")
        return super().do(op, values)

    def get(self, target, name: str):
        closed = (type, types.ModuleType, types.FunctionType, types.MethodType)
        if not isinstance(name, str) or name[:1] == "_" or isinstance(target, closed):
            raise AttributeError(name)
        return getattr(target, name)

    # ---- to the student's process

    def encode_any_tensor(self, tensor, blobs):
        requires = tensor.requires_grad and tensor.is_leaf
        kind = isinstance(tensor, torch.nn.Parameter)
        if tensor.device.type == "meta":
            return [
                "M",
                self.share_meta(tensor),
                str(tensor.dtype),
                list(tensor.shape),
                requires,
                kind,
            ]
        if tensor.is_conj() or tensor.is_neg() or tensor.layout != torch.strided:
            tensor = tensor.resolve_conj().resolve_neg().to_dense()
        storage = tensor.untyped_storage()
        sid, blob = self.ids.get(self.key(storage)), None
        if sid is None:
            sid = self.share(storage)
            blob = self.blob(raw(storage).numpy().tobytes(), blobs)
            self.fix(sid)
        n = self.share(tensor)
        self.fix(n)
        grad = tensor.grad if tensor.is_leaf else None
        return [
            "T",
            n,
            [sid, blob],
            str(tensor.dtype),
            tensor.storage_offset(),
            list(tensor.shape),
            list(tensor.stride()),
            requires,
            kind,
            None if grad is None else self.encode_tensor(grad, blobs),
        ]

    def share_meta(self, tensor):
        return None

    def encode_object(self, value, blobs):
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] in OPEN:
                return ["k", value.__name__, ""]
            raise TypeError(f"a module, {value.__name__}, for a student's function")
        if isinstance(value, StandInClass):
            return ["m", value._number]
        if name := self.by_name(value):
            return ["k", *name]
        if isinstance(value, enum.Enum) and (name := self.by_name(type(value))):
            return ["k", name[0], f"{name[1]}.{value.name}"]
        if isinstance(value, PurePath):
            return self.encode_path(value)
        bound = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)
        if not isinstance(value, bound) and not hasattr(value, "__next__"):
            with contextlib.suppress(TypeError, AttributeError, ValueError):
                if self.by_name(type(value)):
                    return self.copy(value, blobs)
        return self.remote(value, blobs)

    def copy(self, value, blobs):
        """An object of a class that both have, by what it holds."""
        module, name = self.by_name(type(value))
        maker, args, state, items, pairs, *_ = (*value.__reduce_ex__(4), None, None, None, None)[:6]
        simple = getattr(maker, "__name__", "") == "__newobj__" and args == (type(value),)
        if simple and items is None and pairs is None and not hasattr(value, "__setstate__"):
            simple = True
        elif isinstance(value, torch.nn.Module):
            simple = True
        else:
            simple = False
        if simple:
            n = self.share(value)
            return ["o", n, module, name, self.encode_contents(value, blobs)]
        return [
            "re",
            None,
            self.encode(maker, blobs),
            self.encode(args, blobs),
            None if state is None else self.encode(state, blobs),
            [self.encode(each, blobs) for each in items or ()],
            [[self.encode(k, blobs), self.encode(v, blobs)] for k, v in pairs or ()],
        ]

    def new(self, value):
        return None if self.inside else self.share(value)

    inside = False  # whether a module's own tables are encoded, which nobody changes from outside

    def encode_contents(self, thing, blobs):
        if not isinstance(thing, torch.nn.Module):
            return super().encode_contents(thing, blobs)
        rows = []
        for name, value in thing.__dict__.items():
            if name[:1] == "_" and type(value) in (dict, OrderedDict):
                pairs = [[self.encode(k, blobs), self.encode(v, blobs)] for k, v in value.items()]
                rows.append([name, ["d", None, type(value).__name__, None, pairs]])
            else:
                rows.append([name, self.encode(value, blobs)])
        return rows

    @property
    def names(self):
        return all_names()

    def by_name(self, value):
        """(module, name) under which the student's process finds the same thing."""
        if id(value) in self.names:
            return self.names[id(value)]
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if not (isinstance(module, str) and isinstance(name, str)):
            return None
        if module == "notebook":
            return ("notebook", name) if isinstance(value, type) and name in self.given else None
        if module.partition(".")[0] not in OPEN or self.is_hidden(module, name):
            return None
        if f"{module}.{name}" in SHUT:
            return None
        found = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        return (module, name) if found is value else None

    def has_class(self, cls):
        return False

    def encode_path(self, value):
        """A path; below the folder of temporary files with what lies there."""
        place = os.path.abspath(value)
        watched = isinstance(value, Path) and place.startswith(TEMPORARY) and place != TEMPORARY
        if watched:
            self.roots.setdefault(place, {})
            kind = "folder" if os.path.isdir(place) else "file"
            return ["path", self.outside(place), kind]
        return ["path", str(value), False]

    def outside(self, place):
        return "/tmp/" + place.removeprefix(TEMPORARY)

    def inside_path(self, place):
        return TEMPORARY + place.removeprefix("/tmp/") if place.startswith("/tmp/") else place

    # ---- from the student's process

    def decode_path(self, blobs, place):
        inside = self.inside_path(place)
        below = any(inside == root or inside.startswith(root + "/") for root in self.roots)
        if below and ".." not in Path(inside).parts:
            return Path(inside)
        return PurePosixPath(place)  # which opens nothing

    def set_generator(self, generator, state):
        """A generator that the student used goes on elsewhere, not where the student says."""
        before = digest(generator.get_state().numpy())
        generator.manual_seed(before[0])

    def set_random(self, generator, state):
        generator.seed(repr(generator.getstate()))

    def sent_state(self, thing):
        cls = type(thing)
        return {
            name: value
            for name, value in state_of(thing).items()
            if name[:1] != "_" and not callable(getattr(cls, name, None))
        }

    def decode_contents(self, entry, encoded, blobs):
        thing = entry.thing
        plain = (torch.Tensor, torch.UntypedStorage, np.ndarray, torch.Generator)
        kinds = (*plain, dict, list, set, bytearray)
        if hasattr(thing, "__dict__") and not isinstance(thing, kinds):
            cls = type(thing)
            kept = [
                (name, value)
                for name, value in encoded
                if isinstance(name, str)
                and name.isidentifier()
                and name[:1] != "_"
                and not callable(getattr(cls, name, None))
            ]
            state = {name: self.decode(value, blobs) for name, value in kept}
            now = state_of(thing)
            for name, value in state.items():
                fixed = isinstance(value, StandIn | types.FunctionType | StandInClass)
                if not fixed and now.get(name, Garbled) is not value:
                    object.__setattr__(thing, name, value)
            return
        super().decode_contents(entry, encoded, blobs)

    def decode_t(self, blobs, n, requires, kind, dtype, shape, blob):
        made = tensor_of(blobs[blob], DTYPES[dtype], shape)
        if kind is True:
            made = torch.nn.Parameter(made, requires is True)
        return self.keep(made, n)

    def decode_M(self, blobs, dtype, shape):
        return torch.empty(tuple(shape), dtype=DTYPES[dtype], device="meta")

    def decode_P(self, blobs, n, requires, dtype, shape, blob):
        if blob is None:
            return self.decode_M(blobs, dtype, shape)
        made = tensor_of(blobs[blob], DTYPES[dtype], shape)
        if n in self.shared or type(n) is not int or n % 2 == 0:
            raise Garbled("a number that is taken")
        self.share(made, n)
        return made

    def decode_o(self, blobs, n, module, name, pairs):
        cls = self.shared_class(module, name)
        if issubclass(cls, (torch.nn.Module, BaseException, type)):
            raise Garbled("a class")
        made = self.keep(object.__new__(cls), n)
        state = {}
        for key, value in pairs:
            if not (isinstance(key, str) and key.isidentifier()):
                raise Garbled("an attribute")
            if not callable(getattr(cls, key, None)):
                state[key] = self.decode(value, blobs)
        set_state(made, state)
        return self.fixed(made, n)

    def shared_class(self, module: str, name: str) -> type:
        """A class of the package, of the notebook or of torch.nn that both have. Garbled."""
        right = module.startswith(("minillama.", "torch.nn.modules."))
        right = right and not self.is_hidden(module, name)
        if module == "notebook" and name in self.given:
            found = getattr(self.notebook, name, None)
        elif right and str(name).isidentifier():
            found = getattr(importlib.import_module(module), name, None)
        else:
            found = None
        if not isinstance(found, type) or found.__module__ != module:
            raise Garbled("a class")
        return found

    def decode_om(self, blobs, number, module, name, info):
        if number in self.stand_ins:
            return self.stand_ins[number]
        cls = self.shared_class(module, name)
        if not issubclass(cls, torch.nn.Module):
            raise Garbled("a class")
        made = cls.__new__(cls)
        torch.nn.Module.__init__(made)
        self.stand_ins[number], self.stand_in_ids[id(made)] = made, number
        for key, value in info["plain"]:
            if not (isinstance(key, str) and key.isidentifier() and key[:1] != "_"):
                raise Garbled("an attribute")
            if not callable(getattr(cls, key, None)):
                made.__dict__[key] = self.decode(value, blobs)
        self.fill(made, info, blobs)
        return made

    def fill_module(self, made, info, blobs):
        torch.nn.Module.__init__(made)
        self.fill(made, info["state"], blobs)

    def fill(self, made, info, blobs):
        """Give a module its parameters and parts."""
        for table, names in (("_parameters", True), ("_buffers", False)):
            for name, encoded in info[table]:
                tensor = None if encoded is None else self.decode(encoded, blobs)
                if tensor is not None and not isinstance(tensor, torch.Tensor):
                    raise Garbled("a parameter")
                if tensor is not None and names and not isinstance(tensor, torch.nn.Parameter):
                    requires = encoded[0] == "P" and encoded[2] is True
                    parameter = torch.nn.Parameter(tensor, requires)
                    if encoded[0] == "P" and encoded[1] is not None:
                        self.forget([encoded[1]])
                        self.share(parameter, encoded[1])
                        self.fix(encoded[1])
                    tensor = parameter
                made.__dict__[table][str(name)] = tensor
        for name, encoded in info["_modules"]:
            part = None if encoded is None else self.decode(encoded, blobs)
            if part is not None and not isinstance(part, torch.nn.Module):
                raise Garbled("a module")
            made.__dict__["_modules"][str(name)] = part
        made.__dict__["training"] = info["training"] is True


@cache
def all_names() -> dict[int, tuple[str, str]]:
    """Functions that do not say where they are from: id -> (module, name)."""
    found = {}
    for module in (torch.nn.functional, torch, torch.linalg, torch.special):
        for name, value in vars(module).items():
            if callable(value) and not isinstance(value, type) and name[:1] != "_":
                if getattr(value, "__module__", None) in (None, "torch._C", "torch._C._nn"):
                    found.setdefault(id(value), (module.__name__, name))
    for name, value in vars(torch.Tensor).items():
        if callable(value) and name[:1] != "_":
            found.setdefault(id(value), ("torch", f"Tensor.{name}"))
    return found


# ---- one task


def given_classes(task: Task, steps) -> set[str]:
    return {
        step.node.name
        for step in steps
        if isinstance(step.node, ast.ClassDef) and step.cell not in task.solutions
    }


def their_program(task: Task, sources: dict[str, str], extra: str):
    """What a student's process runs: (cell, text, whether it is the student's), and the classes of
    the notebook that it has as the checks have them. SyntaxError.
    """
    chapter = task.chapter
    steps = chapter.steps((*task.solutions, *task.checks), sources, task.solutions[0], extra)
    mine = {step.node.name for step in task.program() if isinstance(step.node, ast.ClassDef)}
    roots = [
        place
        for place, step in enumerate(steps)
        if step.cell in task.solutions
        or (
            isinstance(step.node, ast.ClassDef)
            and step.node.name in mine
            and step.cell not in task.checks
            and step.cell != "extra"
        )
        or (isinstance(step.node, ast.FunctionDef) and step.node.name in TOGETHER)
    ]
    # a student's cell runs as a whole, so that all of its statements have what they need
    own, before = {step.cell for step in steps if step.cell in sources}, 0
    while True:
        places = needed(steps, roots, [(place, len(steps)) for place in roots])
        if len(places) == before:
            break
        before, cells = len(places), {steps[place].cell for place in places} & own
        roots = sorted({*roots, *(p for p, step in enumerate(steps) if step.cell in cells)})
    found, cells = [], set()
    for place in sorted(places):
        step = steps[place]
        if step.cell == "extra":
            found.append(["extra", ast.unparse(step.node), True, []])
        elif step.cell in sources:
            if step.cell not in cells:
                found.append([step.cell, sources[step.cell], True, shown(step.cell, sources)])
            cells.add(step.cell)
        else:
            found.append([step.cell, ast.unparse(step.node), False, []])
    own = {step.cell for step in steps if step.cell in sources or step.cell == "extra"}
    given = {
        steps[place].node.name
        for place in places
        if isinstance(steps[place].node, ast.ClassDef) and steps[place].cell not in own
    }
    return found, given


def plain(text: str) -> str:
    """A cell as Python; without IPython's own lines only where it is none with them."""
    for version in (text, without_magics(text)):
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            ast.parse(version)
            return version
    return text


def shown(cell: str, sources: dict[str, str]) -> list[int]:
    """Numbers of a cell's statements that only show something: they may fail."""
    body = parsed(cell, sources[cell]).body
    return [number for number, node in enumerate(body) if pruned(node, True) is None]


class Apart:
    """A run of one task with a student's process."""

    def __init__(self, task: Task, sources: dict[str, str], extra: str, door: str, package=None):
        sources = {id: plain(text) for id, text in sources.items()}
        self.task, self.sources, self.extra, self.door = task, sources, extra, door
        self.package: dict[str, str] = package or {}  # modules made of a student's other chapters
        self.changed: set[str] = set()
        self.hidden: frozenset[str] = frozenset()
        self.texts: dict[str, str] | None = None

    def module(self, name: str):
        """A module's text, and whether it is a package; the chapter's own are made of the student's
        cells.
        """
        if not isinstance(name, str) or not name.replace(".", "").replace("_", "").isalnum():
            return None
        path = ROOT.joinpath(*name.split("."))
        short = name.removeprefix("minillama.")
        if short != name and short in {self.task.chapter.exports(id) for id in self.sources}:
            if self.texts is None:
                chapter, theirs = self.task.chapter, list(self.sources)
                try:
                    sources = with_own(chapter, self.sources, self.extra, theirs)
                    self.texts = build_modules(chapter.path, sources)
                except (ExportError, SyntaxError):
                    self.texts = {}
            return (self.texts[short], False) if short in self.texts else None
        if short != name and short in self.package:
            return self.package[short], False
        if name.partition(".")[0] == "course" and name not in (
            "course.check",
            "course.cuda_on_cpu",
        ):
            return None
        if (path / "__init__.py").is_file():
            return (path / "__init__.py").read_text(encoding="utf-8"), True
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py").read_text(encoding="utf-8"), False
        return None

    def run(self, ours: dict, notebook) -> None:
        """Run the checks in `ours`. `changed`: names whose values the student's code changed."""
        task = self.task
        steps, given = their_program(task, self.sources, self.extra)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with connection:
            connection.connect(self.door)
            peer = Grader(connection, task, self.module)
            peer.given, peer.notebook = frozenset(given), notebook
            yours, peer.hidden = self.yours(), self.theirs()
            wrong = peer.ask("start", steps, sorted(peer.hidden), sorted(given), sorted(yours))
            errors = dict(wrong)
            with compiling(peer):
                self.check(peer, ours, errors)

    def yours(self) -> frozenset[str]:
        """Names that the student's cells bind."""
        return frozenset().union(*(self.task.chapter.names(id) for id in self.sources))

    def theirs(self) -> frozenset[str]:
        """The same with the package's modules before them."""
        chapter = self.task.chapter
        return frozenset(
            f"minillama.{chapter.exports(id)}.{name}"
            for id in self.sources
            if chapter.exports(id)
            for name in chapter.names(id)
        ).union(self.hidden)

    def check(self, peer: Grader, ours: dict, errors: dict) -> None:
        task, own, taken = self.task, set(), set()
        for step in task.program():
            if step.cell in task.solutions:
                if isinstance(step.node, ast.Import | ast.ImportFrom):
                    self.execute(step, ours)
                if step.cell not in taken:
                    taken.add(step.cell)
                    names = self.names(step.cell)
                    found = peer.ask("take", sorted(names))
                    if names - set(found) and step.cell in errors:
                        raise errors[step.cell]
                    for name in names - set(found):
                        ours.pop(name, None)
                    ours.update({name: found[name] for name in names & set(found)})
                    own |= names
                continue
            if isinstance(step.node, ast.FunctionDef) and step.node.name in TOGETHER:
                ours.update(peer.ask("take", [step.node.name]))
                continue
            before = {name: contents(value) for name, value in ours.items()} if own else {}
            self.execute(step, ours)
            free = own | step.binds | step.changes
            self.changed |= {
                name
                for name in before
                if name not in free and contents(ours.get(name)) != before[name]
            }

    def names(self, cell: str) -> set[str]:
        """The names that a solution cell binds, those of imports left out."""
        steps = [step for step in self.task.program() if step.cell == cell]
        imports = [s.binds for s in steps if isinstance(s.node, ast.Import | ast.ImportFrom)]
        return set(self.task.chapter.names(cell)) - set().union(*imports)

    def execute(self, step, ours: dict) -> None:
        name = f"{self.task.chapter.path.name} {step.cell}"
        lines = self.task.chapter[step.cell].source.splitlines(keepends=True)
        linecache.cache[name] = (None, None, lines, name)
        exec(compile(ast.Module([step.node], []), name, "exec"), ours)


@contextlib.contextmanager
def compiling(peer: Grader):
    """What the checks compile of a student's C++ is compiled and run over there."""
    from course import cuda_on_cpu

    def emulate(kernel, grid, *values, seed=0):
        fields = [(name, kind.__name__) for name, kind in kernel.problem._fields_]
        rest = {name: value for name, value in vars(kernel).items() if type(value) in (str, int)}
        return peer.ask("emulate", rest, fields, grid, values, seed)

    def refuse(text):
        raise RuntimeError("nothing of a student's is compiled here")

    with patch.multiple(cuda_on_cpu, emulate=emulate, compile_text=refuse):
        yield


def run_apart(
    task: Task, sources: dict[str, str], extra: str, door: str, package=None, hidden=frozenset()
) -> Outcome:
    """Run one task with a student's cells; never raises for what they do.

    package: texts of modules that are the student's, too; hidden: the names that they define.
    """
    folder = task.chapter.path.parent
    run = Apart(task, sources, extra, door, package)
    run.hidden = frozenset(hidden)
    try:
        with undisturbed(), scene(folder) as module:
            run.run(vars(module), module)
        if run.changed and (changed := run.changed - changed_by_reference(task, folder)):
            return failed(
                task, f"your code changes `{min(changed)}`, which it was only given: work on a copy"
            )
    except SyntaxError as error:
        if isinstance(error, Theirs):
            return failed(task, explain(error, {}))
        return failed(task, f"line {error.lineno}: {error.msg}" if error.lineno else str(error))
    except Garbled as error:
        return failed(task, f"not graded: {error}")
    except (Exception, SystemExit) as error:
        return failed(task, explain(error, vars(module)))
    return Outcome(task.id, True, task.points)


def explain(error: BaseException, ours: dict) -> str:
    """One line: the check's own words, or the student's line that went wrong."""
    import traceback

    words = " ".join(str(error)[:500].split())
    if isinstance(error, NotImplementedError):
        return f"{words or 'the exercise'} is {MISSING}"
    place = getattr(error, "place", None) if isinstance(error, Theirs) else None
    if isinstance(error, AssertionError) and not (place and place[2]):
        frames = traceback.extract_tb(error.__traceback__)
        return words or f"`{frames[-1].line or 'an assertion'}` does not hold"
    missing = next((name for name, value in ours.items() if value is Ellipsis), None)
    if missing:
        return f"`{missing}` is {MISSING}"
    kind = type(error).__name__ + (f": {words}" if words else "")
    return f"line {place[0]} of your cell, `{place[1]}`: {kind}" if place else kind

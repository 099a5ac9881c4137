"""The process in which a student's notebook runs: it knows no check and no expected value.

python student.py FOLDER    started by course/apart.py inside its confinement

It waits at the socket that it inherits; for each connection a fork of it runs one student's cells
for one task and answers the grader's calls. Packages come as text with the first message, without
the modules that the student is to write.
"""

import ast
import contextlib
import ctypes
import importlib
import importlib.abc
import importlib.util
import linecache
import os
import select
import signal
import socket
import sys
import tempfile
import traceback
import types
from pathlib import Path, PurePath

import numpy as np
import torch

from course.wire import (
    DTYPES,
    Garbled,
    Peer,
    set_state,
    tensor_of,
)


YOURS = "your cell"  # what a student's code is called in a traceback
NEWUSER, NEWNS, NEWIPC, NEWUTS, NEWPID, NEWNET = (
    0x10000000,
    0x00020000,
    0x08000000,
    0x04000000,
    0x20000000,
    0x40000000,
)


class Texts(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The package's modules, whose texts the grader gives when they are imported."""

    def __init__(self, peer):
        self.peer, self.texts = peer, {}

    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in ("minillama", "course") or name in ("course.wire", "course.student"):
            return None
        found = self.peer.ask("module", name)
        if found is None:
            if root == "course":
                return None
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        self.texts[name], package = found
        return importlib.util.spec_from_loader(name, self, is_package=package)

    def exec_module(self, module):
        name = module.__name__
        module.__file__ = file = f"/box/{name.replace('.', '/')}.py"
        text = self.texts.pop(name)
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        code = compile(text, file, "exec", dont_inherit=True)
        if name == "minillama":  # all of the package, only when it is asked for
            module.__getattr__ = late(module, code)
        else:
            exec(code, vars(module))
        if name == "minillama.checkpoints.hub":
            module.find = lambda name: None  # no fetched weights


def late(module, code):
    """A package's __getattr__ that runs its __init__ when a name is missing."""

    def get(name):
        if name[:2] == "__" and name != "__all__":
            raise AttributeError(name)
        if vars(module).pop("__getattr__", None) is not None:
            exec(code, vars(module))
        if name not in vars(module):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return vars(module)[name]

    return get


class Student(Peer):
    """The student's end of the pipe."""

    def __init__(self, connection):
        super().__init__(connection, 1)
        self.main = types.ModuleType("__main__")
        self.yours: frozenset[str] = frozenset()

    def new(self, value):
        return self.share(value) if self.lending else None

    # ---- what it is asked for

    def do(self, op: str, values: list):
        if op == "set":
            target, name, *value = values
            setattr(target, name, value[0]) if value else delattr(target, name)
            return None
        if op == "equal":
            return bool(values[0] == values[1])
        if op == "emulate":
            return emulate(*values)
        if op == "start":
            return self.start(*values)
        if op == "take":
            (names,) = values
            return {name: vars(self.main)[name] for name in names if name in vars(self.main)}
        return super().do(op, values)

    def start(self, steps, hidden, given, yours):
        """Run a notebook's cells; (cell, error) of those that failed."""
        sys.meta_path.insert(0, Texts(self))
        self.hidden, self.given, self.yours = map(frozenset, (hidden, given, yours))
        sys.modules["__main__"] = sys.modules["notebook"] = self.notebook = self.main
        space = vars(self.main)
        space["display"] = lambda *things: None
        torch.manual_seed(0)
        flags, wrong = 0, []
        for cell, text, own, shown in steps:
            try:
                flags = run_cell(cell, text, own, space, flags, shown)
            except BaseException as error:
                wrong.append((cell, error))
        return wrong

    # ---- values

    def encode_any_tensor(self, tensor, blobs):
        if tensor.device.type == "meta":
            return ["M", str(tensor.dtype), list(tensor.shape)]
        n = self.new(tensor)
        kind = type(tensor) is torch.nn.Parameter
        data = self.encode_tensor(tensor, blobs)
        return ["t", n, tensor.requires_grad, kind, *data]

    def encode_object(self, value, blobs):
        if isinstance(value, bool | int):
            return self.encode(int(value), blobs)
        if isinstance(value, float):
            return self.encode(float(value), blobs)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, PurePath):
            return ["path", str(value)]
        if isinstance(value, tuple):
            items = [self.encode(each, blobs) for each in tuple(value)]
            fields = getattr(type(value), "_fields", None)
            return ["nt", type(value).__name__, list(fields), items] if fields else ["u", items]
        cls = type(value)
        if isinstance(value, torch.nn.Module) and self.both_have(cls):
            module, name = self.name_of(cls)
            return ["om", self.own(value), module, name, self.module(value, blobs)]
        if self.both_have(cls) and not isinstance(value, type):
            module, name = self.name_of(cls)
            return ["o", self.new(value), module, name, self.encode_contents(value, blobs)]
        return self.remote(value, blobs)

    def name_of(self, cls):
        return ("notebook" if cls.__module__ == "__main__" else cls.__module__), cls.__qualname__

    def both_have(self, cls: type) -> bool:
        """Whether the grader has the same class, which is none of the student's."""
        module, name = self.name_of(cls)
        if module == "notebook":
            return name in self.given and name not in self.yours
        if not isinstance(module, str) or self.is_hidden(module, name):
            return False
        if module.startswith("torch.nn.modules."):
            return issubclass(cls, torch.nn.Module)
        return module.startswith("minillama.")

    def describe(self, value, blobs):
        found = super().describe(value, blobs)
        if isinstance(value, torch.nn.Module):
            found["parameters"] = True
            found["state"] = self.module(value, blobs)
        return found

    def module(self, module: torch.nn.Module, blobs) -> dict:
        """A module's parameters, which are held on both sides, and its parts."""
        tables, plain = {}, []
        for table in ("_parameters", "_buffers"):
            rows = []
            for name, tensor in module.__dict__[table].items():
                if tensor is None:
                    rows.append([name, None])
                elif (n := self.ids.get(id(tensor))) is not None:
                    rows.append([name, ["ref", n]])
                else:
                    n = None
                    if tensor.device.type != "meta":
                        self.lent.append([])
                        n = self.share(tensor)
                        self.lent.pop()
                    data = (
                        self.encode_tensor(tensor, blobs)
                        if n is not None
                        else [str(tensor.dtype), list(tensor.shape), None]
                    )
                    rows.append([name, ["P", n, tensor.requires_grad, *data]])
                    if n is not None:
                        self.fix(n)
            tables[table] = rows
        tables["_modules"] = [
            [name, None if part is None else self.encode(part, blobs)]
            for name, part in module.__dict__["_modules"].items()
        ]
        if self.both_have(type(module)):
            for name, value in module.__dict__.items():
                if name[:1] != "_" and not callable(value):
                    plain.append([name, self.encode(value, blobs)])
        return {**tables, "plain": plain, "training": module.training is True}

    def place(self, problem):
        found, trace = None, problem.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            if frame.f_code.co_filename.startswith(YOURS):
                line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno).strip()
                found = [trace.tb_lineno, line[:200], trace.tb_next is None]
            trace = trace.tb_next
        return found

    def decode_t(self, blobs, n, requires, kind, dtype, shape, blob):
        return tensor_of(blobs[blob], DTYPES[dtype], shape)

    def decode_T(self, blobs, n, storage, dtype, offset, size, stride, requires, kind, grad):
        sid, blob = storage
        if blob is not None:
            self.keep(
                torch.frombuffer(blobs[blob], dtype=torch.uint8).clone().untyped_storage()
                if len(blobs[blob])
                else torch.UntypedStorage(0),
                sid,
            )
        with torch.no_grad():
            made = torch.empty(0, dtype=DTYPES[dtype])
            made.set_(self.shared[sid].thing, offset, size, stride)
        if kind:
            made = torch.nn.Parameter(made, requires_grad=requires)
        elif requires:
            made.requires_grad_(True)
        if grad is not None:
            made.grad = self.decode_tensor(grad, blobs)
        return self.keep(made, n)

    def decode_M(self, blobs, n, dtype, shape, requires, kind):
        made = torch.empty(shape, dtype=DTYPES[dtype], device="meta")
        return self.keep(torch.nn.Parameter(made, requires) if kind else made, n)

    def decode_path(self, blobs, place, watched):
        path = Path(place)
        if watched:
            self.roots.setdefault(place, {})
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                if watched == "folder":
                    path.mkdir(exist_ok=True)
        return path

    def decode_k(self, blobs, module, name):
        found = importlib.import_module(module)
        for part in name.split(".") if name else ():
            found = getattr(found, part)
        return found

    def decode_o(self, blobs, n, module, name, pairs):
        cls = self.decode_k(blobs, module, name)
        made = self.keep(cls.__new__(cls), n)
        set_state(made, {key: self.decode(value, blobs) for key, value in pairs})
        return self.fixed(made, n)

    def decode_re(self, blobs, n, maker, args, state, items, pairs):
        made = self.decode(maker, blobs)(*self.decode(args, blobs))
        if state is not None:
            state = self.decode(state, blobs)
            if hasattr(made, "__setstate__"):
                made.__setstate__(state)
            else:
                slots = {}
                if isinstance(state, tuple) and len(state) == 2:
                    state, slots = state
                set_state(made, {**(state or {}), **(slots or {})})
        for each in items:
            made.append(self.decode(each, blobs))
        for key, value in pairs:
            made[self.decode(key, blobs)] = self.decode(value, blobs)
        return made

    def take_news(self, message, blobs):
        super().take_news(message, blobs)
        if "rng" in message:
            import random

            torch_state, numpy_state, python = (self.decode(v, blobs) for v in message["rng"])
            torch.set_rng_state(torch.frombuffer(bytearray(torch_state), dtype=torch.uint8))
            kind, keys, *rest = numpy_state
            np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))
            random.setstate(python)
        if "modes" in message:
            self.modes = message["modes"]

    def answer(self, message, blobs):
        grad, inference, dtype = self.modes or (True, False, "torch.float32")
        torch.set_default_dtype(DTYPES[dtype])
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            super().answer(message, blobs)


def emulate(rest, fields, grid, values, seed) -> None:
    """Compile and run a kernel's C++ here. rest: what the kernel holds besides its Problem."""
    from course import cuda_on_cpu
    from minillama.kernels.cuda import Kernel

    kinds = [(name, getattr(ctypes, kind)) for name, kind in fields]
    kernel = Kernel.__new__(Kernel)
    kernel.problem = type("Problem", (ctypes.Structure,), {"_fields_": kinds})
    kernel.loaded = {}
    vars(kernel).update(rest)
    cuda_on_cpu.emulate(kernel, tuple(grid), *values, seed=seed)


def run_cell(cell: str, text: str, own: bool, space: dict, flags: int, shown: list) -> int:
    """Run a cell; the compiler's flags of `from __future__`, which hold for the cells after it.

    shown: numbers of the statements that only show something, and may fail.
    """
    name = f"{YOURS} {cell}" if own else f"given cell {cell}"
    linecache.cache[name] = (None, None, text.splitlines(keepends=True), name)
    try:
        tree = ast.parse(text, name)
    except SyntaxError:
        text = without_magics(text)
        tree = ast.parse(text, name)
    flags |= compile(tree, name, "exec", flags, True).co_flags & 0xFFE0000
    for number, node in enumerate(tree.body):
        code = compile(ast.Module([node], []), name, "exec", flags, True)
        try:
            exec(code, space)
        except Exception:
            if number not in shown:
                raise
    return flags


def without_magics(text: str) -> str:
    """A cell without IPython's own lines, which count as `pass`."""
    lines = []
    for line in text.split("\n"):
        bare = line.lstrip()
        magic = bare[:1] in ("%", "!", "?") or bare.rstrip().endswith("?")
        lines.append(line[: len(line) - len(bare)] + "pass" if magic and bare[:2] != "%%" else line)
        if bare[:2] == "%%":
            lines[-1] = "pass"
    return "\n".join(lines)


def shut(libc) -> None:
    """This fork alone: no other fork's files, processes or messages, and no way back."""
    user, group = os.getuid(), os.getgid()
    libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, without which /proc/self cannot be written
    if libc.unshare(NEWUSER | NEWNS | NEWIPC | NEWUTS | NEWNET | NEWPID):
        raise OSError(ctypes.get_errno(), "no namespace of its own")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    for place in (b"/tmp", b"/dev/shm"):
        if os.path.isdir(place) and libc.mount(b"tmpfs", place, b"tmpfs", 6, b"size=512m"):
            raise OSError(ctypes.get_errno(), "no folder of its own")


def drop(libc) -> None:
    """No capability, nor a way to one."""
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    for number in range(64):
        libc.prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)())


def limit(memory: int, seconds: int) -> None:
    import resource

    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    used *= resource.getpagesize()
    wanted = {"AS": used + memory, "CPU": seconds, "FSIZE": 200 << 20, "CORE": 0, "NPROC": 128}
    for name, value in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def watch(connection, child: int) -> None:
    """Wait for a process, and end it when the grader has gone."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if poll.poll(50):
            for end in (os.killpg, os.kill):
                with contextlib.suppress(OSError):
                    end(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
    os._exit(0)


def serve(connection, memory: int, seconds: int, alone: bool) -> None:
    """One student's process, from its birth to its end."""
    libc = ctypes.CDLL(None, use_errno=True)
    if alone:
        shut(libc)
    if child := os.fork():  # the first process of its namespace: with it all others of it end
        watch(connection, child)
    os.setsid() if not alone else None
    drop(libc)
    os.chdir(tempfile.gettempdir())
    os.makedirs("notebooks", exist_ok=True)
    os.chdir("notebooks")
    limit(memory, seconds)
    student = Student(connection)
    while True:
        try:
            message, blobs = student.receive()
        except Garbled:
            return  # the grader has heard enough
        student.take_news(message, blobs)
        student.answer(message, blobs)


def main() -> None:
    """Fork for each connection, for ever."""
    number, memory, seconds, alone = map(int, sys.argv[1:])
    listener = socket.socket(fileno=number)
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None, use_errno=True)
    if os.getuid() == 0 and os.environ.get("MINILLAMA_NOBODY"):
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    libc.prctl(4, 0, 0, 0, 0)  # not dumpable: a fork cannot look into this process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            try:
                listener.close()
                os.dup2(nothing, 2) if not os.environ.get("MINILLAMA_DEBUG") else None
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                serve(connection, memory, seconds, bool(alone))
            except BaseException:
                traceback.print_exc()  # to nowhere, except while the course's authors look for it
            finally:
                os._exit(1)
        connection.close()


if __name__ == "__main__":
    main()

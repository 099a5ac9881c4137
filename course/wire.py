"""Values between the grader and a student's process: plain data through a pipe, and stand-ins.

A Peer is one end. Numbers, strings, containers, tensors and arrays cross as copies; what is changed
in place on one side is changed on the other before it goes on. Functions, generators and objects of
a class that the other side does not have stay where they are: there is a stand-in for each, whose
calls come back. No pickle. The grader's end (course/apart.py) takes only what `strict` lets in.
"""

import builtins
import collections
import contextlib
import dataclasses
import itertools
import json
import keyword
import math
import operator
import os
import random
import stat
import struct
import sys
import traceback
import types
import zlib
from pathlib import Path

import numpy as np
import torch


TEXT, DATA, BLOBS = 64 << 20, 1 << 30, 100_000  # bytes of a message's JSON, of its data; pieces
HEAD = struct.Struct("<QQ")
PLAIN = (type(None), bool, str)
SIMPLE = (int, float, str, bool, bytes, tuple)
DTYPES = {str(v): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
SPECIAL = """call iter next len getitem setitem delitem contains enter exit add radd sub rsub mul
rmul truediv rtruediv matmul neg pow lt le gt ge bool int float index""".split()
SPECIAL = {f"__{name}__" for name in SPECIAL}
CONTAINERS = {list: "l", dict: "d", set: "s", collections.deque: "q"}
CONTAINERS |= {collections.OrderedDict: "d", collections.Counter: "d"}
CONTAINERS |= {collections.defaultdict: "d", bytearray: "y"}
KINDS = {"dict": dict, "OrderedDict": collections.OrderedDict, "Counter": collections.Counter}
HOOKS = ("_forward", "_backward", "_state_dict", "_load_state", "_is_full", "_non_persistent")


class Garbled(Exception):
    """The other side sent what it never sends, or ended."""


class Theirs(Exception):
    """Base of errors that were raised on the other side. `place`: (line number, its text)."""

    place = None


@dataclasses.dataclass
class Entry:
    """An object that both sides hold; `last`: what it held when both were equal."""

    thing: object
    last: object


def digest(data) -> tuple[int, int]:
    return zlib.crc32(data), len(data)


def raw(storage: torch.UntypedStorage) -> torch.Tensor:
    """A storage's bytes, as a tensor that shares them."""
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def bytes_of(tensor: torch.Tensor) -> bytes:
    """A dense tensor's bytes, row by row."""
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def tensor_of(data: bytes, dtype: torch.dtype, shape) -> torch.Tensor:
    """Garbled if the bytes are not that tensor's."""
    if any(type(n) is not int or n < 0 for n in shape):
        raise Garbled("a tensor's shape")
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise Garbled("a tensor's bytes")
    if not data:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(tuple(shape))


def contents(thing, by_storage: bool = False):  # noqa: C901
    """What shows whether a shared thing has changed; holds what it holds.

    by_storage: a tensor's numbers are those of its storage, which is shared by itself.
    """
    if isinstance(thing, torch.Tensor):
        grad = thing.grad if thing.is_leaf else None
        storage = thing.untyped_storage()._cdata if by_storage else None
        return (
            thing.dtype,
            tuple(thing.shape),
            (storage, thing.storage_offset()) if by_storage else digest(bytes_of(thing)),
            thing.requires_grad and thing.is_leaf,
            None if grad is None else digest(bytes_of(grad)),
        )
    if isinstance(thing, torch.UntypedStorage):
        return digest(raw(thing).numpy())
    if isinstance(thing, np.ndarray):
        return digest(np.ascontiguousarray(thing).view(np.uint8).reshape(-1))
    if isinstance(thing, torch.Generator):
        return digest(thing.get_state().numpy())
    if isinstance(thing, random.Random):
        return thing.getstate()
    if isinstance(thing, bytearray):
        return bytes(thing)
    if isinstance(thing, dict):
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, (list, collections.deque)):
        return list(thing)
    if isinstance(thing, set):
        return sorted(thing, key=id)
    state = state_of(thing)
    if isinstance(thing, torch.nn.Module):  # its tables, too
        tables = {k: v for k, v in state.items() if k[:1] == "_" and isinstance(v, dict)}
        state |= {k: None for k in tables}
        state |= {(k, name): v for k, table in tables.items() for name, v in table.items()}
    return [part for pair in state.items() for part in pair]


def untouched(thing, last) -> bool:
    """Whether a container holds the very objects that it held; False for other things."""
    if type(thing) is list:
        return len(thing) == len(last) and all(map(operator.is_, thing, last))
    if type(thing) is dict:
        parts = itertools.chain(thing.keys(), thing.values())
        return 2 * len(thing) == len(last) and all(map(operator.is_, parts, last))
    return False


def equal(a, b) -> bool:
    """Whether two `contents` are the same."""
    if type(a) is not list or type(b) is not list:
        return a == b
    return len(a) == len(b) and all(
        x is y or (type(x) is type(y) and type(x) in SIMPLE and x == y)
        for x, y in zip(a, b, strict=True)
    )


def state_of(thing) -> dict:
    """An object's attributes, those in slots too."""
    found = dict(getattr(thing, "__dict__", {}))
    for cls in type(thing).__mro__:
        for name in cls.__dict__.get("__slots__", ()) if cls is not object else ():
            with contextlib.suppress(AttributeError):
                found[name] = object.__getattribute__(thing, name)
    return found


def set_state(thing, state: dict) -> None:
    for name, value in state.items():
        object.__setattr__(thing, name, value) if not hasattr(thing, "__dict__") else (
            thing.__dict__.__setitem__(name, value)
        )


class Peer:
    """One end of the pipe. first: 0 here and 1 there, so that both number what they share."""

    strict = False
    tags = frozenset(
        "ref E N i b c z u f nt dt dv sl rg n a y g l s q d m r x t T M k o re path".split()
    )

    def __init__(self, connection, first: int):
        self.connection, self.next, self.first = connection, first + 2, first
        self.reader = connection.makefile("rb", 1 << 16)
        self.shared: dict[int, Entry] = {}
        self.ids: dict[object, int] = {}
        self.owned: dict[int, object] = {}
        self.owned_ids: dict[int, int] = {}
        self.stand_ins: dict[int, object] = {}
        self.stand_in_ids: dict[int, int] = {}
        self.lending, self.borrowed = False, []
        self.lent: list[list[int]] = []
        # names, with their modules, that are not the same on both sides: the student's
        self.hidden: frozenset[str] = frozenset()
        self.given: frozenset[str] = frozenset()  # classes of the notebook that both have
        self.notebook = None
        # paths that both sides know: here -> what lay there when both were equal
        self.roots: dict[str, dict[str, tuple]] = {}
        self.rng = None
        self.modes = None

    # ---- the pipe

    def send(self, message: dict, blobs: list[bytes]) -> None:
        text = json.dumps(message).encode("utf-8", "surrogatepass")
        sizes = struct.pack(f"<{len(blobs)}Q", *map(len, blobs))
        try:
            self.connection.sendall(
                b"".join((HEAD.pack(len(text), len(blobs)), sizes, text, *blobs))
            )
        except OSError:
            raise Garbled("the student's process ended") from None

    def exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            try:
                count = self.reader.readinto(view[got:])
            except OSError:
                count = 0
            if not count:
                raise Garbled("the student's process ended")
            got += count
        return data

    def receive(self) -> tuple[dict, list[bytearray]]:
        size, count = HEAD.unpack(self.exactly(HEAD.size))
        if size > TEXT or count > BLOBS:
            raise Garbled("a message that is too long")
        sizes = struct.unpack(f"<{count}Q", self.exactly(8 * count))
        if sum(sizes) > DATA:
            raise Garbled("a message that is too long")
        text = self.exactly(size)
        blobs = [self.exactly(each) for each in sizes]
        try:
            message = json.loads(text.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            raise Garbled("no message") from None
        if not isinstance(message, dict):
            raise Garbled("no message")
        return message, blobs

    # ---- asking and answering

    def ask(self, op: str, *values):
        """Have the other side do something; what it gives back, or its error. While it works it may
        ask, too.
        """
        mine: list[int] = []
        self.lent.append(mine)
        try:
            blobs: list[bytes] = []
            self.lending = True
            encoded = [self.encode(value, blobs) for value in values]
            self.lending = False
            self.send({"op": op, "v": encoded, **self.news(blobs)}, blobs)
            while True:
                message, blobs = self.receive()
                with self.taking():
                    self.take_news(message, blobs)
                if "op" in message:
                    self.answer(message, blobs)
                    continue
                with self.taking():
                    value = self.decode(message.get("v"), blobs)
                if message.get("error"):
                    raise value
                return value
        finally:
            self.lent.pop()
            if self.strict is False:
                self.forget(mine)

    @contextlib.contextmanager
    def taking(self):
        """Whatever goes wrong with a message is the message's fault."""
        try:
            yield
        except (Garbled, MemoryError):
            raise
        except Exception as error:
            if "MINILLAMA_DEBUG" in os.environ:
                traceback.print_exc()
            raise Garbled(f"a message that makes no sense ({type(error).__name__})") from None

    def answer(self, message: dict, blobs: list) -> None:
        """Do what the other side asked for, and send what came of it."""
        out: list[bytes] = []
        start = len(self.borrowed)
        try:
            with self.taking():
                values = [self.decode(value, blobs) for value in message["v"]]
            value, error = self.do(message["op"], values), False
            encoded = self.encode(value, out)
        except Garbled:
            raise
        except BaseException as problem:
            out, error = [], True
            encoded = self.error(problem)
        reply = {"v": encoded, "error": error, **self.news(out, asking=False)}
        if self.strict:  # what a student's process lends is lent for one call
            self.forget(self.borrowed[start:])
            del self.borrowed[start:]
        else:
            reply["gone"] = self.sweep()
        try:
            self.send(reply, out)
        except (ValueError, TypeError, RecursionError, MemoryError) as problem:
            self.send({"v": self.error(problem), "error": True, "u": []}, [])

    def do(self, op: str, values: list):
        """Deeds that the other side may ask for."""
        if op == "call":
            target, args, kwargs = values
            return target(*args, **kwargs)
        if op == "special":
            target, name, args = values
            if name not in SPECIAL:
                raise Garbled("a deed of no kind")
            if name == "__next__":
                return next(target)
            if name == "__iter__":
                return iter(target)
            return getattr(target, name)(*args)
        if op == "get":
            target, name = values
            return self.get(target, name)
        raise Garbled("a deed of no kind")

    def get(self, target, name: str):
        return getattr(target, name)

    def forget(self, numbers) -> None:
        for n in numbers:
            entry = self.shared.pop(n, None)
            if entry is not None:
                self.ids.pop(self.key(entry.thing), None)

    def sweep(self) -> list[int]:
        """Numbers of what nobody here holds any more."""
        gone: list[int] = []
        while True:
            found = []
            for n, entry in self.shared.items():
                if n % 2 == self.first:
                    continue
                if isinstance(entry.thing, torch.UntypedStorage):
                    idle = torch._C._storage_Use_Count(entry.thing._cdata) <= 1
                else:
                    idle = sys.getrefcount(entry.thing) <= 2
                if idle:
                    found.append(n)
            if not found:
                return gone
            self.forget(found)
            gone += found

    # ---- what both hold

    def key(self, thing):
        if isinstance(thing, torch.UntypedStorage):
            return "storage", thing._cdata
        return id(thing)

    def share(self, thing, n: int | None = None) -> int:
        if n is None:
            n, self.next = self.next, self.next + 2
            if self.lent:
                self.lent[-1].append(n)
        self.shared[n] = Entry(thing, None)
        self.ids[self.key(thing)] = n
        return n

    def fix(self, n: int) -> None:
        self.shared[n].last = contents(self.shared[n].thing, not n % 2)

    def news(self, blobs: list, asking: bool = True) -> dict:  # noqa: C901
        """What has changed here in things that both hold, and settings."""
        updates, done = [], set()
        while True:
            todo = [n for n in self.shared if n not in done]
            if not todo:
                break
            for n in todo:
                done.add(n)
                entry = self.shared[n]
                if entry.last is not None and untouched(entry.thing, entry.last):
                    continue
                now = contents(entry.thing, not n % 2)
                if entry.last is None:
                    entry.last = now
                elif not equal(now, entry.last):
                    updates.append([n, self.encode_contents(entry.thing, blobs)])
                    entry.last = now
        found = {"u": updates}
        if self.roots:
            found["files"] = self.changed_files(blobs)
        if not (self.strict and asking):
            return found
        rng = [digest(torch.get_rng_state().numpy()), np.random.get_state()[1:3], random.getstate()]
        if self.rng is None or not (
            rng[0] == self.rng[0]
            and rng[2] == self.rng[2]
            and rng[1][1] == self.rng[1][1]
            and (rng[1][0] == self.rng[1][0]).all()
        ):
            self.rng = rng
            state = np.random.get_state()
            found["rng"] = [
                self.encode_plain(value, blobs)
                for value in (
                    torch.get_rng_state().numpy().tobytes(),
                    (state[0], state[1].tobytes(), *state[2:]),
                    random.getstate(),
                )
            ]
        modes = [
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            str(torch.get_default_dtype()),
        ]
        if modes != self.modes:
            found["modes"] = self.modes = modes
        return found

    def take_news(self, message: dict, blobs: list) -> None:
        for n, encoded in message.get("u", ()):
            entry = self.shared[n]
            self.decode_contents(entry, encoded, blobs)
        for n, _ in message.get("u", ()):
            self.fix(n)
        for place, names in message.get("files", ()):
            self.take_files(place, names, blobs)
        for n in message.get("gone", ()):
            if n % 2 == self.first:
                self.forget([n])

    # ---- files below a path that was handed over

    def changed_files(self, blobs: list) -> list:
        """[path, [[name, blob], ...]] of regular files that have changed below the known paths."""
        found = []
        for root, known in self.roots.items():
            now, rows = {}, []
            for name, path in files_below(root):
                data = path.read_bytes()
                now[name] = digest(data)
                if known.get(name) != now[name]:
                    rows.append([name, self.blob(data, blobs)])
            self.roots[root] = now
            if rows:
                found.append([self.outside(root), rows])
        return found

    def take_files(self, place: str, names: list, blobs: list) -> None:
        root = self.inside_path(place)
        if not self.strict:
            self.roots.setdefault(root, {})
        if root not in self.roots:
            raise Garbled("files that nobody asked for")
        for name, blob in names:
            parts = Path(name).parts
            if ".." in parts or Path(name).is_absolute() or "\0" in name:
                raise Garbled("a file elsewhere")
            path = Path(root, *parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blobs[blob])
            self.roots[root][name] = digest(blobs[blob])

    def outside(self, place: str) -> str:
        """A path as the other side is told it: as if temporary files lay in /tmp here, too."""
        return place

    def inside_path(self, place: str) -> str:
        return place

    # ---- encoding

    def encode_plain(self, value, blobs: list):
        return self.encode(value, blobs)

    def encode_contents(self, thing, blobs: list):
        if isinstance(thing, torch.Tensor):
            grad = thing.grad if thing.is_leaf else None
            return [
                self.encode_tensor(thing, blobs),
                thing.requires_grad and thing.is_leaf,
                None if grad is None else self.encode_tensor(grad, blobs),
            ]
        if isinstance(thing, torch.UntypedStorage):
            return self.blob(raw(thing).numpy().tobytes(), blobs)
        if isinstance(thing, np.ndarray):
            return self.blob(thing.tobytes(), blobs)
        if isinstance(thing, torch.Generator):
            return self.blob(thing.get_state().numpy().tobytes(), blobs)
        if isinstance(thing, bytearray):
            return self.blob(bytes(thing), blobs)
        if isinstance(thing, random.Random):
            return self.encode(thing.getstate(), blobs)
        if isinstance(thing, dict):
            return [[self.encode(k, blobs), self.encode(v, blobs)] for k, v in thing.items()]
        if isinstance(thing, (list, set, collections.deque)):
            return [self.encode(each, blobs) for each in thing]
        return [[name, self.encode(v, blobs)] for name, v in self.sent_state(thing).items()]

    def decode_contents(self, entry: Entry, encoded, blobs: list) -> None:  # noqa: C901, PLR0912
        thing = entry.thing
        if isinstance(thing, torch.Tensor):
            data, requires, grad = encoded
            with torch.no_grad():
                new = self.decode_tensor(data, blobs)
                if new.dtype == thing.dtype and new.shape == thing.shape:
                    thing.data.copy_(new)
                else:
                    thing.data = new
                if thing.is_leaf and thing.dtype.is_floating_point:
                    thing.requires_grad_(requires is True)
                thing.grad = None if grad is None else self.decode_tensor(grad, blobs)
        elif isinstance(thing, torch.UntypedStorage):
            target, data = raw(thing), blobs[encoded]
            if len(data) != len(target):
                raise Garbled("a tensor's bytes")
            with torch.inference_mode(target.is_inference()):
                target.copy_(torch.frombuffer(data, dtype=torch.uint8))
        elif isinstance(thing, np.ndarray):
            thing[...] = np.frombuffer(blobs[encoded], thing.dtype).reshape(thing.shape)
        elif isinstance(thing, torch.Generator):
            self.set_generator(thing, blobs[encoded])
        elif isinstance(thing, bytearray):
            thing[:] = blobs[encoded]
        elif isinstance(thing, random.Random):
            self.set_random(thing, self.decode(encoded, blobs))
        elif isinstance(thing, dict):
            pairs = [(self.decode(k, blobs), self.decode(v, blobs)) for k, v in encoded]
            thing.clear()
            thing.update(pairs)
        elif isinstance(thing, (list, collections.deque)):
            items = [self.decode(each, blobs) for each in encoded]
            thing.clear()
            thing.extend(items)
        elif isinstance(thing, set):
            items = [self.decode(each, blobs) for each in encoded]
            thing.clear()
            thing.update(items)
        else:
            state = {name: self.decode(v, blobs) for name, v in encoded}
            for name in set(getattr(thing, "__dict__", ())) - set(state):
                if name in self.sent_state(thing):
                    del thing.__dict__[name]
            set_state(thing, state)

    def set_generator(self, generator: torch.Generator, state: bytes) -> None:
        generator.set_state(torch.frombuffer(state, dtype=torch.uint8))

    def set_random(self, generator: random.Random, state) -> None:
        generator.setstate(state)

    def sent_state(self, thing) -> dict:
        return state_of(thing)

    def blob(self, data: bytes, blobs: list) -> int:
        blobs.append(data)
        return len(blobs) - 1

    def encode_tensor(self, tensor: torch.Tensor, blobs: list):
        return [str(tensor.dtype), list(tensor.shape), self.blob(bytes_of(tensor), blobs)]

    def decode_tensor(self, encoded, blobs: list) -> torch.Tensor:
        dtype, shape, blob = encoded
        return tensor_of(blobs[blob], DTYPES[dtype], shape)

    def encode(self, value, blobs: list):
        if type(value) in PLAIN:
            return value
        if type(value) is int:
            return value if abs(value) < 1 << 63 else ["i", hex(value)]
        if type(value) is float:
            return value
        if isinstance(value, Own):
            return ["m", value.number]
        if (number := self.stand_in_ids.get(id(value))) is not None:
            return ["m", number]
        known = self.ids.get(id(value))
        if known is not None and self.shared[known].thing is value:
            return ["ref", known]
        return self.encode_more(value, blobs)

    def encode_more(self, value, blobs: list):  # noqa: C901, PLR0912
        if value is Ellipsis:
            return ["E"]
        if value is NotImplemented:
            return ["N"]
        if isinstance(value, bytes):
            return ["b", self.blob(bytes(value), blobs)]
        if type(value) is complex:
            return ["c", value.real, value.imag]
        if isinstance(value, torch.Size):
            return ["z", list(value)]
        if type(value) in (tuple, frozenset):
            tag = "u" if type(value) is tuple else "f"
            return [tag, [self.encode(each, blobs) for each in value]]
        if isinstance(value, torch.Tensor):
            return self.encode_any_tensor(value, blobs)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            plain = np.asarray(value)
            n = self.new(value)
            return ["a", n, plain.dtype.str, list(plain.shape), self.blob(plain.tobytes(), blobs)]
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return ["n", value.dtype.str, self.blob(value.tobytes(), blobs)]
        if type(value) in CONTAINERS:
            return self.encode_container(value, blobs)
        if isinstance(value, torch.dtype):
            return ["dt", str(value)]
        if isinstance(value, torch.device):
            return ["dv", str(value)]
        if type(value) is slice:
            return ["sl", *(self.encode(v, blobs) for v in (value.start, value.stop, value.step))]
        if type(value) is range:
            return ["rg", value.start, value.stop, value.step]
        if isinstance(value, torch.Generator) and value.device.type == "cpu":
            n = self.new(value)
            return ["g", n, self.blob(value.get_state().numpy().tobytes(), blobs)]
        if isinstance(value, BaseException):
            return self.error(value)
        return self.encode_object(value, blobs)

    def encode_container(self, value, blobs: list):
        tag, n = CONTAINERS[type(value)], self.new(value)
        if tag == "y":
            return ["y", n, self.blob(bytes(value), blobs)]
        if tag == "q":
            return ["q", n, value.maxlen, self.encode_contents(value, blobs)]
        if tag == "d":
            kind, default = type(value).__name__, None
            if kind == "defaultdict":
                default = self.encode(value.default_factory, blobs)
            return ["d", n, kind, default, self.encode_contents(value, blobs)]
        return [tag, n, self.encode_contents(value, blobs)]

    def new(self, value) -> int | None:
        """A number under which both sides hold a thing from now on, or None: only a copy goes."""
        return self.share(value)

    def encode_any_tensor(self, tensor: torch.Tensor, blobs: list):
        raise NotImplementedError

    def encode_object(self, value, blobs: list):
        raise NotImplementedError

    def own(self, value) -> int:
        """The number of something that stays here."""
        found = self.owned_ids.get(id(value))
        if found is None:
            found = self.owned_ids[id(value)] = len(self.owned)
            self.owned[found] = value
        return found

    def remote(self, value, blobs: list):
        """What the other side makes a stand-in of."""
        return ["r", self.own(value), self.describe(value, blobs)]

    def describe(self, value, blobs: list) -> dict:
        name = str(getattr(value, "__name__", type(value).__name__))[:100]
        name = name if name.isidentifier() and not keyword.iskeyword(name) else "thing"
        cls = value if isinstance(value, type) else type(value)
        special = sorted(name for name in SPECIAL if hasattr(cls, name))
        doc = getattr(value, "__doc__", None)
        found = {"name": name, "special": special, "doc": doc if isinstance(doc, str) else None}
        if isinstance(value, type):
            found["kind"] = "class"
            found["error"] = self.bases(value) if issubclass(value, BaseException) else None
            found["module"] = issubclass(value, torch.nn.Module)
            fields = getattr(value, "__dataclass_fields__", None)
            found["fields"] = list(fields) if isinstance(fields, dict) else None
        elif isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
            found["kind"] = "function"
        else:
            found["kind"] = "object"
            found["class"] = self.encode(cls, blobs) if self.has_class(cls) else None
        return found

    def has_class(self, cls: type) -> bool:
        return not self.strict

    def bases(self, cls: type) -> list:
        rows = [[c.__module__, c.__qualname__] for c in cls.__mro__ if c is not object]
        return [["notebook" if m == "__main__" else m, name] for m, name in rows]

    def error(self, problem: BaseException):
        """An error as it crosses: names of its class and of what that is made of, its words."""
        try:
            text = str(problem)[:2000]
        except BaseException:
            text = ""
        args, blobs = [], []
        for arg in problem.args if isinstance(problem.args, tuple) else ():
            if type(arg) in (*PLAIN, int, float) and len(str(arg)) < 2000:
                args.append(arg)
        extra = {
            name: value
            for name, value in state_of(problem).items()
            if type(value) in (*PLAIN, int, float) and len(str(value)) < 2000
        }
        del blobs
        return ["x", self.bases(type(problem)), args, text, self.place(problem), extra]

    def place(self, problem: BaseException):
        return None

    # ---- decoding

    def decode(self, encoded, blobs: list):
        if type(encoded) in (*PLAIN, int, float):
            return encoded
        if type(encoded) is not list:
            raise Garbled("a value of no kind")
        tag = encoded[0] if encoded else None
        if type(tag) is not str or tag not in self.tags:
            raise Garbled("a value of no kind")
        return getattr(self, f"decode_{tag}")(blobs, *encoded[1:])

    def decode_ref(self, blobs, n):
        return self.shared[n].thing

    def decode_E(self, blobs):
        return Ellipsis

    def decode_N(self, blobs):
        return NotImplemented

    def decode_i(self, blobs, text):
        return int(text, 16)

    def decode_b(self, blobs, blob):
        return bytes(blobs[blob])

    def decode_c(self, blobs, real, imaginary):
        return complex(real, imaginary)

    def decode_z(self, blobs, sizes):
        return torch.Size(sizes)

    def decode_u(self, blobs, items):
        return tuple(self.decode(each, blobs) for each in items)

    def decode_f(self, blobs, items):
        return frozenset(self.decode(each, blobs) for each in items)

    def decode_nt(self, blobs, name, fields, items):
        cls = collections.namedtuple(identifier(name), [identifier(field) for field in fields])
        return cls(*(self.decode(each, blobs) for each in items))

    def decode_dt(self, blobs, name):
        return DTYPES[name]

    def decode_dv(self, blobs, name):
        return torch.device(name)

    def decode_sl(self, blobs, *parts):
        return slice(*(self.decode(part, blobs) for part in parts))

    def decode_rg(self, blobs, *parts):
        return range(*parts)

    def decode_n(self, blobs, dtype, blob):
        return np.frombuffer(blobs[blob], dtype_of(dtype))[0]

    def decode_a(self, blobs, n, dtype, shape, blob):
        array = np.frombuffer(blobs[blob], dtype_of(dtype)).reshape(shape)
        return self.keep(array.copy(), n)

    def decode_y(self, blobs, n, blob):
        return self.keep(bytearray(blobs[blob]), n)

    def decode_g(self, blobs, n, blob):
        generator = torch.Generator()
        generator.set_state(torch.frombuffer(blobs[blob], dtype=torch.uint8))
        return self.keep(generator, n)

    def decode_l(self, blobs, n, items):
        made = self.keep([], n)
        made.extend(self.decode(each, blobs) for each in items)
        return self.fixed(made, n)

    def decode_s(self, blobs, n, items):
        made = self.keep(set(), n)
        made.update([self.decode(each, blobs) for each in items])
        return self.fixed(made, n)

    def decode_q(self, blobs, n, most, items):
        made = self.keep(collections.deque(maxlen=most), n)
        made.extend(self.decode(each, blobs) for each in items)
        return self.fixed(made, n)

    def decode_d(self, blobs, n, kind, default, pairs):
        if kind == "defaultdict":
            made = collections.defaultdict(self.decode(default, blobs))
        else:
            made = KINDS[kind]()
        self.keep(made, n)
        for key, value in pairs:
            made[self.decode(key, blobs)] = self.decode(value, blobs)
        return self.fixed(made, n)

    def keep(self, thing, n):
        """Remember a thing that the other side numbers."""
        if n is not None:
            if type(n) is not int or n in self.shared or n % 2 == self.first:
                raise Garbled("a number that is taken")
            self.share(thing, n)
            self.borrowed.append(n)
            self.fix(n)
        return thing

    def fixed(self, thing, n):
        if n is not None:
            self.fix(n)
        return thing

    def decode_m(self, blobs, number):
        return self.owned[number]

    def decode_r(self, blobs, number, info):
        if number not in self.stand_ins:
            made = self.stand_in(number, info, blobs)
            self.stand_ins[number], self.stand_in_ids[id(made)] = made, number
        return self.stand_ins[number]

    def decode_x(self, blobs, bases, args, text, place, extra):
        kind = self.error_class(bases)
        error = Theirs.__new__(kind) if issubclass(kind, MemoryError) else kind.__new__(kind)
        error.args = tuple(args)
        error.__dict__.update({"their_words": str(text), "place": place})
        for name, value in extra.items():
            if (
                name.isidentifier()
                and name[:1] != "_"
                and name not in ("args", "their_words", "place")
            ):
                with contextlib.suppress(AttributeError, TypeError):
                    setattr(error, name, value)
        return error

    def error_class(self, bases) -> type:
        """A class of the same name as theirs, below those of its bases that are here, too."""
        names, known = [tuple(pair) for pair in bases], []
        for module, name in names:
            found = self.known_error(module, name)
            if found is not None and not any(issubclass(k, found) for k in known):
                known.append(found)
        name = identifier(names[0][1].rpartition(".")[2])
        words = {"__str__": lambda e: e.their_words}
        try:
            made = type(name, (Theirs, *known), words)
        except TypeError:  # classes that cannot be combined
            made = type(name, (Theirs,), words)
        made.__module__ = "builtins"
        return made

    def known_error(self, module: str, name: str):
        found = None
        if module == "builtins":
            found = getattr(builtins, name, None)
        elif module != "notebook" and not self.is_hidden(module, name):
            found = getattr(sys.modules.get(module), name, None)
        elif module == "notebook" and name in self.given:
            found = getattr(self.notebook, name, None)
        right = isinstance(found, type) and issubclass(found, Exception)
        return found if right and found is not Exception else None

    def is_hidden(self, module: str, name: str) -> bool:
        return f"{module}.{name.partition('.')[0]}" in self.hidden

    # ---- stand-ins

    def stand_in(self, number: int, info: dict, blobs: list):
        kind, name = info["kind"], identifier(str(info["name"]))
        if kind == "function":

            def call(*args, **kwargs):
                return self.ask("call", Own(number), args, kwargs)

            call.__name__ = call.__qualname__ = name
            call.__doc__ = info["doc"]
            return call
        if kind == "class":
            return self.class_stand_in(number, name, info)
        cls = self.decode(info["class"], blobs) if info["class"] else None
        if not isinstance(cls, StandInClass):
            special = [each for each in info["special"] if each in SPECIAL]
            cls = StandInClass(name, (StandIn,), dunders(special))
            type.__setattr__(cls, "_peer", self)
        made = cls.__new__(cls)
        object.__setattr__(made, "_number", number)
        if "parameters" in info:
            self.stand_ins[number], self.stand_in_ids[id(made)] = made, number
            self.fill_module(made, info, blobs)
        return made

    def class_stand_in(self, number: int, name: str, info: dict):
        special = [each for each in info["special"] if each in SPECIAL]
        bases = (ModuleStandIn,) if info.get("module") is True else (StandIn,)
        if info.get("error"):
            return self.error_class(info["error"])
        cls = StandInClass(name, bases, dunders(special) | {"__doc__": info["doc"]})
        type.__setattr__(cls, "_peer", self)
        type.__setattr__(cls, "_number", number)
        if info.get("fields"):
            names = [identifier(field) for field in info["fields"]]
            made = dataclasses.make_dataclass("Fields", names)
            type.__setattr__(cls, "__dataclass_fields__", made.__dataclass_fields__)
        return cls

    def fill_module(self, made, info: dict, blobs: list) -> None:
        raise Garbled("a module")


class Own:
    """Stands for a thing of the other side, by its number."""

    def __init__(self, number: int):
        self.number = number


def files_below(root: str):
    """(name below the root, path) of regular files, within limits; links are not followed."""
    room, todo = 64 << 20, [Path(root)]
    while todo:
        path = todo.pop()
        try:
            kind = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISDIR(kind.st_mode):
            todo += sorted(path.iterdir(), reverse=True)[:10_000]
        elif stat.S_ISREG(kind.st_mode):
            room -= kind.st_size + 1000
            if room < 0:
                raise OSError(f"more than 64 MB of files below {root}")
            yield path.relative_to(root).as_posix() if path != Path(root) else "", path


def identifier(text) -> str:
    """A name that is safe to make a class or a field of. Garbled for others."""
    if text == "<lambda>":
        return "function"
    if not (isinstance(text, str) and text.isidentifier() and len(text) < 200):
        raise Garbled("a name")
    if keyword.iskeyword(text):
        raise Garbled("a name")
    return text


def dtype_of(text: str) -> np.dtype:
    dtype = np.dtype(text) if isinstance(text, str) and len(text) < 12 else None
    if dtype is None or dtype.hasobject or dtype.kind not in "biufcSU":
        raise Garbled("an array's type")
    return dtype


def forward_special(name: str):
    def method(self, *args):
        return type(self)._peer.ask("special", self, name, args)

    method.__name__ = name
    return method


def convert(name: str, kind: type):
    def method(self):
        return kind(type(self)._peer.ask("special", self, name, ()))

    return method


def call_with_names(self, *args, **kwargs):
    return type(self)._peer.ask("call", self, args, kwargs)


def dunders(names) -> dict:
    """The special methods of a stand-in's class."""
    found = {name: forward_special(name) for name in names}
    for name, kind in (
        ("__len__", int),
        ("__bool__", bool),
        ("__int__", int),
        ("__float__", float),
    ):
        if name in found:
            found[name] = convert(name, kind)
    if "__call__" in found:
        found["__call__"] = call_with_names
    return found


class StandInClass(type):
    """The class of stand-ins of classes: calls make an object on the other side."""

    def __call__(cls, *args, **kwargs):
        return cls._peer.ask("call", Own(cls._number), args, kwargs)

    def __getattr__(cls, name):
        if name[:1] == "_":
            raise AttributeError(name)
        return cls._peer.ask("get", Own(cls._number), name)


class StandIn(metaclass=StandInClass):
    """Something that lives on the other side."""

    def __getattr__(self, name):
        if name[:2] == "__":
            raise AttributeError(name)
        return type(self)._peer.ask("get", self, name)

    def __setattr__(self, name, value):
        type(self)._peer.ask("set", self, name, value)

    def __delattr__(self, name):
        type(self)._peer.ask("set", self, name)

    def __eq__(self, other):
        if self is other or not isinstance(other, StandIn):
            return self is other
        return bool(type(self)._peer.ask("equal", self, other))

    __hash__ = object.__hash__


class ModuleStandIn(StandIn, torch.nn.Module, metaclass=StandInClass):
    """A module that lives on the other side; its parameters are here, too."""

    __call__ = torch.nn.Module.__call__
    __hash__ = object.__hash__

    def forward(self, *args, **kwargs):
        return type(self)._peer.ask("call", self, args, kwargs)

    def __getattr__(self, name):
        for table in ("_parameters", "_buffers", "_modules"):
            if name in self.__dict__.get(table, ()):
                return self.__dict__[table][name]
        return StandIn.__getattr__(self, name)

    def __setattr__(self, name, value):
        mine = name[:1] == "_" or name == "training"
        if mine or isinstance(value, torch.nn.Module | torch.nn.Parameter):
            torch.nn.Module.__setattr__(self, name, value)
        if name[:1] != "_":
            type(self)._peer.ask("set", self, name, value)

    def __delattr__(self, name):
        type(self)._peer.ask("set", self, name)

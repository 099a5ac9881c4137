"""The student's process: it knows nothing, decides nothing, and honest code loses nothing in it."""

import struct
import textwrap

import pytest
import torch
from test_mutations import RIGHT, WRONG, edited

from course import apart, wire
from course.apart import run_apart
from course.box import Box, confinement
from course.export import ROOT
from course.grade_one import load_reference
from course.run_tasks import run_task
from course.tasks import Chapter


pytestmark = pytest.mark.skipif(
    confinement()[0] != "bubblewrap", reason="bubblewrap is not installed"
)
NORM, ROPE = (Chapter(ROOT / "notebooks" / name) for name in ("02_rmsnorm.ipynb", "03_rope.ipynb"))
TASKS = {task.id: task for chapter in (NORM, ROPE) for task in chapter.tasks}


@pytest.fixture(scope="module")
def door():
    load_reference()
    with Box(memory=2 << 30, seconds=60) as box:
        yield box.path


@pytest.mark.parametrize("id", TASKS)
def test_right_solutions_pass_and_wrong_ones_are_told_their_mistake(id, door):
    task = TASKS[id]
    assert run_apart(task, task.reference, "", door).passed
    for old, new in RIGHT.get(id, ()):
        outcome = run_apart(task, edited(task, old, new), "", door)
        assert outcome.passed, (new, outcome.message)
    for old, new, _ in WRONG.get(id, ()):
        outcome = run_apart(task, edited(task, old, new), "", door)
        alone = run_task(task, edited(task, old, new))  # as on the student's own machine
        assert not outcome.passed and outcome.message == alone.message, (new, outcome.message)


FREQUENCIES = """
def rope_frequencies(head_dim, theta, scaling=None):
{}
"""
ZERO = "return torch.zeros(head_dim // 2)"
HACKS = {  # what stands in rope_frequencies' cell; `{}` is its body
    "the check's namespace, by frames": "import sys\nf = sys._getframe()\nwhile f:\n    for v in list(f.f_globals.values()) + list(f.f_locals.values()):\n        if isinstance(v, dict) and 'hints' in v: return v['hints']\n    f = f.f_back\n" + ZERO,
    "everything that is alive": "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'rope_frequencies' in o and o is not globals(): return o['rope_frequencies'](head_dim, theta)\n" + ZERO,
    "modules that are loaded": "import sys\nm = sys.modules.get('minillama.rope')\nreturn m.rope_frequencies(head_dim, theta, scaling) if m else torch.zeros(head_dim // 2)",
    "the package on the disk": "import glob\nreturn exec(open(glob.glob('/**/rope.py', recursive=True)[0]).read())",
    "a method added to torch.Tensor": "torch.Tensor.abs = lambda s: torch.zeros_like(s)\n" + ZERO,
    "a method added through an alias": "T = type(torch.zeros(1))\nT.__sub__ = lambda a, b: torch.zeros_like(a)\nT.__eq__ = lambda a, b: torch.ones_like(a, dtype=torch.bool)\n" + ZERO,
    "torch's own check": "torch.as_tensor = lambda *a, **k: torch.zeros(2)\n" + ZERO,
    "the check itself": "import course.check\ncourse.check.check = course.check.same = lambda *a, **k: True\n" + ZERO,
    "the wire's reader": "import course.wire as w\nw.bytes_of = lambda t: struct\n" + ZERO,
    "a message of one's own": "import course.wire, gc, json\np = [o for o in gc.get_objects() if isinstance(o, course.wire.Peer)][0]\np.send({'v': True, 'error': False, 'u': []}, [])\n" + ZERO,
    "a call that the grader never offered": "import course.wire, gc\np = [o for o in gc.get_objects() if isinstance(o, course.wire.Peer)][0]\nreturn p.ask('call', course.wire.Own(0), (), {})",
    "an import by the grader": "import course.wire, gc\np = [o for o in gc.get_objects() if isinstance(o, course.wire.Peer)][0]\nreturn p.ask('module', '../course/tasks')",
    "the reference's text, asked for": "import course.wire, gc\np = [o for o in gc.get_objects() if isinstance(o, course.wire.Peer)][0]\nt = p.ask('module', 'minillama.rope')[0]\ng = {}\nexec(t, g)\nreturn g['rope_frequencies'](head_dim, theta, scaling) if g['rope_frequencies'].__code__.co_code != rope_frequencies.__code__.co_code else torch.zeros(head_dim // 2)",
    "a code object rewritten": "import course.check\ncourse.check.check.__code__ = (lambda *a, **k: None).__code__\n" + ZERO,
    "the verdict at the end": "import atexit\natexit.register(print, 'passed')\nimport os\nos._exit(0)",
    "another process's memory": "open('/proc/1/mem', 'r+b').read(1)\n" + ZERO,
    "the grader's pipes": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'passed' * 100)\n    except OSError: pass\n" + ZERO,
    "a shell command": "import os\nos.system('touch ../../x /etc/x; kill -9 -1')\n" + ZERO,
    "the network": "import socket\nsocket.create_connection(('1.1.1.1', 53), 2)\n" + ZERO,
    "a C library": "import ctypes\nctypes.CDLL(None).kill(1, 9)\n" + ZERO,
    "a huge shape": "return torch.zeros(1).expand(10**12)",
    "a value of no end": "a = []\na.append(a)\nreturn a",
    "a deep value": "a = []\nfor _ in range(10**5): a = [a]\nreturn a",
    "a number without end": "return 10 ** (10 ** 5)",
    "an answer that changes": "class Moody(torch.Tensor):\n    n = 0\nreturn torch.zeros(head_dim // 2).as_subclass(Moody)",
    "settings": "torch.set_default_dtype(torch.float16)\ntorch.manual_seed(0)\ntorch.set_num_threads(1)\n" + ZERO,
}  # fmt: skip


@pytest.mark.parametrize("name", HACKS)
def test_no_hack_gains_a_point_or_harms_the_next(name, door):
    task = TASKS["rope-rope_frequencies"]
    (cell,) = task.solutions
    text = "import torch\n" + FREQUENCIES.format(textwrap.indent(HACKS[name], "    "))
    outcome = run_apart(task, {cell: text}, "", door)
    assert not outcome.passed and outcome.points == 0 and outcome.message
    other = TASKS["rope-ex1"]
    assert run_apart(other, other.reference, "", door).passed


HONEST = {  # before and in place of parts of RMSNorm's cell
    "os and matplotlib": ("import os\nimport matplotlib.pyplot as plt\n", None, None),
    "logging and warnings": ("import logging, warnings\nwarnings.simplefilter('ignore')\n", None, None),
    "the future": ("from __future__ import annotations\n", None, None),
    "a main": ("", "\n\n\nif __name__ == '__main__':\n    print(RMSNorm(4))\n", "end"),
    "its class's name": ("", "self.eps = eps\n        self.name = self.__class__.__name__", "self.eps = eps"),
    "another way to call the base": ("", "nn.Module.__init__(self)", "super().__init__()"),
    "getattr": ("", "+ getattr(self, 'eps')", "+ self.eps"),
    "magics": ("%matplotlib inline\n", None, None),
    "timeit": ("", "\n%timeit 1 + 1\n!ls\n", "end"),
    "a helper with __eq__ and __enter__": ("class Timer:\n    def __enter__(self): return self\n    def __exit__(self, *a): pass\n    def __eq__(self, other): return False\n\n", None, None),
    "testing": ("", "\n\ntorch.testing.assert_close(RMSNorm(2)(torch.ones(2)), torch.ones(2), rtol=1e-3, atol=1e-3)\n", "end"),
    "a loop and an annotated name": ("squares: list[int] = []\nfor i in range(3):\n    squares.append(i * i)\nassert sum(squares) == 5\n", None, None),
    "a plot that fails": ("", "\n\nprint(nothing_here)\n", "end"),
    "a name like a builtin's": ("input = 3\n", None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_code_loses_nothing(name, door):
    task = TASKS["rmsnorm-RMSNorm"]
    ((cell, source),) = task.reference.items()
    before, new, old = HONEST[name]
    if old == "end":
        source += new
    elif old:
        assert old in source
        source = source.replace(old, new)
    outcome = run_apart(task, {cell: before + source}, "", door)
    assert outcome.passed, outcome.message


def test_the_process_holds_neither_the_reference_nor_a_check(door):
    """What a student's process can find of the task: nothing that it was not sent."""
    task = TASKS["rope-rope_frequencies"]
    (cell,) = task.solutions
    body = """
        import gc, os, sys
        texts = [v for v in gc.get_objects() if isinstance(v, str)]
        del texts
        found = [n for n in sys.modules if n.startswith(("minillama.rope", "course.tasks"))]
        places = [p for p in ("/work", "/submissions") if os.path.exists(p)]
        left = [d for d in os.listdir("/") if d not in ROOTS]
        raise ValueError(f"{found} {left} {os.environ.get('HOME')}")
    """
    roots = "ROOTS = 'bin box dev etc lib lib32 lib64 proc root sys tmp usr work'.split()\n"
    text = roots + FREQUENCIES.format(textwrap.indent(textwrap.dedent(body), "    "))
    message = run_apart(task, {cell: text}, "", door).message
    assert "ValueError: [] [" in message and message.endswith("/tmp"), message


class Pipe:
    """A connection that says what it is told to."""

    def __init__(self, said: bytes):
        self.said = said

    def makefile(self, mode, size):
        import io

        return io.BytesIO(self.said)

    def sendall(self, data):
        pass


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b'{"v": ["k", "os", "system"]}',
        b'{"v": ["re", null, ["k", "os", "system"], ["u", ["true"]], null, [], []]}',
        b'{"v": ["o", 1, "subprocess", "Popen", []]}',
        b'{"v": ["o", 1, "minillama.kernels.cuda", "os", []]}',
        b'{"v": ["ref", 0]}',
        b'{"v": ["t", null, false, false, "torch.float32", [9], 0]}',
        b'{"v": ["contents"]}',
        b'{"v": 1, "u": [[0, []]]}',
        b'{"v": 1, "files": [["/etc", [["passwd", 0]]]]}',
        b'{"op": "call", "v": [["m", 0], ["u", []], ["d", null, "dict", null, []]]}',
        b'{"op": "set", "v": [["m", 0], "x", 1]}',
        b'{"v": ["r", 0, {"kind": "class", "name": "a b", "special": [], "doc": null}]}',
        b'{"v": ["x", [["os", "system"]], [], "", null, {}], "error": true}',
        b"[" * 10**5,
    ],
)
def test_the_grader_takes_nothing_else(text):
    said = struct.pack("<QQ", len(text), 0) + text
    peer = apart.Grader(Pipe(said), TASKS["rope-ex1"], lambda name: None)
    with pytest.raises((wire.Garbled, wire.Theirs)):
        peer.ask("take", [])


def test_a_tensor_comes_back_as_it_was():
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        value = torch.randn(3, 4).mul(3).to(dtype).T
        again = wire.tensor_of(wire.bytes_of(value), dtype, value.shape)
        assert again.dtype == dtype and torch.equal(again, value)

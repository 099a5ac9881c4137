"""The student's process: it knows nothing, decides nothing, and honest code loses nothing in it."""

import json
import struct
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from test_exploits import submit
from test_mutations import RIGHT, WRONG, edited

from course import apart, box, grade, wire
from course.apart import run_apart
from course.box import Box, confinement
from course.export import ROOT
from course.grade_one import load_reference
from course.run_tasks import run_task
from course.tasks import Chapter


if confinement()[0] != "bubblewrap":
    pytest.skip("bubblewrap is not installed", allow_module_level=True)
if Path(sys.prefix).resolve().is_relative_to("/tmp"):
    pytest.skip("the environment lies below /tmp", allow_module_level=True)
NORM, ROPE = (Chapter(ROOT / "notebooks" / name) for name in ("02_rmsnorm.ipynb", "03_rope.ipynb"))
TASKS = {task.id: task for chapter in (NORM, ROPE) for task in chapter.tasks}


@pytest.fixture(scope="module")
def door():
    load_reference()
    with Box(memory=2 << 30, seconds=60) as box:
        yield box.path


@pytest.mark.parametrize("id", ("rmsnorm-RMSNorm", "rope-rope_frequencies", "rope-ex1"))
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
    "the package on the disk": f"g = {{}}\nexec(open({str(ROOT / 'minillama' / 'rope.py')!r}).read(), g)\nreturn g['rope_frequencies'](head_dim, theta, scaling)",
    "a method added through an alias": "T = type(torch.zeros(1))\nT.__sub__ = lambda a, b: torch.zeros_like(a)\nT.__eq__ = lambda a, b: torch.ones_like(a, dtype=torch.bool)\n" + ZERO,
    "a message of one's own": "import course.wire, gc, json\np = [o for o in gc.get_objects() if isinstance(o, course.wire.Peer)][0]\np.send({'v': True, 'error': False, 'u': []}, [])\n" + ZERO,
    "a call that the grader never offered": "import course.wire, gc\np = [o for o in gc.get_objects() if isinstance(o, course.wire.Peer)][0]\nreturn p.ask('call', course.wire.Own(0), (), {})",
    "the reference's text, asked for": "import course.wire, gc\np = [o for o in gc.get_objects() if isinstance(o, course.wire.Peer)][0]\nt = p.ask('module', 'minillama.rope')[0]\ng = {}\nexec(t, g)\nreturn g['rope_frequencies'](head_dim, theta, scaling) if g['rope_frequencies'].__code__.co_code != rope_frequencies.__code__.co_code else torch.zeros(head_dim // 2)",
    "a shell command": "import os\nos.system('touch ../../x /etc/x; kill -9 -1')\n" + ZERO,
    "a deep value": "a = []\nfor _ in range(10**5): a = [a]\nreturn a",
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
    "a main": ("", "\n\n\nif __name__ == '__main__':\n    print(RMSNorm(4))\n", "end"),
    "magics": ("%matplotlib inline\n", None, None),
    "a helper with __eq__ and __enter__": ("class Timer:\n    def __enter__(self): return self\n    def __exit__(self, *a): pass\n    def __eq__(self, other): return False\n\n", None, None),
    "a plot that fails": ("", "\n\nprint(nothing_here)\n", "end"),
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
        import os, sys
        found = [n for n in sys.modules if n.startswith(("minillama.rope", "course.tasks"))]
        left = [d for d in os.listdir("/") if os.path.exists(f"/{d}/notebooks/03_rope.ipynb")]
        left += [p for p in (REFERENCE,) if os.path.exists(p)]
        raise ValueError(f"{found} {left} {os.environ.get('HOME')}")
    """
    reference = f"REFERENCE = {str(ROOT / 'minillama' / 'rope.py')!r}\n"
    text = reference + FREQUENCIES.format(textwrap.indent(textwrap.dedent(body), "    "))
    message = run_apart(task, {cell: text}, "", door).message
    assert "ValueError: [] [] /tmp" in message, message


class Pipe:
    """A connection that says what it is told to."""

    def __init__(self, said: bytes):
        self.said = said

    def makefile(self, mode, size):
        import io

        return io.BytesIO(self.said)

    def sendall(self, data):
        pass


MESSAGES = [
    b"",
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
]


def test_the_grader_takes_nothing_else():
    for text in MESSAGES:
        said = struct.pack("<QQ", len(text), 0) + text
        peer = apart.Grader(Pipe(said), TASKS["rope-ex1"], lambda name: None)
        with pytest.raises((wire.Garbled, wire.Theirs)):
            peer.ask("take", [])


def test_a_tensor_comes_back_as_it_was():
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        value = torch.randn(3, 4).mul(3).to(dtype).T
        again = wire.tensor_of(wire.bytes_of(value), dtype, value.shape)
        assert again.dtype == dtype and torch.equal(again, value)


@pytest.fixture
def handed_in(tmp_path):
    """Two students of chapter 2: one right, one who patches what the check calls."""
    (cell,) = TASKS["rmsnorm-RMSNorm"].solutions
    cheat = f"torch.allclose = lambda *a, **k: True\n{NORM.solutions[cell]}".replace(
        "self.eps)", "self.eps) * 0"
    )
    assert cheat.count("* 0") == 1
    submit(tmp_path / "ada", NORM, NORM.solutions)
    submit(tmp_path / "bob", NORM, NORM.solutions | {cell: cheat})
    return tmp_path


@pytest.mark.parametrize("how", ["bubblewrap", "limits"])
def test_apart_is_chosen_on_the_command_line_and_says_what_confined(
    how, handed_in, tmp_path_factory, capsys, monkeypatch
):
    out = tmp_path_factory.mktemp("grades")
    if how == "limits":
        monkeypatch.setattr(box.shutil, "which", lambda name: None)
    assert grade.main([str(handed_in), "--out", str(out), "--only", "02", "--apart"]) == 0
    for name, points in (("ada", 9), ("bob", 6)):
        found = json.loads((out / "students" / f"{name}.json").read_text(encoding="utf-8"))
        assert found["total"] == points, found
    assert capsys.readouterr().out.endswith(f"; {box.SENTENCES[how]}\n")


def test_a_confinement_that_starts_nothing_is_one_line(handed_in, capsys, monkeypatch):
    monkeypatch.setattr(box, "confinement", lambda: ("bubblewrap", 1, ["false"]))
    assert grade.main([str(handed_in), "--out", str(handed_in / "o"), "--only", "02", "--apart"])
    err = capsys.readouterr().err
    assert err == f"course.grade: {box.NO_PROCESS}\n" and not (handed_in / "o").exists()

"""Wrong solutions fail with a message that names the mistake; right ones that look different
pass.
"""

import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import table
from wrong_solutions import RIGHT, WRONG

from course.run_tasks import run_task
from course.tasks import Chapter


NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
CHAPTERS = [
    Chapter(path)
    for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    if path.stem < "11"
    or path.stem[:3] in ("12_", "13_", "13b", "13c", "14_", "14a", "14b", "15_", "17a")
]
SOLUTION = re.compile(r"^( *)# BEGIN SOLUTION\n.*?^ *# END SOLUTION", re.MULTILINE | re.DOTALL)


def tokens(text: str) -> list[tuple[str, int, int]]:
    """(token, begin, end), without what formatting changes: spaces, comments, quotes, a comma at
    the end of a list.
    """
    found = [
        (each[0], *each.span()) for each in TOKEN.finditer(text) if not each[0].startswith("#")
    ]
    found = [
        (token.replace("'", '"') if "'" in token[:3] else token, *span) for token, *span in found
    ]
    following = [token for token, *_ in (*found[1:], ("",))]
    return [
        each
        for each, after in zip(found, following, strict=False)
        if not (each[0] == "," and after in [*")]}"])
    ]


TOKEN = re.compile(
    r"""#[^\n]*|[rbf]*("{3}|'{3}).*?\1|[rbf]*(["'])(?:\\.|.)*?\2|\w+|[^\w\s]""", re.DOTALL
)


def places(source: str, old: str) -> list[tuple[int, int]]:
    """Where a piece of code stands in another, however either is formatted."""
    if (at := source.find(old)) >= 0 and source.count(old) == 1:
        return [(at, at + len(old))]
    inside, wanted = tokens(source), [token for token, *_ in tokens(old)]
    starts = range(len(inside) - len(wanted) + 1)
    runs = [
        inside[n : n + len(wanted)]
        for n in starts
        if wanted == [token for token, *_ in inside[n:][: len(wanted)]]
    ]
    ends = [(run[0][1], run[-1][2]) for run in runs if run]
    return [
        (a, b) for a, b in ends if not old.endswith("\n") or re.match(r" *(#|\n|$)", source[b:])
    ]


def edited(task, old: str | None, new: str) -> dict[str, str]:
    """The reference's cells with one edit; None stands for all that a student is to write."""
    return edit(task.id, task.reference, old, new)


def edit(name: str, cells: dict[str, str], old: str | None, new: str) -> dict[str, str]:
    if old is not None:
        found = [(id, place) for id, source in cells.items() for place in places(source, old)]
        assert len(found) == 1, f"{name}: {old!r} stands there {len(found)} times, not once"
        ((id, (begin, end)),) = found
        return cells | {id: cells[id][:begin] + new + cells[id][end:]}
    (source,) = cells.values()
    assert len(SOLUTION.findall(source)) == 1
    body = textwrap.dedent(new.strip("\n"))
    return {next(iter(cells)): SOLUTION.sub(lambda found: textwrap.indent(body, found[1]), source)}


@pytest.fixture(autouse=True)
def stop_what_never_ends():
    """A solution that loops for ever fails its test after minutes, where the system has an
    alarm.
    """

    def stop(*_):
        raise TimeoutError("it does not end")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 300)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)
def test_a_wrong_solution_is_told_its_mistake(chapter):
    for task in chapter.tasks:
        for old, new, words in WRONG.get(task.id, ()):
            outcome = run_task(task, edited(task, old, new))
            assert not outcome.passed, f"{task.id}: nothing notices {new!r}"
            assert words in outcome.message, f"{task.id}: {new!r} is told {outcome.message!r}"


def reformatted(cells: dict[str, str]) -> dict[str, str]:
    """The same in 88 columns and single quotes, all in one run of ruff."""
    style = ["--isolated", "--line-length=88", "--config=format.quote-style='single'"]
    text = "\n\n\nBORDER\n\n\n".join(cells.values())
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", *style, "-"],
        input=text,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cells, done.stdout.split("\n\n\nBORDER\n\n\n"), strict=True))


def test_every_edit_applies_in_the_style_of_today_and_in_another_one():
    tasks = {task.id: task for chapter in CHAPTERS for task in chapter.tasks}
    cells = {
        (task.id, id): source for task in tasks.values() for id, source in task.reference.items()
    }
    with table() as row:
        for style in (cells, reformatted(cells)):
            for task, rows in (*WRONG.items(), *RIGHT.items()):
                for old, new, *_ in rows:
                    with row(task, repr(old)):
                        edit(
                            task,
                            {id: source for (name, id), source in style.items() if name == task},
                            old,
                            new,
                        )


def test_a_definition_that_forgets_what_comes_later_is_told_so_there():
    """In section 3.4 `scale_frequencies` is not there yet; a student's own package is checked again
    in 3.8.
    """
    tasks = {
        task.id: task for chapter in CHAPTERS if chapter.module == "rope" for task in chapter.tasks
    }
    early, late = tasks["rope-rope_frequencies"], tasks["rope-scale_frequencies"]
    forgot = edited(early, " if scaling is None else scale_frequencies(freqs, scaling)", "")
    assert run_task(early, forgot).passed
    message = run_task(late, late.reference | forgot).message
    assert message == "rope_frequencies: hand the frequencies on to scale_frequencies"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)
def test_another_right_solution_passes(chapter):
    for task in chapter.tasks:
        for old, new in RIGHT.get(task.id, ()):
            outcome = run_task(task, edited(task, old, new))
            assert outcome.passed, f"{task.id}: {new!r} is told {outcome.message!r}"


def test_every_component_has_its_share():
    names = {task.id for chapter in CHAPTERS for task in chapter.tasks}
    assert names >= set(WRONG) and names >= set(RIGHT)
    assert sum(map(len, WRONG.values())) >= 60 and sum(map(len, RIGHT.values())) >= 15
    for chapter in CHAPTERS:
        assert sum(len(WRONG.get(task.id, ())) for task in chapter.tasks) >= 3, chapter.path.name

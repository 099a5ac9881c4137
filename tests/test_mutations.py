"""Wrong solutions fail with a message that names the mistake; right ones that look different pass."""

import re
import signal
import textwrap
from pathlib import Path

import pytest
from wrong_solutions import RIGHT, WRONG

from course.run_tasks import run_task
from course.tasks import Chapter


NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
CHAPTERS = [
    Chapter(path)
    for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    if path.stem < "11" or path.stem[:3] in ("12_", "13_", "13b", "13c", "14_", "14a", "14b", "17a")
]
SOLUTION = re.compile(r"^( *)# BEGIN SOLUTION\n.*?^ *# END SOLUTION", re.MULTILINE | re.DOTALL)


def edited(task, old: str | None, new: str) -> dict[str, str]:
    """The reference's cells with one edit; None stands for all that a student is to write."""
    if old is not None:
        assert sum(source.count(old) for source in task.reference.values()) == 1, (
            f"{task.id}: {old!r} is not there once"
        )
        return {id: source.replace(old, new) for id, source in task.reference.items()}
    (source,) = task.reference.values()
    assert len(SOLUTION.findall(source)) == 1
    body = textwrap.dedent(new.strip("\n"))
    return {task.solutions[0]: SOLUTION.sub(lambda found: textwrap.indent(body, found[1]), source)}


@pytest.fixture(autouse=True)
def stop_what_never_ends():
    """A solution that loops for ever fails its test after minutes, where the system has an alarm."""

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


def test_a_definition_that_forgets_what_comes_later_is_told_so_there():
    """In section 3.4 `scale_frequencies` is not there yet; a student's own package is checked again in 3.8."""
    tasks = {task.id: task for chapter in CHAPTERS if chapter.module == "rope" for task in chapter.tasks}
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

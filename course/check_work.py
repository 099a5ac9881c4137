"""Check your own work: write your modules, run the checks of what you have written, show how far you are.

python -m course.check_work [03 ...] [--using student|reference] [--reference FOLDER]

Without chapters it looks at all of them. With --using reference, all modules come from a finished build: the folder in
--reference or $MINILLAMA_REFERENCE that holds `minillama/`, or an installed one.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from course.collect import collect
from course.export import ROOT, ExportError, build_module, write_all
from course.tasks import Chapter


ASSIGNED, PROGRESS = "course/assigned", ".progress.json"


def export(root: Path) -> list[str]:
    """Write every module whose notebook can be exported; what is wrong with the others."""
    modules, wrong = {}, []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        try:
            name, text = build_module(path)
            modules |= {name: text} if name else {}
        except ExportError as error:
            wrong.append(str(error))
    write_all(modules, root / "minillama")
    return wrong


def reference_build(named: str | None, root: Path) -> Path:
    """The folder of a finished build, named, or else installed. ExportError."""
    places = [Path(named)] if named else [Path(place) for place in sys.path if place]
    for place in places:
        if (place / "minillama" / "model.py").is_file() and place.resolve() != root:
            return place.resolve()
    where = named or "nowhere installed"
    raise ExportError(f"no finished build ({where}): name the folder that holds its minillama/ with --reference")


def check_chapter(chapter: Chapter, root: Path) -> dict[str, bool]:
    """Run what has been written in a chapter and say what is wrong with it: task id -> passed."""
    from course.run_tasks import run_task  # not above: it takes PyTorch's seconds

    work, passed, todo = collect(root / "notebooks" / chapter.path.name, chapter), {}, []
    print(f"\n{chapter.title}")
    for note in work.notes:
        print(f"  note: {note}")
    for task in chapter.tasks:
        passed[task.id] = False
        if all(work.untouched(chapter, id) for id in task.solutions):
            todo.append(task.title)
            continue
        outcome = run_task(task, work.sources, work.extra, root / "notebooks")
        passed[task.id] = outcome.passed
        print(f"  {'right' if outcome.passed else 'WRONG'}  {task.title}")
        if not outcome.passed:
            print(f"         {outcome.message}\n         read again: {outcome.section}")
    if todo:
        print(f"  to do  {', '.join(todo)}")
    return passed


def table(chapters: list[Chapter], passed: dict[str, bool]) -> str:
    """How far the course is, a line per chapter."""
    lines, done, most = [], 0, 0
    for chapter in chapters:
        right = [task for task in chapter.tasks if passed.get(task.id)]
        points, of = sum(task.points for task in right), sum(task.points for task in chapter.tasks)
        done, most = done + points, most + of
        bar = "".join("#" if passed.get(task.id) else "." for task in chapter.tasks)
        lines.append(
            f"{chapter.title.partition(':')[0]:28}{bar:14}{len(right):3} of {len(chapter.tasks):2}{points:6} of {of:3}"
        )
    head = f"{'chapter':28}{'':14}{'tasks':>9}{'points':>13}"
    return "\n".join([head, *lines, f"{'':51}{done:6} of {most:3}"])


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="python -m course.check_work", description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", metavar="03", help="the chapters to run; by default all")
    parser.add_argument("--using", choices=("student", "reference"), default="student", help="whose other modules")
    parser.add_argument("--reference", default=os.environ.get("MINILLAMA_REFERENCE"), help="a folder with minillama/")
    parser.add_argument("--export", action="store_true", help="only write the modules")
    args = parser.parse_args(argv)
    try:
        chapters = [Chapter(path) for path in sorted((root / ASSIGNED).glob("*.ipynb"))]
        if not chapters:
            raise ExportError(f"{root / ASSIGNED} holds no assignment: this is for a folder that course.assign made")
        wrong = export(root)
        if args.using == "reference":
            sys.path.insert(0, str(reference_build(args.reference, root)))
        numbers = [chapter.path.stem.split("_")[0].removeprefix("0") for chapter in chapters]
        wanted = [number.removeprefix("0") for number in args.chapters]
        if unknown := [number for number in wanted if number not in numbers]:
            raise ExportError(f"there is no chapter {unknown[0]}; the chapters are {', '.join(numbers)}")
    except (ExportError, OSError) as error:
        print(f"course.check_work: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"not exported: {line}" for line in wrong))
    if args.export:
        return 0
    passed = load_progress(root)
    for number, chapter in zip(numbers, chapters, strict=True):
        if number in wanted or not wanted:
            passed |= check_chapter(chapter, root)
    (root / PROGRESS).write_text(json.dumps(passed, indent=1), encoding="utf-8")
    print("\n" + table(chapters, passed))
    return 0


def load_progress(root: Path) -> dict[str, bool]:
    """What passed when it was last checked."""
    try:
        found = json.loads((root / PROGRESS).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


if __name__ == "__main__":
    sys.exit(main())

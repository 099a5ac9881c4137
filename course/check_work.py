"""Check your own work: run the checks of what you have written, put right modules to use, show how
far you are.

python -m course.check_work [03 ...] [--using student|reference] [--reference FOLDER] [--export]

Without chapters it looks at all of them. A chapter whose definitions are all right writes its
module into minillama/, where it takes the place of the finished one; one that is not right any more
goes back to the finished one. Where there are no finished modules, and with --export, every module
is written as far as it is.
"""

import argparse
import importlib
import json
import os
import sys
import types
from pathlib import Path

from course.collect import Work, collect, with_own
from course.export import ROOT, ExportError, build_modules, file_of, write_all
from course.finished import ARCHIVE
from course.tasks import Chapter


ASSIGNED, PROGRESS = "course/assigned", ".progress.json"


def modules_of(chapter: Chapter, work: Work) -> dict[str, str]:
    """A chapter's modules with what the student wrote, own definitions first. ExportError."""
    return build_modules(
        chapter.path, with_own(chapter, work.sources, work.extra, chapter.solutions)
    )


def export(root: Path) -> list[str]:
    """Write every module that is Python, right or not; what is wrong with the others."""
    modules, wrong = {}, []
    for path in sorted((root / ASSIGNED).glob("*.ipynb")):
        chapter = Chapter(path)
        try:
            modules |= modules_of(chapter, collect(root / "notebooks" / path.name, chapter))
        except ExportError as error:
            wrong.append(str(error))
    write_all(modules, root / "minillama")
    return wrong


def put_to_use(chapter: Chapter, work: Work, passed: dict[str, bool], package: Path) -> None:
    """Write a student's modules if a chapter's definitions are all right and they can be imported;
    else remove them.
    """
    texts, fault = {}, ""
    if chapter.definitions and all(passed[task.id] for task in chapter.definitions):
        try:
            texts = modules_of(chapter, work)
            fault = importing(texts, chapter)
        except ExportError as error:
            fault = f"cannot be exported: {error}"
    if fault:
        print(f"  note: the finished {chapter.name}.py stays in use: yours {fault}")
    if texts and not fault:
        write_all(texts, package)
    else:
        for name in chapter.modules:
            file_of(package, name).unlink(missing_ok=True)
    forget(package)


def importing(texts: dict[str, str], chapter: Chapter) -> str:
    """What is wrong when modules are imported: what one raises, or a name that all lack."""
    bound = set()
    for text in texts.values():
        module = types.ModuleType("trial")
        sys.modules["trial"] = module  # dataclasses look their module up
        try:
            exec(compile(text, f"your {chapter.name}.py", "exec"), vars(module))
        except (Exception, SystemExit) as error:
            return f"ends in {type(error).__name__}: {error}"
        finally:
            del sys.modules["trial"]
        bound |= set(vars(module))
    names = frozenset().union(
        *(chapter.names(id) for id in chapter.solutions if chapter.exports(id))
    )
    return f"lacks `{min(names - bound)}`" if names - bound else ""


def forget(package: Path) -> None:
    """Let this process import the package anew, so that the next chapter is checked with what is in
    use now.
    """
    importlib.invalidate_caches()
    loaded = sys.modules.get("minillama")
    if loaded and Path(loaded.__file__).parent == package:
        for name in list(sys.modules):
            if name.partition(".")[0] == "minillama" or name == "course.cuda_on_cpu":
                del sys.modules[name]


def reference_build(named: str | None, root: Path) -> Path:
    """The folder of a finished build, named, or else installed. ExportError."""
    places = [Path(named)] if named else [Path(place) for place in sys.path if place]
    for place in places:
        if (place / "minillama" / "model.py").is_file() and place.resolve() != root:
            return place.resolve()
    where = named or "nowhere installed"
    raise ExportError(
        f"no finished build ({where}): name the folder that holds its minillama/ with --reference"
    )


def check_chapter(chapter: Chapter, work: Work, root: Path) -> dict[str, bool]:
    """Run what has been written in a chapter and say what is wrong with it: task id -> passed."""
    from course.run_tasks import run_task  # not above: it takes PyTorch's seconds

    passed, todo = {}, []
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


def table(chapters: list[Chapter], passed: dict[str, bool], package: Path) -> str:
    """How far the course is, a line per chapter, and whose module is in use."""
    lines, done, most = [], 0, 0
    for chapter in chapters:
        right = [task for task in chapter.tasks if passed.get(task.id)]
        points, of = sum(task.points for task in right), sum(task.points for task in chapter.tasks)
        done, most = done + points, most + of
        bar = "".join("#" if passed.get(task.id) else "." for task in chapter.tasks)
        lines.append(
            f"{chapter.title.partition(':')[0]:28}{bar:14}{len(right):3} of "
            f"{len(chapter.tasks):2}{points:6} of {of:3}"
            f"   {chapter.name}: {whose(chapter, passed, package)}"
        )
    head = f"{'chapter':28}{'':14}{'tasks':>9}{'points':>13}   module in use"
    return "\n".join([head, *lines, f"{'':51}{done:6} of {most:3}"])


def whose(chapter: Chapter, passed: dict[str, bool], package: Path) -> str:
    """Whose module is in use: `given` where there is nothing to write in it."""
    if not chapter.definitions:
        return "given"
    if (package / ARCHIVE).exists():
        return "yours" if file_of(package, chapter.module).exists() else "finished"
    return (
        "yours"
        if all(passed.get(task.id) for task in chapter.definitions)
        else "yours, not finished"
    )


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course.check_work", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "chapters", nargs="*", metavar="03", help="the chapters to run; by default all"
    )
    parser.add_argument(
        "--using", choices=("student", "reference"), default="student", help="whose other modules"
    )
    parser.add_argument(
        "--reference",
        default=os.environ.get("MINILLAMA_REFERENCE"),
        help="a folder with minillama/",
    )
    parser.add_argument(
        "--export", action="store_true", help="only write the modules, right or not"
    )
    args = parser.parse_args(argv)
    try:
        chapters = [Chapter(path) for path in sorted((root / ASSIGNED).glob("*.ipynb"))]
        if not chapters:
            raise ExportError(
                f"{root / ASSIGNED} holds no assignment: this is for a folder that course.assign "
                f"made"
            )
        package = root / "minillama"
        finished = (package / ARCHIVE).exists()
        wrong = [] if finished and not args.export else export(root)
        if args.using == "reference" and finished and not args.reference:
            os.environ["MINILLAMA_USING"] = "finished"
        elif args.using == "reference":
            sys.path.insert(0, str(reference_build(args.reference, root)))
        numbers = [chapter.path.stem.split("_")[0].removeprefix("0") for chapter in chapters]
        wanted = [number.removeprefix("0") for number in args.chapters]
        if unknown := [number for number in wanted if number not in numbers]:
            raise ExportError(
                f"there is no chapter {unknown[0]}; the chapters are {', '.join(numbers)}"
            )
    except (ExportError, OSError) as error:
        print(f"course.check_work: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"not exported: {line}" for line in wrong))
    if args.export:
        return 0
    passed = load_progress(root)
    for number, chapter in zip(numbers, chapters, strict=True):
        if number in wanted or not wanted:
            work = collect(root / "notebooks" / chapter.path.name, chapter)
            passed |= check_chapter(chapter, work, root)
            if finished:
                put_to_use(chapter, work, passed, package)
    (root / PROGRESS).write_text(json.dumps(passed, indent=1), encoding="utf-8")
    print("\n" + table(chapters, passed, package))
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

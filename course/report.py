"""What the grader writes: a table of all, a page for each student."""

import csv
import hashlib
import html
import io
import json
import re
from pathlib import Path

from course.tasks import Chapter
from course.whole import write_whole


def file_name(student: str) -> str:
    """A name that is safe on every system, and another one for every student."""
    safe = re.sub(r"[^\w.-]+", "_", student, flags=re.ASCII).strip("._") or "student"
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", safe)
    plain = safe == student and not reserved and len(safe) < 80 and safe == safe.lower()
    return safe if plain else f"{safe[:60]}-{hashlib.sha256(student.encode()).hexdigest()[:8]}"


def total(result: dict) -> int:
    return sum(outcome["points"] for outcome in result["tasks"].values())


def feedback(result: dict, chapters: list[Chapter]) -> str:
    """A student's page, in Markdown."""
    most = sum(task.points for chapter in chapters for task in chapter.tasks)
    lines = [f"# {html.escape(result['student'])}: {total(result)} of {most} points", ""]
    lines += [f"- {html.escape(note)}" for note in result["notes"]] + [""] * bool(result["notes"])
    for chapter in chapters:
        rows = [
            (task, result["tasks"][task.id]) for task in chapter.tasks if task.id in result["tasks"]
        ]
        if not rows:
            continue
        points, of = sum(row["points"] for _, row in rows), sum(task.points for task, _ in rows)
        lines += [
            f"## {chapter.title}: {points} of {of}",
            "",
            "| task | points | |",
            "|---|---:|---|",
        ]
        for task, row in rows:
            message = html.escape(row["message"]).replace("|", "\\|")
            words = (
                "right"
                if row["passed"]
                else f"{message}. Read again: {row['section']}"
                if message
                else "not right"
            )
            lines.append(f"| {task.title} | {row['points']} of {task.points} | {words} |")
        lines.append("")
    return "\n".join(lines)


def scores(results: list[dict], chapters: list[Chapter]) -> str:
    """The table of all students, as CSV: points per task, their sum, whether anything is to be
    looked at.
    """
    tasks = [task for chapter in chapters for task in chapter.tasks]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["student", *(task.id for task in tasks), "total", "look"])
    writer.writerow(
        ["(points)", *(task.points for task in tasks), sum(task.points for task in tasks), ""]
    )
    for result in results:
        points = [result["tasks"].get(task.id, {}).get("points", 0) for task in tasks]
        name = result["student"]
        # subtle: spreadsheets run what begins like this
        safe = "'" + name if name[:1] in "=+-@\t\r" else name
        writer.writerow([safe, *points, total(result), "; ".join(result["look"])])
    return out.getvalue()


def write_all(results: list[dict], chapters: list[Chapter], out: Path) -> None:
    """scores.json and scores.csv."""
    results = sorted(results, key=lambda result: result["student"])
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_whole({out / "scores.json": text, out / "scores.csv": scores(results, chapters)})

"""In a notebook, a cell that waits for an unsolved task says so in one line, instead of a
traceback.
"""

import ast
import re
import sys
import traceback


OWN = "This cell waits for a task of this chapter: "
WAITING: set[str] = set()  # names that cells would have bound, had they not stopped


def watch() -> None:
    """Look at the errors of this notebook's cells; elsewhere do nothing."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell:
        shell.set_custom_exc((NotImplementedError, NameError), show)


def show(shell, kind, error, trace, tb_offset=None) -> None:
    """Show one line for an error that comes from an unsolved task, a traceback for all others."""
    if line := reason(error, trace):
        WAITING.update(bound(shell.user_ns["In"][-1]))
        error._render_traceback_ = lambda: [line]
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def reason(error: Exception, trace) -> str:
    """What a cell waits for, in one line; empty where the error is of another kind."""
    if type(error) is NameError:
        return (
            f"This cell waits for `{error.name}`, as a cell above it does."
            if error.name in WAITING
            else ""
        )
    *_, (frame, _) = traceback.walk_tb(trace)
    place, notebook = (
        frame.f_globals["__name__"],
        re.search(r"notebooks/(\w+)", frame.f_globals["__doc__"] or ""),
    )
    if place == "__main__":
        return f"{OWN}{error} is still missing."
    if place.startswith("minillama.") and notebook:
        return f"This cell waits for chapter {notebook[1]}: {error} is still missing."
    return ""


def bound(source: str) -> set[str]:
    """The names that a cell binds."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return names | {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}

"""Docstrings are plain text with `code` in single backticks; Sphinx reads reStructuredText."""

import re


MARKS = re.compile(r"(`[^`]*`)")


def plain(app, what, name, obj, options, lines) -> None:
    text = "\n".join(lines).split("\nWritten by notebooks/")[0]
    pieces = [
        f"``{piece[1:-1]}``" if piece.startswith("`") and len(piece) > 2 else escape(piece)
        for piece in MARKS.split(text)
    ]
    lines[:] = "".join(pieces).rstrip().split("\n") + [""]


def escape(text: str) -> str:
    return re.sub(r"([\\*|]|(?<=\w)_(?!\w))", r"\\\1", text)


def short(app, what, name, obj, options, signature, returns) -> tuple:
    """Types by their own names, without the modules that they come from."""
    if signature and len(signature) > 400:
        signature = "(...)"
    return tuple(
        text and re.sub(r"~?(?:\w+\.)+(\w+)", r"\1", text) for text in (signature, returns)
    )


def setup(app) -> dict:
    app.connect("autodoc-process-docstring", plain)
    app.connect("autodoc-process-signature", short)
    return {"parallel_read_safe": True}

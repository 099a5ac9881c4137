"""A chapter's first use of a glossary's term becomes a link to it, and an entry of the index."""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform


ROW = re.compile(r"^\| \*\*(.+?)\*\* \| (.+?) \|")
NOT_IN = (
    nodes.title,
    nodes.reference,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.caption,
    nodes.table,
    addnodes.index,
)


def terms(text: str) -> dict[str, str]:
    """What a glossary's rows spell -> the row's anchor. "MLP (feed-forward)": both spellings."""
    found = {}
    for line in text.splitlines():
        if row := ROW.match(line):
            for spelling in re.split(r"[(),]\s*|\s+or\s+", row[1]):
                if spelling.strip():
                    found[spelling.strip().lower()] = anchor(row[1])
    return found


def anchor(term: str) -> str:
    return "term-" + re.sub(r"[^a-z0-9]+", "-", term.lower()).strip("-")


class Anchors(SphinxTransform):
    """Each row of the glossary's table can be linked to."""

    default_priority = 400

    def apply(self) -> None:
        if self.env.docname != "glossary":
            return
        for row in self.document.findall(nodes.row):
            for strong in row[0].findall(nodes.strong):
                row[0]["ids"] = [anchor(strong.astext())]


class Links(SphinxTransform):
    default_priority = 410

    def apply(self) -> None:
        if not self.env.docname.startswith("notebooks/"):
            return
        glossary = terms((self.app.srcdir / "glossary.md").read_text(encoding="utf-8"))
        known = "|".join(re.escape(t) for t in sorted(glossary, key=len, reverse=True))
        pattern = re.compile(rf"(?<![\w-])({known})(s?)(?![\w-])", re.IGNORECASE)
        linked = set()
        for text in list(self.document.findall(nodes.Text)):
            if not inside(text, NOT_IN):
                self.link(text, pattern, glossary, linked)

    def link(self, text, pattern, glossary, linked) -> None:
        """Replace one text by texts and links."""
        pieces, end, string = [], 0, text.astext()
        for match in pattern.finditer(string):
            target = glossary[match[1].lower()]
            if target in linked:
                continue
            linked.add(target)
            pieces.append(nodes.Text(string[end : match.start()]))
            pieces += self.reference(match, target)
            end = match.end()
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(string[end:])])

    def reference(self, match, target) -> list[nodes.Node]:
        here = f"use-{target}"
        entry = addnodes.index(entries=[("single", match[1].lower(), here, "", None)])
        uri = self.app.builder.get_relative_uri(self.env.docname, "glossary") + f"#{target}"
        link = nodes.reference("", match[0], internal=True, refuri=uri, classes=["glossary"])
        return [entry, nodes.target("", "", ids=[here]), link]


def inside(node, kinds) -> bool:
    while node := node.parent:
        if isinstance(node, kinds):
            return True
    return False


def setup(app) -> dict:
    app.add_transform(Anchors)
    app.add_transform(Links)
    return {"parallel_read_safe": True}

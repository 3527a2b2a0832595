"""What stands below the title of a lecture: how long it is, what it builds on, where else to look.

All of it follows from the pages: chapters link to those they build on after the word Prerequisites,
and the pages of playgrounds link to the chapter of each of their sections.
"""

import math
import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from machinery.chapters import BOOK, Chapter, all_chapters

WORDS = 220  # that a reader reads in a minute
FIGURES = 2  # that a reader looks at in a minute
PLAYGROUNDS = sorted(BOOK.glob("play_*.md"))
SECTION = re.compile(r"^## ([^\n]+)\n(.+?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
LEAVES_OUT = (nodes.literal_block, nodes.math, nodes.math_block, nodes.raw, nodes.comment)


class ChapterHead(SphinxTransform):
    """Put one line below the title of each lecture."""

    default_priority = 390  # before exercises become boxes

    def apply(self) -> None:
        """Insert the line after the title."""
        found = [c for c in all_chapters() if f"book/{c.name}" == self.env.docname]
        title = next(self.document.findall(nodes.title), None)
        if found and title is not None:
            for page in PLAYGROUNDS:
                self.env.note_dependency(str(page))
            line = nodes.inline()
            for part in self.parts(found[0]):
                line += [nodes.Text(" · "), *part] if len(line) else part
            # no paragraph: the first paragraph of a page describes it to search engines
            title.parent.insert(1, nodes.container("", line, classes=["chapter-head"]))

    def parts(self, chapter: Chapter) -> list[list[nodes.Node]]:
        """The parts of the line."""
        minutes = reading_time(self.document)
        parts: list[list[nodes.Node]] = [[nodes.Text(f"About {minutes} minutes without code")]]
        if before := builds_on(self.document):
            parts.append([nodes.Text(f"builds on chapter{'s' * (len(before) > 1)} ")])
            for name in before:
                comma = [nodes.Text(", ")] if name != before[0] else []
                parts[-1] += [*comma, link(f"/book/{name}", str(int(name[:2])))]
        if chapter.evidence:
            parts.append([link(f"/book/{chapter.evidence.name}", "evidence")])
        if uri := playground_of(chapter):
            parts.append([nodes.reference("", "playground", refuri=uri, internal=True)])
        return parts


def link(page: str, text: str) -> addnodes.pending_xref:
    """A link to another page of the book."""
    target = {"refdomain": "std", "reftype": "doc", "reftarget": page, "refexplicit": True}
    return addnodes.pending_xref("", nodes.inline("", text), **target)


def reading_time(document: nodes.document) -> int:
    """The minutes that the words and the figures of a page take, exercises left out."""
    exercises = {
        part
        for section in document.findall(nodes.section)
        if section.next_node(nodes.title).astext() == "Exercises"  # type: ignore[union-attr]
        for part in section.findall()
    }
    texts = [text for text in document.findall(nodes.Text) if text not in exercises]
    words = sum(len(text.split()) for text in texts if is_prose(text))
    figures = sum(figure not in exercises for figure in document.findall(nodes.figure))
    return math.ceil(words / WORDS + figures / FIGURES)


def is_prose(text: nodes.Text) -> bool:
    """Whether a text is neither code nor a formula."""
    at: nodes.Node | None = text
    while at is not None and not isinstance(at, LEAVES_OUT):
        at = at.parent
    return at is None


def builds_on(document: nodes.document) -> list[str]:
    """The chapters that a lecture names after the word Prerequisites."""
    for paragraph in document.findall(nodes.paragraph):
        if paragraph.astext().startswith("Prerequisites."):
            targets = [x["reftarget"] for x in paragraph.findall(addnodes.pending_xref)]
            names = {chapter.name for chapter in all_chapters()}
            return [name for target in targets if (name := target.removeprefix("book/")) in names]
    return []


def playground_of(chapter: Chapter) -> str:
    """The address of the section of playgrounds that links to a chapter, empty without one."""
    for page in PLAYGROUNDS:
        for title, body in SECTION.findall(page.read_text("utf-8")):
            if f"({chapter.name}.ipynb)" in body:
                return f"{page.stem}.html#{nodes.make_id(title)}"
    return ""


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_transform(ChapterHead)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

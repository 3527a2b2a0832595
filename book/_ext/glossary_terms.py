"""Shows what a term of the glossary means, where a lecture uses it first.

The text of a lecture stays as it is: terms are found when its page is made. Each is marked from the
chapter on that explains it, which its entry links to: before it, some words mean other things.
"""

import re
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

GLOSSARY = "book/glossary"
LECTURE = re.compile(r"book/(\d\d)_")
# Lectures that use a word of the glossary for something else: the noise, and the speed of a copter.
MEANS_OTHERWISE = {("prior", 11), ("velocity", 14)}
# Where no term is marked: in code, formulas, links, and whatever is no running text.
LEFT_ALONE = (
    *(nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw),
    *(nodes.reference, nodes.title, nodes.figure, nodes.table, nodes.strong, addnodes.pending_xref),
)


class Entry(NamedTuple):
    """A term of the glossary: its anchor, its sentence, and the chapter that explains it."""

    term: str
    anchor: str
    says: str
    chapter: int

    @property
    def pattern(self) -> re.Pattern[str]:
        """What finds the term, also its plural, and over the end of a line."""
        words = r"\s+".join(map(re.escape, self.term.split()))
        return re.compile(rf"(?<![\w-]){words}(?:s|es)?(?![\w-])", re.IGNORECASE)


class term_says(nodes.Inline, nodes.Element):  # noqa: N801
    """The sentence of a term. It is no text of the page, so that the search does not find it."""


def entries(env: BuildEnvironment) -> list[Entry]:
    """The terms of the glossary, the longest first."""
    found = []
    for item in env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        term, definition = next(item.findall(nodes.term)), item[-1]
        link = next(iter(definition.findall(addnodes.pending_xref)))
        sentence = definition.astext().removesuffix(link.astext()).strip()
        chapter = LECTURE.match(link["reftarget"])
        if chapter is None:
            raise ValueError(f"glossary: {term.astext()} needs a link to its chapter")
        name = term.next_node(nodes.Text).astext()  # type: ignore[union-attr]
        found.append(Entry(name, term["ids"][0], sentence, int(chapter[1])))
    return sorted(found, key=lambda entry: -len(entry.term))


def depend(app: Sphinx, doctree: nodes.document) -> None:
    """Let each lecture be made again when the glossary changes."""
    if LECTURE.match(app.env.docname):
        app.env.note_dependency(str(app.env.doc2path(GLOSSARY)))


def mark(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Mark the first use of each term in a lecture."""
    if (lecture := LECTURE.match(page)) and GLOSSARY in app.env.found_docs:
        number, uri = int(lecture[1]), app.builder.get_relative_uri(page, GLOSSARY)
        for entry in entries(app.env):
            if entry.chapter <= number and (entry.term, number) not in MEANS_OTHERWISE:
                mark_first(doctree, entry, f"{uri}#{entry.anchor}")


def mark_first(doctree: nodes.document, entry: Entry, uri: str) -> None:
    """Mark the first use of one term."""
    for text in running_texts(doctree):
        if found := entry.pattern.search(text):
            place = nodes.inline(classes=["term-place"])
            about = {"name": f"{entry.anchor}-says", "says": entry.says, "uri": uri}
            place += term_says("", word=found[0], **about)
            before, after = nodes.Text(text[: found.start()]), nodes.Text(text[found.end() :])
            parts = [part for part in (before, place, after) if part is place or part]
            text.parent.replace(text, parts)
            return


def running_texts(doctree: nodes.document) -> Iterator[nodes.Text]:
    """The texts of paragraphs in which terms may be marked."""
    for paragraph in doctree.findall(nodes.paragraph):
        for text in paragraph.findall(nodes.Text):
            at = text.parent
            while at is not doctree and not isinstance(at, LEFT_ALONE):
                at = at.parent
            if at is doctree:
                yield text


def write_html(self: Any, node: term_says) -> None:
    """Write the word as a link to the glossary that its sentence describes."""
    name = node["name"]
    self.body.append(
        f'<a class="term" href="{node["uri"]}" aria-describedby="{name}">{escape(node["word"])}</a>'
        f'<span class="term-says" role="tooltip" id="{name}">{escape(node["says"])}</span>'
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_node(term_says, html=(write_html, None))
    app.connect("doctree-read", depend)
    app.connect("doctree-resolved", mark)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""The page that finds theorems, algorithms and figures, with formula, code and test."""

import importlib
import inspect
import os
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from machinery import claims
from machinery.chapters import BOOK, Chapter, all_chapters, read_notebook

ROWS = BOOK / "machinery" / "finder.toml"
DRAWING = re.compile(r"!\[[^\]]*\]\(_static/diagrams/([a-z-]+)\.svg\)\n\n\*([^\n]+)\*")


class Finder(SphinxDirective):
    """The tables of theorems, algorithms or figures, as its argument says."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The tables."""
        self.env.note_dependency(str(ROWS))
        for chapter in all_chapters():
            self.env.note_dependency(str(chapter.notebook))
        kind = self.arguments[0]
        node = nodes.container()
        lines = figure_lines() if kind == "figures" else row_lines(kind.removesuffix("s"))
        self.state.nested_parse(StringList(lines, str(ROWS)), 0, node)
        return node.children


def row_lines(kind: str) -> list[str]:
    """The table of all theorems or of all algorithms."""
    rows = tomllib.loads(ROWS.read_text("utf-8"))[kind]
    lines = [f"| {kind.capitalize()} | Formula | Code | Test |", "|---|---|---|---|"]
    return [*lines, *(row_line(row) for row in rows)]


def row_line(row: dict[str, str]) -> str:
    """One line of the table."""
    path, name = row["test"].split("::")
    says = name.removeprefix("test_").replace("_", " ")
    formula = f"{{eq}}`{row['equation']}`"
    return claims.line_of(row["name"], formula, code(row["code"]), source(path, says))


def code(name: str) -> str:
    """A link to what the library or an experiment computes."""
    if name.startswith("experiments."):
        return source(f"book/{name.replace('.', '/')}.py", f"`{name.split('.', 1)[1]}`")
    module, _, attribute = name.rpartition(".")
    # its own module has the entry: a package shows functions under its name
    found = inspect.unwrap(getattr(importlib.import_module(module), attribute))
    return f"{{py:obj}}`{attribute} <{found.__module__}.{found.__qualname__}>`"


def source(path: str, text: str) -> str:
    """A link to a file of the repository; without an address its path."""
    address = os.environ.get("REPOSITORY", "").rstrip("/")
    return f"[{text}]({address}/blob/main/{path})" if address else f"{text} (`{path}`)"


def figure_lines() -> list[str]:
    """The figures of all lectures with their captions."""
    lines = []
    for chapter in all_chapters():
        title = f"{int(chapter.name[:2])}. {chapter.title}"
        lines += [f"**{title}**", ""]
        lines += [f"- {{numref}}`{name}`: {says}" for name, says in figures(chapter)]
        lines.append("")
    return lines


def figures(chapter: Chapter) -> Iterator[tuple[str, str]]:
    """The names and the captions of the figures of a lecture, in order."""
    for cell in read_notebook(chapter).cells:
        if cell.cell_type == "markdown":
            for drawing, caption in DRAWING.findall(cell.source):
                yield f"fig-{drawing}", caption
        elif figure := (cell.metadata.get("mystnb") or {}).get("figure"):
            yield figure["name"], figure["caption"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_directive("finder", Finder)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

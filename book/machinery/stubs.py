"""Write the lectures as notebooks for a class: some lines are missing, and a cell checks them.

Which lines is said in stubs.toml. The lecture's own assertions are the check.
"""

import ast
import os
import re
import sys
import textwrap
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from .chapters import BOOK, ROOT, Chapter, read_text, write_each

TABLE = BOOK / "machinery" / "stubs.toml"
FOLDER = ROOT / "_build" / "stubs"
COLUMNS = 84  # of a line of code, as in the lectures
LINK = re.compile(r"\]\((?!#|[a-z]+:)([^)#]+)")
INTRODUCTION = (
    "**Your turn.** In this notebook the lines of {count} are missing. Replace each `...` by your"
    " own lines. The cell below says whether they are right."
)


@dataclass(frozen=True)
class Block:
    """Consecutive lines of a lecture that a student writes, and what the stub says about them."""

    after: str  # how a line above them begins, which no other cell has
    first: str  # how their first line begins
    write: str  # what to write
    last: str = ""  # how their last line begins, if they are several

    def lines(self, source: str) -> slice:
        """Which lines of a cell these are.

        Raises:
            ValueError: the cell has no such lines.
        """
        texts = [line.strip() for line in source.splitlines()]
        above = find(self.after, texts)
        first = find(self.first, texts, above + 1)
        return slice(first, 1 + (find(self.last, texts, first) if self.last else first))


@dataclass(frozen=True)
class Stub:
    """A cell of a lecture as a class gets it. `solution` and `check` together are that cell."""

    task: str  # the solution with gaps
    check: str
    solution: str


def find(start: str, lines: Sequence[str], begin: int = 0) -> int:
    """The number of the first line from `begin` on that begins with `start`."""
    for number in range(begin, len(lines)):
        if lines[number].startswith(start):
            return number
    raise ValueError(f"no line begins with {start!r}: correct {TABLE.name}")


# --- one cell -----------------------------------------------------------------------------------


def stub(source: str, blocks: Sequence[Block]) -> Stub:
    """A cell without the lines of its blocks, and the statements below them as the check."""
    lines = source.splitlines()
    places = [block.lines(source) for block in blocks]
    end = end_of_statement(source, places[-1].stop)
    task = lines[:end]
    for place, block in reversed(list(zip(places, blocks, strict=True))):
        task[place] = gap(lines[place.start], block)
    return Stub("\n".join(task), "\n".join(lines[end:]).strip("\n"), "\n".join(lines[:end]))


def gap(line: str, block: Block) -> list[str]:
    """What stands in place of a block: a comment and three dots, indented as its first line."""
    indent = " " * (len(line) - len(line.lstrip()))
    start = f"{indent}# "
    how = {"initial_indent": start, "subsequent_indent": start, "break_on_hyphens": False}
    return [*textwrap.wrap(block.write, COLUMNS, **how), f"{indent}..."]


def end_of_statement(source: str, line: int) -> int:
    """The last line of the cell's statement that holds a line; both are counted from 1."""
    ends = [statement.end_lineno or 0 for statement in ast.parse(source).body]
    return next(end for end in ends if end >= line)


def checking_cell(check: str, name: str) -> NotebookNode:
    """The cell below a stub, which says whether its lines are right."""
    body = textwrap.indent(check, "    ")
    source = f"from machinery import classroom\n\nwith classroom.checked():\n{body}"
    return new_code_cell(source, id=name)


# --- a lecture ----------------------------------------------------------------------------------


def blocks_of(chapter: Chapter) -> list[Block]:
    """What students write in a lecture; nothing if stubs.toml does not name it."""
    return [Block(**row) for row in tomllib.loads(TABLE.read_text("utf-8")).get(chapter.name, [])]


def stubs_of(notebook: NotebookNode, blocks: Sequence[Block]) -> dict[int, Stub]:
    """The stubs of a lecture by the number of their cell.

    Raises:
        ValueError: a block is in no cell, or in more than one.
    """
    found: dict[int, list[Block]] = {}
    for block in blocks:
        cells = [
            number
            for number, cell in enumerate(notebook.cells)
            if cell.cell_type == "code"
            and any(line.startswith(block.after) for line in cell.source.splitlines())
        ]
        if len(cells) != 1:
            raise ValueError(f"{len(cells)} cells have {block.after!r}: correct {TABLE.name}")
        found.setdefault(cells[0], []).append(block)
    return {number: stub(notebook.cells[number].source, here) for number, here in found.items()}


def classroom_notebook(chapter: Chapter, folder: Path) -> NotebookNode:
    """A lecture without outputs whose stubs are to be filled in, with a check below each."""
    notebook = read_text(chapter)
    parts = stubs_of(notebook, blocks_of(chapter))
    count = "one cell" if len(parts) == 1 else f"{len(parts)} cells"
    cells = [notebook.cells[0], new_markdown_cell(INTRODUCTION.format(count=count), id="your-turn")]
    for number, cell in enumerate(notebook.cells[1:], start=1):
        cells.append(cell)
        if number in parts:
            cell.source = parts[number].task
            cells.append(checking_cell(parts[number].check, f"check-{number}"))
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = with_links(cell.source, folder)
    notebook.cells = cells
    return notebook


def with_links(source: str, folder: Path) -> str:
    """A text whose links to other files of the book lead there from another folder."""
    book = Path(os.path.relpath(BOOK, folder)).as_posix()
    return LINK.sub(rf"]({book}/\1", source)


def main(arguments: list[str] | None = None) -> int:
    """Write the classroom notebooks of the named lectures and return the exit status."""

    def make(chapter: Chapter) -> Path | None:
        if not blocks_of(chapter):
            return None
        path = FOLDER / chapter.notebook.name
        nbformat.write(classroom_notebook(chapter, FOLDER), path)
        return path

    return write_each(make, FOLDER, main.__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())

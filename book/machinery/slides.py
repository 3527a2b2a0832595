"""Make slides of a lecture, in one file that needs no network: `make slides CHAPTER=07`.

A heading of the second level begins a slide. Formulas, figures and tables stay, and so does the
code that is checked against the library. A paragraph keeps its first sentences, and all of it goes
into the notes below the slide. Exercises are left out.
"""

import re
import sys
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

from bs4 import Tag
from bs4.element import NavigableString

from . import pages
from .chapters import BOOK, ROOT, Chapter, write_each

FOLDER = ROOT / "_build" / "slides"
TEMPLATE = BOOK / "machinery" / "slides.html"
LINES = 10  # that fit on a slide
WIDTH = 80  # letters of a line
SHOWN = 180  # letters of a paragraph, if its first sentence is not longer
FIGURE, FILM = 6.5, 7.5  # lines
SENTENCE = re.compile(r"[.!?](?=\s+[A-Z(*]|\s*$)")


@dataclass
class Slide:
    """What stands on one slide, and what is said about it."""

    title: str
    parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: float = 0.0

    @property
    def html(self) -> str:
        """The slide as a section of a page."""
        notes = f'<aside class="notes">{"".join(self.notes)}</aside>' if self.notes else ""
        return f"<section><h2>{self.title}</h2><div>{''.join(self.parts)}</div>{notes}</section>"


# --- what stays ---------------------------------------------------------------------------------


def blocks(section: Tag) -> Iterator[Tag]:
    """The paragraphs, formulas, lists and outputs of a section, in order."""
    for tag in section.find_all(True, recursive=False):
        if tag.name in ("h1", "h2") or {"exercise", "solution"} & set(tag.get("class") or ()):
            continue
        if "cell" in (tag.get("class") or ()):
            yield from cell_blocks(tag)
        elif tag.name == "section":
            yield from blocks(tag)
        elif tag.text.strip() or tag.find("img"):
            yield tag


def cell_blocks(cell: Tag) -> Iterator[Tag]:
    """The outputs of a cell, and before them its code where it is compared with the library."""
    code = cell.select_one(".cell_input")
    if code is not None and not cell.select_one("details.hide") and "close(" in code.text:
        yield code
    for output in cell.select(".cell_output > *"):
        if output.name == "div" and (figure := output.find("figure")):
            yield figure
        elif "stderr" not in (output.get("class") or ()):
            yield output


def beginning(paragraph: Tag) -> Tag:
    """A copy of a paragraph with its first sentences, as many as a slide has room for."""
    short = copy(paragraph)
    children = list(short.children)
    ends, before = [], 0
    for number, child in enumerate(children):
        if isinstance(child, NavigableString):
            ends += [(number, end.end(), before + end.end()) for end in SENTENCE.finditer(child)]
        before += letters(child.text)
    if ends:
        number, end, _ = [ends[0], *(end for end in ends[1:] if end[2] <= SHOWN)][-1]
        children[number].replace_with(str(children[number])[:end])
        for other in children[number + 1 :]:
            other.extract()
    return short


def letters(text: str) -> int:
    """About how many letters a text with formulas has on the page."""
    return len(re.sub(r"\\\w+|[{}^_]", "", text))


def size(tag: Tag) -> float:
    """About how many lines of a slide a block takes."""
    if tag.name == "p":
        return 1.2 + letters(tag.text) // WIDTH
    if tag.name == "figure":
        return FIGURE
    if tag.find("img"):
        return FILM
    if tag.find("pre"):
        return 1.0 + 0.5 * tag.text.count("\n")
    if rows := tag.find_all("tr"):
        return 1.0 + 0.9 * len(rows)
    if "math" in (tag.get("class") or ()):
        return 2.0 + 1.3 * tag.text.count("\\\\")
    if tag.name in ("ul", "ol", "dl"):
        return 0.8 + sum(1.2 + letters(item.text) // WIDTH for item in tag.find_all(("li", "dd")))
    return LINES


# --- slides -------------------------------------------------------------------------------------


def slides_of(section: Tag) -> list[Slide]:
    """The slides of a section. What needs a whole one gets it, and the others share."""
    heading = section.find(("h1", "h2"))
    title = heading.decode_contents() if isinstance(heading, Tag) else ""
    made = [Slide(title)]
    for group in groups(section):
        shown = [beginning(block) if block.name == "p" else block for block in group]
        need = sum(map(size, shown))
        if made[-1].parts and made[-1].lines + need > LINES:
            made.append(Slide(title))
        made[-1].parts += map(str, shown)
        made[-1].notes += [str(block) for block in group if block.name == "p"]
        made[-1].lines += need
    return [slide for slide in made if slide.parts]


def groups(section: Tag) -> list[list[Tag]]:
    """The blocks of a section, each formula together with the paragraph above it."""
    made: list[list[Tag]] = []
    for block in blocks(section):
        is_formula = "math" in (block.get("class") or ())
        if made and is_formula and [above.name for above in made[-1]] == ["p"]:
            made[-1].append(block)
        else:
            made.append([block])
    return made


def title_slide(lecture: Tag, book: str) -> str:
    """The first slide: the book, the lecture's title, and its first paragraph, taken out."""
    heading, promise = lecture.find("h1"), lecture.find("p")
    assert isinstance(heading, Tag)
    assert isinstance(promise, Tag)
    shown = f"<h1>{heading.decode_contents()}</h1>{promise.extract()}"
    return f'<section class="title"><p>{book}</p>{shown}</section>'


def lecture_of(site: Path, name: str) -> Tag:
    """What a lecture says, with links to the lecture itself alone."""

    def here(page: str, place: str) -> str | None:
        return f"#{place}" if page == name and place else None

    lecture = pages.article(site, name, here).find("section")
    assert isinstance(lecture, Tag)
    return lecture


def deck(site: Path, name: str) -> str:
    """The slides of a page of the site, as a page that holds all it needs."""
    lecture, title = lecture_of(site, name), pages.title(site, name)
    opening = title_slide(lecture, title.split(" — ")[-1])
    sections = [section.extract() for section in lecture.find_all("section", recursive=False)]
    made = [slide.html for section in (lecture, *sections) for slide in slides_of(section)]
    static = site / "_static"
    mathjax = (static / "mathjax" / "tex-svg-full.js").read_text("utf-8")
    parts = {
        "title": title,
        "slides": "\n".join([opening, *made]),
        "colours": (static / "pygments.css").read_text("utf-8"),
        "settings": pages.mathjax_settings(site, name),
        "mathjax": mathjax.replace("</script", "<\\/script"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], TEMPLATE.read_text("utf-8"))


def main(arguments: list[str] | None = None) -> int:
    """Write the slides of the named lectures and return the exit status."""

    def make(chapter: Chapter) -> Path:
        path = FOLDER / f"{chapter.name}.html"
        path.write_text(deck(pages.SITE, f"book/{chapter.name}"), "utf-8")
        return path

    return write_each(make, FOLDER, main.__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Print the lectures as one PDF: `make pdf`. Chromium prints the built pages, put together."""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from bs4 import Tag
from playwright.sync_api import sync_playwright

from . import pages
from .chapters import BOOK, ROOT

PDF = ROOT / "_build" / "ctdl.pdf"
TEMPLATE = BOOK / "machinery" / "print.html"
APPENDIX = ("book/notation", "book/references")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Fonts of formulas are files beside MathJax.
FLAGS = ["--allow-file-access-from-files", "--disable-gpu"]
HOW: dict[str, Any] = {
    "prefer_css_page_size": True,
    "print_background": True,
    "display_header_footer": True,
    "header_template": "<span></span>",
    "outline": True,
    "tagged": True,
    "footer_template": """<div style="font: 8pt sans-serif; width: 100%; text-align: center">
<span class="pageNumber"></span></div>""",
}
PAGE = re.compile(rb"\n(\d+) 0 obj\s*<</Type /Page\s")
PLACE = re.compile(rb"/(\S+) \[(\d+) 0 R /XYZ")
FILL = """pages => {
    for (const line of document.querySelectorAll('.contents li:has(a)'))
        line.querySelector('.page').textContent =
            pages[line.querySelector('a').getAttribute('href').slice(1)] ?? '';
}"""


def contents() -> list[tuple[str, list[str]]]:
    """The parts of the printed book, with the pages of each: the first page, lectures, appendix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    parts = [part for part in toc["parts"] if part.get("numbered")]
    lectures = [(p["caption"], [page["file"] for page in p["chapters"]]) for p in parts]
    return [("", [toc["root"]]), *lectures, ("Appendix", list(APPENDIX))]


def anchor(name: str, place: str = "") -> str:
    """The id that a place of a page has in the whole book."""
    return f"{Path(name).name}--{place}" if place else Path(name).name


def chapter(site: Path, name: str, names: list[str]) -> Tag:
    """A page as a part of the printed book, which has the pages `names`."""

    def target(page: str, place: str) -> str | None:
        return f"#{anchor(page, place)}" if page in names else None

    content = pages.article(site, name, target)
    pages.keep_what_readers_need(content)
    for tag in content.select("script, [id^=film] > div"):  # the controls of films
        tag.decompose()
    for tag in content.find_all(id=True):
        if tag.find_parent("svg") is None:  # a drawing refers to its own parts
            tag["id"] = anchor(name, str(tag["id"]))
    content["id"] = anchor(name)
    return content


def headings(content: Tag) -> Iterator[str]:
    """The lines of the table of contents for a page: its title and its sections."""
    for section in content.find_all("section"):
        heading = section.find(("h1", "h2"), recursive=False)
        if isinstance(heading, Tag):
            link = f'<a href="#{section["id"]}">{heading.decode_contents()}</a>'
            yield f'<li class="{heading.name}">{link}<span class="page"></span></li>'


def book(site: Path, parts: list[tuple[str, list[str]]]) -> str:
    """The pages of some parts as one HTML page, with a table of contents."""
    names = [name for _, group in parts for name in group]
    made, lines = [], []
    for caption, group in parts:
        lines.append(f'<li class="part">{caption}</li>' if caption else "")
        for name in group:
            made.append(chapter(site, name, names))
            lines += headings(made[-1])
    texts = {
        "contents": "\n".join(lines),
        "chapters": "\n".join(map(str, made)),
        "colours": (site / "_static" / "pygments.css").read_text("utf-8"),
        "settings": pages.mathjax_settings(site, names[0]),
        "mathjax": (site / "_static" / "mathjax" / "tex-chtml-full.js").resolve().as_uri(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: texts[found[1]], TEMPLATE.read_text("utf-8"))


def print_page(page: Path, pdf: Path) -> None:
    """Let Chromium print an HTML page.

    Raises:
        ValueError: there is no Chromium.
    """
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise ValueError("no Chromium: install it, e.g. `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        tab = browser.new_page()
        tab.goto(page.resolve().as_uri(), timeout=0)
        tab.evaluate("() => MathJax.startup.promise")
        # The numbers of pages are known when all is printed; then they go into the contents.
        tab.evaluate(FILL, page_numbers(tab.pdf(**HOW)))
        pdf.write_bytes(tab.pdf(**HOW))
        browser.close()


def page_numbers(pdf: bytes) -> dict[str, int]:
    """The page of each place that a link of a PDF of Chromium leads to."""
    order = [int(number) for number in PAGE.findall(pdf)]
    return {place.decode(): order.index(int(number)) + 1 for place, number in PLACE.findall(pdf)}


def main(arguments: list[str] | None = None) -> int:
    """Print the lectures into _build/ctdl.pdf and return the exit status."""
    argparse.ArgumentParser(description=main.__doc__).parse_args(arguments)
    page = PDF.with_suffix(".html")
    try:
        page.write_text(book(pages.SITE, contents()), "utf-8")
        print_page(page, PDF)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(PDF)
    return 0


if __name__ == "__main__":
    sys.exit(main())

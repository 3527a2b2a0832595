"""The built pages as parts of other documents: what they say, without what is around it."""

import base64
import json
import mimetypes
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from bs4 import BeautifulSoup, Tag

from .chapters import ROOT

SITE = ROOT / "_build" / "html"
MATHJAX = re.compile(r"window\.MathJax = .*")
DEFINITIONS = re.compile(r"^\\\(\\def")
BUILD = "run `make book`"
FIRST_CELL = "finds-imports"  # the id of the cell that downloads have below their title

# What a link becomes, given the page that it leads to and the place in that page.
Target = Callable[[str, str], str | None]


def read(site: Path, name: str) -> BeautifulSoup:
    """A built page.

    Raises:
        ValueError: it was not built, or its notebook is newer.
    """
    path = site / f"{name}.html"
    if not path.exists():
        raise ValueError(f"{path} is missing: {BUILD}")
    copy, notebook = site / "_sources" / f"{name}.ipynb", ROOT / f"{name}.ipynb"
    if copy.exists() and notebook.exists() and cells(copy) != cells(notebook):
        raise ValueError(f"{path} is older than {notebook.name}: {BUILD}")
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The cells of a notebook, without the one that only downloads have."""
    found = json.loads(notebook.read_text("utf-8"))["cells"]
    return [cell for cell in found if cell.get("id") != FIRST_CELL]


def article(site: Path, name: str, target: Target) -> Tag:
    """What a page says, with its pictures inside of it and links that lead to `target`.

    A link without a target leads to the published page, if that is known, and else becomes text.
    """
    soup = read(site, name)
    content = soup.select_one("article.bd-article")
    assert content is not None
    for tag in content.select(".headerlink, template, script[src], .term-says, .chapter-head"):
        tag.decompose()
    for term in content.select(".term-place"):  # its sentence shows on a screen alone
        term.replace_with(term.text)
    for macros in content.find_all(class_="math", string=DEFINITIONS):
        macros.decompose()  # for notebooks; here MathJax has them from its settings
    for image in content.find_all("img"):
        image["src"] = embedded(site / Path(name).parent, str(image["src"]))
    published = soup.find("link", rel="canonical")
    address = str(published["href"]) if isinstance(published, Tag) else None
    for link in content.find_all("a", href=True):
        redirect(link, name, target, address)
    return content


def title(site: Path, name: str) -> str:
    """The title of a page and of the book, as the browser's window shows it, in HTML."""
    found = read(site, name).title
    assert found is not None
    return escape(found.text.strip())


def embedded(folder: Path, source: str) -> str:
    """The address of a picture that holds the picture itself."""
    if source.startswith("data:"):
        return source
    path = folder / unquote(urlsplit(source).path)
    kind, _ = mimetypes.guess_type(path.name)
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def redirect(link: Tag, name: str, target: Target, address: str | None) -> None:
    """Let a link of a page lead to where its target is now."""
    parts = urlsplit(str(link["href"]))
    if parts.scheme:
        return
    page = urljoin(name, parts.path).removesuffix(".html") if parts.path else name
    if to := target(page, unquote(parts.fragment)):
        link["href"] = to
    elif address:
        link["href"] = urljoin(address, str(link["href"]))
    else:
        link.unwrap()


def mathjax_settings(site: Path, name: str) -> str:
    """The script that tells MathJax the book's macros."""
    found = MATHJAX.search(next(s.text for s in read(site, name)("script") if "MathJax" in s.text))
    assert found is not None
    return found.group()


def keep_what_readers_need(content: Tag) -> None:
    """Leave folded code out where it only draws what stands below it."""
    for folded in content.select("details.hide"):
        cell = folded.find_parent(class_="cell")
        if cell is not None and cell.select_one(".cell_output"):
            folded.decompose()
        else:
            for summary in folded.select("summary"):
                summary.decompose()
            folded.unwrap()

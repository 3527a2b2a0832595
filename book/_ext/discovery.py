"""What search engines, cards on social sites and readers who cite the book get from its pages."""

import os
import re
from html import escape
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape as escape_xml

import matplotlib.pyplot as plt
from docutils import nodes
from glossary_terms import term_says
from sphinx.application import Sphinx
from sphinx.config import Config

import ctdl_lib
from experiments import playgrounds
from experiments.playgrounds.drawing import framed
from machinery import plotting

CARD = "_static/card.png"
LENGTH = 160  # what search engines show of a description
VIEWPORT = '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'


def set_address(app: Sphinx, config: Config) -> None:
    """Take the address of the published book from $SITE; without it no page claims to have one."""
    if site := os.environ.get("SITE", ""):
        config["html_baseurl"] = site.rstrip("/") + "/"


def description(doctree: nodes.document | None) -> str:
    """The beginning of the first paragraph that is a text."""
    for paragraph in doctree.findall(nodes.paragraph) if doctree else ():
        said = " ".join("".join(map(plain, paragraph.findall())).split())
        if len(said) > LENGTH / 3:
            return said if len(said) <= LENGTH else said[: LENGTH - 1].rsplit(" ", 1)[0] + "…"
    return ""


def plain(node: nodes.Node) -> str:
    """What one node of a paragraph says: a text, a term of the glossary, or a short formula."""
    if isinstance(node, term_says):
        return node["word"]
    if not isinstance(node, nodes.Text) or node.startswith("\\def"):  # definitions of macros
        return ""
    return re.sub(r"[\\{}]", "", node) if isinstance(node.parent, nodes.math) else str(node)


def tell(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Describe a page to machines, and say at its foot which version this is and how to cite it."""
    title = re.sub("<[^>]+>", "", context.get("title", ""))
    book = app.config.html_title
    whole = title if title == book else f"{title} – {book}"
    tags = {"og:title": whole, "og:type": "article"}
    if said := description(doctree):
        tags |= {"description": said, "og:description": said}
    if base := app.config.html_baseurl:
        tags |= {"og:image": base + CARD, "og:url": base + app.builder.get_target_uri(page)}
    lines = [
        f'<meta {"property" if ":" in name else "name"}="{name}" content="{escape(text)}" />'
        for name, text in tags.items()
    ]
    # the theme's own is enough
    known = context.get("metatags", "").replace(VIEWPORT, "")
    context["metatags"] = "\n".join(["", *lines, known])
    first = "" if page == "book/intro" else context["pathto"]("book/intro")
    cite = f"{first}#how-to-cite"
    context["theme_extra_footer"] = (
        f'<p>Version {ctdl_lib.__version__}, MIT licence. <a href="{cite}">How to cite</a></p>'
    )


def finish(app: Sphinx, error: Exception | None) -> None:
    """Draw the card, and list all pages of a book that has an address."""
    if error or app.builder.format != "html":
        return
    out, base = Path(app.outdir), app.config.html_baseurl
    draw_card(out / CARD, app.config.html_title)
    if base:
        pages = [base + app.builder.get_target_uri(page) for page in sorted(app.env.found_docs)]
        rows = "".join(f"<url><loc>{escape_xml(page)}</loc></url>\n" for page in pages)
        space = "http://www.sitemaps.org/schemas/sitemap/0.9"
        head = '<?xml version="1.0" encoding="UTF-8"?>\n'
        (out / "sitemap.xml").write_text(f'{head}<urlset xmlns="{space}">\n{rows}</urlset>\n')


def draw_card(path: Path, title: str) -> None:
    """Draw the picture that social sites show beside a link, 1200 by 630 pixels."""
    plotting.use_style()
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 6.3), layout="none")
    left.axis("off")
    words = title.replace(" for ", "\nfor ").replace(" Deep", "\nDeep")
    left.text(0, 0.5, words, fontsize=27, va="center", transform=left.transAxes)
    playgrounds.draw_hero(framed(right))
    fig.savefig(path, dpi=100)
    plt.close(fig)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("config-inited", set_address)
    app.connect("html-page-context", tell)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

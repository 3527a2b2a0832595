"""Mends what Sphinx, its theme and its extensions leave in the pages, when all of them are written.

Pages are as the standard of HTML says; a policy in their head lets a browser load nothing from
elsewhere and run no script that was not there when the book was built; and what no page uses is
not published.
"""

import base64
import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

# What stands in the pages, and what shall stand there. Each change can be made twice.
MENDED = {
    # the toggles of the sidebar get a name, which screen readers announce
    r'<summary>(?=<span class="toctree-toggle")': '<summary aria-label="pages of this chapter">',
    # a summary holds no paragraphs
    r'<p class="(collapsed|expanded) admonition-title">(.*?)</p>': (
        r'<span class="\1 admonition-title">\2</span>'
    ),
    # citations in docstrings are numbered anew in each of them, and nothing refers to them
    r'(<span class="bibtex-citation") id="id\d+"': r"\1",
    # the page of another site gets no hold of this one
    r'(<a (?![^>]*\brel=)[^>]*href="https?://[^>"]*")': r'\1 rel="noopener"',
}
ADDRESS = re.compile(r'(?<= href=")https?://[^"]*')
NOT_IN_ADDRESSES = {"&lt;": "%3C", "&gt;": "%3E"}
SCRIPT = re.compile(r"<script(?![^>]*\b(?:src|type)=)[^>]*>(.*?)</script>", re.DOTALL)
HANDLER = re.compile(r' on[a-z]+="([^"]*)"')
HEAD = '<meta charset="utf-8" />'
# Of MathJax the pages, the slides and the printed book use only these.
MATHJAX = {"tex-chtml.js", "tex-chtml-full.js", "tex-svg-full.js", "input", "output"}


def mended(html: str, handlers: Iterable[str]) -> str:
    """A page without what HTML forbids, and with its policy."""
    for found, wanted in MENDED.items():
        html = re.sub(found, wanted, html)
    html = ADDRESS.sub(lambda address: encoded(address[0]), html)
    if "Content-Security-Policy" in html:
        return html
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(html, handlers)}" />'
    return html.replace(HEAD, f"{HEAD}\n    {meta}", 1)


def encoded(address: str) -> str:
    """An address with letters that addresses may have."""
    for letter, code in NOT_IN_ADDRESSES.items():
        address = address.replace(letter, code)
    return address


def policy(html: str, handlers: Iterable[str]) -> str:
    """What a page may load and run: files beside it, its scripts, the handlers of all pages.

    The search parses other pages inside its own. Pages that are opened as files have no origin, so
    that files are named beside it. MathJax and the theme write styles into the page.
    """
    scripts = dict.fromkeys([*SCRIPT.findall(html), *handlers])
    hashes = [hashlib.sha256(script.encode()).digest() for script in scripts]
    known = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes]
    here = "'self' file:"
    rules = {
        "default-src": here,
        "script-src": " ".join([here, "'unsafe-hashes'", *known]),
        "style-src": f"{here} 'unsafe-inline'",
        "img-src": f"{here} data:",
        "font-src": f"{here} data:",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": here,
    }
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


def mend(app: Sphinx, error: Exception | None) -> None:
    """Mend all pages, and take away what none of them uses."""
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    pages = {path: path.read_text("utf-8") for path in out.rglob("*.html")}
    handlers = sorted({handler for html in pages.values() for handler in HANDLER.findall(html)})
    for path, html in pages.items():
        if (made := mended(html, handlers)) != html:
            path.write_text(made, "utf-8")
    for path in (out / "_static").rglob("*.map"):
        path.unlink()
    for path in (out / "_static" / "mathjax").iterdir():
        if path.name not in MATHJAX:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("build-finished", mend, priority=900)  # after all others
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""What is mended in the built pages: without a build, on small ones."""

import base64
import hashlib
import sys
from types import SimpleNamespace

from machinery import chapters

sys.path.insert(0, str(chapters.BOOK / "_ext"))

import mending

PAGE = """<html><head>
    <meta charset="utf-8" />
<script>before()</script><script src="a.js"></script>
<script type="text/x-thebe-config">{}</script></head><body>
<button onclick="print()">print</button>
<details><summary><p class="collapsed admonition-title">Show</p></summary></details>
<a class="reference external" href="https://example.org/a&lt;b&gt;">a</a>
<a href="https://example.org" rel="me">b</a> <a href="page.html">c</a>
<span class="bibtex-citation" id="id1">d</span> <span class="bibtex-citation" id="id1">e</span>
</body></html>"""


def digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def test_a_page_gets_a_policy_of_the_scripts_that_stand_in_it():
    made = mending.mended(PAGE, ["print()"])
    rule = made.split("script-src ")[1].split(";")[0]
    known = [f"'sha256-{digest(script)}'" for script in ("before()", "print()")]
    assert rule == f"'self' file: 'unsafe-hashes' {' '.join(known)}"
    assert made.index("Content-Security-Policy") < made.index("<script>")


def test_what_html_forbids_is_mended():
    made = mending.mended(PAGE, ["print()"])
    assert '<summary><span class="collapsed admonition-title">Show</span></summary>' in made
    assert 'href="https://example.org/a%3Cb%3E" rel="noopener"' in made
    assert '<a href="https://example.org" rel="me">b</a> <a href="page.html">' in made
    assert 'id="id1"' not in made


def test_a_page_that_is_mended_stays_as_it_is():
    made = mending.mended(PAGE, ["print()"])
    assert mending.mended(made, []) == made


def test_all_pages_are_mended_and_of_mathjax_only_what_they_use_is_published(tmp_path):
    mathjax = tmp_path / "_static" / "mathjax"
    for name in ("sre/a.js", "output/chtml/font.woff", "tex-chtml.js", "mml-svg.js", "b.js.map"):
        (mathjax / name).parent.mkdir(parents=True, exist_ok=True)
        (mathjax / name).touch()
    (tmp_path / "index.html").write_text(PAGE, "utf-8")
    (tmp_path / "search.html").write_text(mending.HEAD, "utf-8")
    app = SimpleNamespace(outdir=str(tmp_path), builder=SimpleNamespace(format="html"))
    mending.mend(app, None)  # type: ignore[arg-type]
    assert sorted(path.name for path in mathjax.iterdir()) == ["output", "tex-chtml.js"]
    assert "Content-Security-Policy" in (tmp_path / "index.html").read_text("utf-8")
    # the search parses all pages inside its own
    assert digest("print()") in (tmp_path / "search.html").read_text("utf-8")

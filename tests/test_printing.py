"""Slides and print: what is taken from a built page, and what is said when there is none."""

import pytest
from bs4 import BeautifulSoup, Tag

from machinery import chapters, pages, printing, slides

PAGE = """<html><head><title>1. Waves — A book</title>
<script>window.MathJax = {"tex": {"macros": {"R": "r"}}}</script></head><body>
<article class="bd-article"><section id="waves"><h1>1. Waves<a class="headerlink">#</a></h1>
<div class="chapter-head">About 9 minutes</div>
<p><span class="math">\\(\\def\\R{}\\)</span>Waves move. They do.</p>
<section id="first"><h2>1.1. First</h2>
<p>One <span class="term-place"><a class="term" href="glossary.html#wave">sentence</a><span
class="term-says" role="tooltip">A glossary's words.</span></span>. %s</p>
<figure class="diagram" id="fig-loop"><svg role="img" aria-labelledby="loop">
<title id="loop">A loop</title>
<marker id="tip"></marker><path marker-end="url(#tip)"/></svg>
<figcaption>A drawing.</figcaption></figure>
<p>Then we have</p><div class="math" id="equation-a">\\[a\\]</div>
<div class="cell"><details class="hide"><summary>Show</summary>
<div class="cell_input">draw()</div></details>
<div class="cell_output">
<figure id="fig-a"><img src="../_images/a.png" alt="A"></figure></div></div>
<div class="cell"><details class="hide"><summary>Show</summary>
<div class="cell_input">import this</div></details></div>
<div class="cell"><div class="cell_input">assert close(1)</div></div>
<div class="cell"><div class="cell_input">plot(1)</div></div>
<p>See <a href="other.html#b">there</a>, <a href="#fig-a">here</a>,
<a href="evidence/x.html">far</a>.</p>
</section>
<section id="more"><h2>1.2. More</h2><div class="exercise"><p>Do it.</p></div></section>
</section></article></body></html>"""
NAMES = ["book/waves", "book/other"]


@pytest.fixture
def site(tmp_path):
    """A site of two pages and a picture."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images" / "a.png").write_bytes(b"picture")
    for name in NAMES:
        text = PAGE % ("It is long. " * 40)
        (tmp_path / f"{name}.html").write_text(text, "utf-8")
    return tmp_path


def tag(html: str) -> Tag:
    found = BeautifulSoup(html, "html.parser").find(True)
    assert isinstance(found, Tag)
    return found


# --- pages --------------------------------------------------------------------------------------


def test_a_page_that_is_missing_or_old_says_what_to_run(site):
    with pytest.raises(ValueError, match="is missing: run `make book`"):
        pages.read(site, "book/07_ot_flow")
    name = chapters.all_chapters()[0].name
    (site / "book" / f"{name}.html").write_text(PAGE, "utf-8")
    (site / "_sources" / "book").mkdir(parents=True)
    (site / "_sources" / "book" / f"{name}.ipynb").write_text('{"cells": []}')
    with pytest.raises(ValueError, match=r"is older than 0\S*\.ipynb: run `make book`"):
        pages.read(site, f"book/{name}")


def test_a_picture_is_inside_and_links_lead_to_the_printed_page_or_are_text(site):
    content = printing.chapter(site, "book/waves", NAMES)
    (image,) = content.find_all("img")
    assert image["src"] == "data:image/png;base64,cGljdHVyZQ=="
    links = {link.text: link["href"] for link in content.find_all("a")}
    assert links == {"there": "#other--b", "here": "#waves--fig-a"}
    assert content.find(id="waves--fig-a")
    assert "far" in content.text


def test_what_helps_on_a_screen_is_left_out_and_drawings_keep_their_arrows(site):
    content = printing.chapter(site, "book/waves", NAMES)
    assert "One sentence. It is long." in " ".join(content.text.split())
    assert "About 9 minutes" not in content.text
    drawing = content.select_one("figure#waves--fig-loop svg")
    assert drawing is not None
    assert drawing.find(id="tip") is not None
    assert drawing.find(id=str(drawing["aria-labelledby"])) is not None


def test_links_to_other_pages_lead_to_the_published_ones(site):
    path = site / "book" / "waves.html"
    canonical = '<head><link rel="canonical" href="https://a.org/book/waves.html">'
    path.write_text(path.read_text("utf-8").replace("<head>", canonical), "utf-8")
    content = printing.chapter(site, "book/waves", NAMES)
    assert [link["href"] for link in content.find_all("a", string="far")] == [
        "https://a.org/book/evidence/x.html"
    ]


# --- slides -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("One. Two.", "One. Two."),
        ("One, e.g. this. " + "Long " * 40 + "end. Three.", "One, e.g. this."),
        ("no end", "no end"),
        ("A <em>new. B</em> word. " + "Long " * 40 + "end.", "A new. B word."),
    ],
)
def test_a_paragraph_keeps_its_first_sentences(text, shown):
    assert slides.beginning(tag(f"<p>{text}</p>")).text == shown


def test_slides_keep_formulas_figures_and_checks_and_leave_exercises_out(site):
    lecture = slides.lecture_of(site, "book/waves")
    (first,) = lecture.find_all("section", id="first")
    made = slides.slides_of(first)
    assert {slide.title for slide in made} == {"1.1. First"}
    shown = "".join(part for slide in made for part in slide.parts)
    for kept in ("One sentence.", "equation-a", 'id="fig-a"', "assert close(1)", "Then we have"):
        assert kept in shown
    for gone in ("draw()", "import this", "plot(1)", "It is long. " * 20):
        assert gone not in shown
    assert "It is long. " * 20 in "".join(note for slide in made for note in slide.notes)
    together = [part for slide in made for part in slide.parts]
    where = [k for k, part in enumerate(together) if "Then we have" in part]
    assert "equation-a" in together[where[0] + 1]
    (more,) = lecture.find_all("section", id="more")
    assert slides.slides_of(more) == []


def test_a_full_slide_is_followed_by_a_next_one():
    section = tag(f"<section><h2>T</h2>{'<p>Text.</p>' * 20}</section>")
    made = slides.slides_of(section)
    assert len(made) == 3
    assert sum(len(slide.parts) for slide in made) == 20
    assert max(slide.lines for slide in made) <= slides.LINES


def test_the_command_for_slides_names_what_is_wrong(capsys):
    assert slides.main(["99"]) == 1
    assert "no chapter 99" in capsys.readouterr().err


# --- print --------------------------------------------------------------------------------------


def test_the_printed_book_has_all_lectures_and_no_evidence():
    names = [name for _, group in printing.contents() for name in group]
    lectures = [f"book/{chapter.name}" for chapter in chapters.all_chapters()]
    assert names == ["book/intro", *lectures, "book/notation", "book/references"]


def test_print_leaves_out_code_that_only_draws(site):
    text = printing.chapter(site, "book/waves", NAMES).text
    assert "draw()" not in text
    assert "Show" not in text
    for kept in ("import this", "assert close(1)", "plot(1)"):
        assert kept in text


def test_places_of_a_pdf_have_the_numbers_of_their_pages():
    pdf = b"""%PDF-1.4
7 0 obj\n<</Type /Page\n/Parent 9 0 R>>
12 0 obj\n<</Type /Page\n/Parent 9 0 R>>
9 0 obj\n<</Type /Pages\n/Kids [7 0 R 12 0 R]>>
20 0 obj\n<</waves [7 0 R /XYZ 0 1 0]\n/waves--first [12 0 R /XYZ 0 2 0]>>"""
    assert printing.page_numbers(pdf) == {"waves": 1, "waves--first": 2}


def test_without_chromium_print_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(printing.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="no Chromium: install it"):
        printing.print_page(tmp_path / "a.html", tmp_path / "a.pdf")

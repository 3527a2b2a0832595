"""What a build adds to chapters: their heads, the map of the book, and terms of the glossary."""

import io
import re
import sys

import pytest
from docutils import nodes
from docutils.utils import new_document
from PIL import Image

from machinery import chapters

sys.path.insert(0, str(chapters.BOOK / "_ext"))

import chapter_head
import chapter_map
import glossary_terms

LECTURES = chapters.all_chapters()
GLOSSARY = (chapters.BOOK / "glossary.md").read_text("utf-8")
TERMS = re.findall(r"^(\S.+)\n  (.+\.) \[Chapter (\d+)\]\((\S+)\.ipynb\)$", GLOSSARY, re.MULTILINE)


def page(*parts: nodes.Node) -> nodes.document:
    document = new_document("page")
    document += parts
    return document


# --- heads --------------------------------------------------------------------------------------


def test_reading_takes_a_minute_for_220_words_and_for_two_figures():
    words = nodes.paragraph("", "word " * 440)
    code, formula = nodes.literal_block("", "x " * 999), nodes.math_block("", "x " * 999)
    assert chapter_head.reading_time(page(words, code, formula)) == 2
    assert chapter_head.reading_time(page(words, nodes.figure(), nodes.figure())) == 3


def test_exercises_do_not_count_as_reading():
    exercises = nodes.section("", nodes.title("", "Exercises"), nodes.paragraph("", "word " * 999))
    assert chapter_head.reading_time(page(nodes.paragraph("", "word " * 99), exercises)) == 1


def test_playgrounds_are_found_by_their_links_to_chapters():
    found = {c.name[:2]: chapter_head.playground_of(c) for c in LECTURES}
    assert found["03"] == "play_layers.html#steps-that-a-solver-chooses"
    assert found["06"] == found["07"] == "play_flows.html#two-flows-of-the-plane"
    assert found["16"] == ""


# --- the map ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chapter", LECTURES, ids=lambda c: c.name)
def test_the_map_shows_a_small_piece_of_a_figure(chapter):
    piece, png = chapter_map.piece_of(chapter)
    small = chapter_map.thumbnail(piece, png)
    assert len(small) <= 8000
    image = Image.open(io.BytesIO(small))
    assert image.size == chapter_map.SIZE
    darkest, brightest = image.convert("L").getextrema()
    assert darkest < 150 < brightest  # it is not empty
    assert 10 < len(piece.alt) < 60


def test_a_figure_that_is_gone_is_named(monkeypatch):
    gone = chapter_map.PIECES["01"]._replace(figure="fig-gone")
    monkeypatch.setitem(chapter_map.PIECES, "01", gone)
    with pytest.raises(ValueError, match="01_resnets has no picture fig-gone for the map"):
        chapter_map.piece_of(LECTURES[0])


def test_a_chapter_without_a_row_shows_its_first_picture(monkeypatch):
    monkeypatch.delitem(chapter_map.PIECES, "01")
    assert chapter_map.piece_of(LECTURES[0])[0].figure == "fig-three-panels"


# --- the glossary -------------------------------------------------------------------------------


def test_every_term_has_one_sentence_and_a_chapter_that_uses_it():
    entries = GLOSSARY.split("```{glossary}\n")[1].split("```")[0].strip().split("\n\n")
    assert len(TERMS) == len(entries) >= 40
    names = [re.sub(r"\W", "", term.lower()) for term, *_ in TERMS]
    assert names == sorted(names)
    for term, says, number, name in TERMS:
        assert name.startswith(f"{int(number):02}_")
        assert ". " not in says
        assert len(says) < 160
        text = chapters.Chapter(name).text.read_text("utf-8")
        assert glossary_terms.Entry(term, "", says, 1).pattern.search(text), term


SCORE = glossary_terms.Entry("score", "term-score", "A gradient.", 10)


def marked(*parts: nodes.Node, entry: glossary_terms.Entry = SCORE) -> tuple[list[str], str]:
    """The words that are marked in a page of these parts, and the page's text."""
    document = page(nodes.paragraph("", "", *parts))
    glossary_terms.mark_first(document, entry, "glossary.html#term-score")
    found = [mark["word"] for mark in document.findall(glossary_terms.term_says)]
    return found, document.astext()


def test_the_first_use_of_a_term_is_marked_and_no_other():
    assert marked(nodes.Text("No underscore, but Scores and a score.")) == (
        ["Scores"],
        "No underscore, but  and a score.",
    )


def test_a_term_is_found_over_the_end_of_a_line():
    entry = SCORE._replace(term="value function")
    assert marked(nodes.Text("the value\nfunction"), entry=entry)[0] == ["value\nfunction"]


@pytest.mark.parametrize("kind", [nodes.literal, nodes.math, nodes.reference, nodes.strong])
def test_no_term_is_marked_in_code_formulas_and_links(kind):
    assert marked(kind("", "score"), nodes.Text(" and a score"))[0] == ["score"]
    assert marked(kind("", "score"))[0] == []


def test_no_term_is_marked_in_headings():
    document = page(nodes.section("", nodes.title("", "The score")))
    glossary_terms.mark_first(document, SCORE, "")
    assert list(document.findall(glossary_terms.term_says)) == []


def test_words_that_mean_something_else_are_terms_of_earlier_chapters():
    explained = {term: int(number) for term, _, number, _ in TERMS}
    for term, chapter in glossary_terms.MEANS_OTHERWISE:
        assert explained[term] < chapter

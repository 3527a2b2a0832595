"""What a build adds to chapters: their heads, and the map of the book."""

import io
import sys

import pytest
from docutils import nodes
from docutils.utils import new_document
from PIL import Image

from machinery import chapters

sys.path.insert(0, str(chapters.BOOK / "_ext"))

import chapter_head
import chapter_map

LECTURES = chapters.all_chapters()



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
    anchors = {c.name[:2]: chapter_head.playground_of(c) for c in LECTURES}
    assert anchors["03"] == "steps-that-a-solver-chooses"
    assert anchors["06"] == anchors["07"] == "two-flows-of-the-plane"
    assert anchors["16"] == ""


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

"""The drawings: small, legible on a phone, and each in the lecture that explains it."""

import re
from collections import Counter
from xml.etree import ElementTree

import pytest

from machinery import chapters

FOLDER = chapters.BOOK / "_static" / "diagrams"
DIAGRAMS = sorted(FOLDER.glob("*.svg"))
LECTURES = chapters.all_chapters()
SHOWN = re.compile(
    r"^!\[(.+)\]\(_static/diagrams/([a-z-]+)\.svg\)\n\n\*[A-Z].+\.\*\n", re.MULTILINE
)
FIGURE = re.compile(
    r"^    name: (fig-[a-z0-9-]+)$|\(_static/diagrams/([a-z-]+)\.svg\)$", re.MULTILINE
)
NUMBERED = re.compile(r"\[Fig\. (\d+)\]\(#(fig-[a-z0-9-]+)\)")
PHONE = 342  # pixels that a drawing has where the window has 390


@pytest.mark.parametrize("path", DIAGRAMS, ids=lambda p: p.stem)
def test_a_drawing_is_small_and_legible_on_a_phone(path):
    assert path.stat().st_size <= 6000
    root = ElementTree.parse(path).getroot()
    width = float(root.attrib["viewBox"].split()[2])
    sizes = [float(e.attrib["font-size"]) for e in root.iter() if "font-size" in e.attrib]
    assert min(sizes) * PHONE / width >= 12
    tags = Counter(e.tag.split("}")[1] for e in root.iter())
    assert tags["text"] > 0
    assert tags["style"] == tags["image"] == tags["script"] == 0  # they would act on the page
    ground = root[0].attrib
    assert [ground[key] for key in ("class", "width")] == ["ground", f"{width:g}"]
    coloured = [e.attrib for e in root.iter() if e.attrib.get("color")][1:]
    assert {e["class"] for e in coloured} <= {"first", "second"}  # those the style sheet knows


def test_names_inside_of_drawings_are_unique():
    """Two drawings may stand on one page."""
    ids = [name for path in DIAGRAMS for name in re.findall(r'\bid="(.+?)"', path.read_text())]
    assert len(ids) == len(set(ids)) > 0


def test_every_drawing_stands_in_one_lecture_with_alternative_text_and_caption():
    texts = [chapter.text.read_text("utf-8") for chapter in LECTURES]
    shown = [name for text in texts for _, name in SHOWN.findall(text)]
    assert sorted(shown) == [path.stem for path in DIAGRAMS]


@pytest.mark.parametrize("chapter", LECTURES, ids=lambda c: c.name)
def test_numbers_of_figures_that_notebooks_show_are_those_of_the_book(chapter):
    text = chapter.text.read_text("utf-8")
    names = [name or f"fig-{drawing}" for name, drawing in FIGURE.findall(text)]
    told = NUMBERED.findall(text)
    assert told == [(str(names.index(name) + 1), name) for _, name in told]

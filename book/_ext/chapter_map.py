"""The map of the book: a card for each chapter, with a piece of one of its figures."""

import base64
import io
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from PIL import Image, ImageOps
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from machinery.chapters import Chapter, all_chapters, figure_cells

FOLDER = "_static/map"
SIZE = (192, 128)  # twice what is shown, for sharp screens


class Piece(NamedTuple):
    """A part of a figure: what one sees, the figure's name, and left, top, right, bottom."""

    alt: str
    figure: str
    box: tuple[float, float, float, float]


# Without a row here, a chapter shows the middle of its first picture.
PIECES = {
    "01": Piece("An ellipse in a ring", "fig-three-panels", (0.69, 0.015, 0.99, 0.31)),
    "02": Piece("Paths in a field of arrows", "fig-phase", (0.06, 0.07, 0.34, 0.5)),
    "03": Piece("A spiral through dots", "fig-spiral", (0.05, 0.02, 0.49, 0.83)),
    "04": Piece("A curve with two valleys", "fig-needles", (0.11, 0.02, 1.0, 0.84)),
    "05": Piece("Lines that leave a boundary", "fig-pde-line", (0.1, 0.02, 1.0, 0.88)),
    "06": Piece("Eight spots with dots", "fig-cnf-film", (0.21, 0.02, 0.395, 0.8)),
    "07": Piece("Straight paths", "fig-otf-straight", (0.51, 0.02, 0.99, 0.92)),
    "08": Piece("Two crowds that meet", "fig-mfg-strip", (0.415, 0.22, 0.595, 0.9)),
    "09": Piece("Two clouds of points", "fig-sbi-strip", (0.44, 0.15, 0.62, 0.84)),
    "10": Piece("Jagged paths of noise", "fig-sbd-strip", (0.06, 0.1, 0.36, 0.82)),
    "11": Piece("Written digits", "fig-fun-strip", (0.045, 0.13, 0.36, 0.39)),
    "12": Piece("Paths around a hill", "fig-hjb-values", (0.36, 0.08, 0.68, 0.88)),
    "13": Piece("A bundle of rising paths", "fig-soc100-two", (0.06, 0.08, 0.52, 0.83)),
    "14": Piece("Flights to a star", "fig-quad-flights", (0.73, 0.1, 1.0, 1.0)),
    "15": Piece("A cloud in a stream", "fig-mitigation-strip", (0.615, 0.055, 0.79, 0.365)),
    "16": Piece("Costs along a line", "fig-scale-costs", (0.075, 0.06, 0.25, 0.49)),
}


class ChapterMap(SphinxDirective):
    """The map, from lines that name a part, or a chapter and what it says."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """A name and a list of cards for each part."""
        known, made = {chapter.name: chapter for chapter in all_chapters()}, []
        for line in filter(None, self.content):
            name, _, says = line.partition(": ")
            if name in known:
                made[-1] += self.card(known.pop(name), says)
            else:
                made += [nodes.rubric("", line), nodes.bullet_list(classes=["chapter-map"])]
        if known:
            raise self.error(f"the map has no line for {', '.join(known)}")
        return made

    def card(self, chapter: Chapter, says: str) -> nodes.list_item:
        """The picture of a chapter, its title, which is a link, and what it says."""
        static = "../" * self.env.docname.count("/") + FOLDER
        alt, (width, height) = escape(piece_of(chapter)[0].alt), (side // 2 for side in SIZE)
        source = f'src="{static}/{chapter.name}.webp" width="{width}" height="{height}"'
        title = f"{int(chapter.name[:2])}. {chapter.title}"
        target = {"refdomain": "std", "reftype": "doc", "reftarget": f"/book/{chapter.name}"}
        link = addnodes.pending_xref("", nodes.inline("", title), **target, refexplicit=True)
        return nodes.list_item(
            "",
            nodes.raw("", f'<img {source} alt="{alt}">', format="html"),
            nodes.paragraph("", "", link),
            nodes.paragraph("", says),
        )


def pictures(chapter: Chapter) -> Iterator[tuple[Piece, bytes]]:
    """The pictures of a chapter, as pieces that are whole, with their bytes."""
    for _, cell in figure_cells(chapter):
        options = cell.metadata["mystnb"]
        for data in (output.get("data", {}) for output in cell.outputs):
            if "image/png" in data:
                whole = Piece(options["image"]["alt"], options["figure"]["name"], (0, 0, 1, 1))
                yield whole, base64.b64decode(data["image/png"])


def piece_of(chapter: Chapter) -> tuple[Piece, bytes]:
    """What the map shows of a chapter, and the picture it is cut from."""
    chosen = PIECES.get(chapter.name[:2])
    for whole, png in pictures(chapter):
        if chosen is None or whole.figure == chosen.figure:
            return chosen or whole, png
    raise ValueError(
        f"{chapter.name} has no picture {chosen.figure if chosen else ''} for the map: draw one, or"
        " change its row in PIECES of book/_ext/chapter_map.py"
    )


def thumbnail(piece: Piece, png: bytes) -> bytes:
    """The piece of a picture as a small WebP."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    left, top, right, bottom = piece.box
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    small, out = ImageOps.fit(image.crop(box), SIZE), io.BytesIO()
    small.save(out, "webp", quality=55, method=6)
    return out.getvalue()


def draw(app: Sphinx, error: Exception | None) -> None:
    """Write the pictures of the map."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for chapter in all_chapters():
            (folder / f"{chapter.name}.webp").write_bytes(thumbnail(*piece_of(chapter)))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_directive("chapter-map", ChapterMap)
    app.connect("build-finished", draw)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

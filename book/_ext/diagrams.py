"""Puts the drawings of `_static/diagrams` into the pages as figures that follow light and dark.

In a notebook a drawing is an ordinary image, with its caption in italics below it.
"""

from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

FOLDER = "_static/diagrams/"


class Diagrams(SphinxTransform):
    """Make a figure of each paragraph that holds a drawing, and of the caption after it."""

    default_priority = 400  # before Sphinx collects images and names

    def apply(self) -> None:
        """Replace both paragraphs."""
        for image in list(self.document.findall(nodes.image)):
            if image["uri"].startswith(FOLDER):
                self.replace(image, image.parent)

    def replace(self, image: nodes.image, paragraph: nodes.Element) -> None:
        """Put a figure in the place of one image and of its caption."""
        caption = paragraph.next_node(descend=False, siblings=True)
        if caption is None or not is_caption(caption):
            raise ValueError(f"{image['uri']} needs a caption: a paragraph in italics below it")
        path = Path(self.env.doc2path(self.env.docname)).parent / image["uri"]
        self.env.note_dependency(str(path))
        name = f"fig-{path.stem}"
        drawing = nodes.raw("", inline(path.read_text("utf-8"), name, image["alt"]), format="html")
        said = nodes.caption("", "", *caption[0].children)  # type: ignore[index]
        figure = nodes.figure("", drawing, said, names=[name], classes=["diagram"])
        self.document.note_explicit_target(figure)
        paragraph.parent.remove(caption)
        paragraph.replace_self(figure)


def is_caption(node: nodes.Node | None) -> bool:
    """Whether a paragraph is in italics from its beginning to its end."""
    return isinstance(node, nodes.paragraph) and [type(part) for part in node] == [nodes.emphasis]


def inline(svg: str, name: str, alt: str) -> str:
    """The drawing as a part of a page, with its alternative text as its title."""
    start, rest = svg.split(">", 1)
    label = f'{start} role="img" aria-labelledby="{name}-title">'
    return f'{label}<title id="{name}-title">{escape(alt)}</title>{rest}'


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_transform(Diagrams)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

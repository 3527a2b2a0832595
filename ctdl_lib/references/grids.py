"""Regular grids in boxes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The nodes of a box of dimension d, `nodes` of them on each axis, both ends included.

    Args of the constructor: the corners `low` and `high`, d numbers each, and at least four
    `nodes`. Values on the grid are tensors of shape (nodes, …, nodes).

    Raises:
        ValueError: the corners do not span a box, or a cubic does not fit on the nodes.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    nodes: int

    def __post_init__(self):
        sides = zip(self.low, self.high, strict=False)
        if not self.low or len(self.low) != len(self.high) or any(a >= b for a, b in sides):
            raise ValueError(f"low={self.low} must be below high={self.high} on every axis")
        if self.nodes < 4:
            raise ValueError(f"nodes={self.nodes}, but cubic interpolation needs at least 4")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of values on the grid."""
        return (self.nodes,) * len(self.low)

    @property
    def spacing(self) -> tuple[float, ...]:
        """The distance of neighbouring nodes on each axis."""
        return tuple((b - a) / (self.nodes - 1) for a, b in zip(self.low, self.high, strict=True))

    def points(self, *, dtype: torch.dtype | None = None, device=None) -> Float[Tensor, "points d"]:
        """The nodes; a function of them, reshaped to `shape`, is indexed like the axes."""
        return self._lattice(None, dtype, device)

    def faces(
        self, axis: int, *, dtype: torch.dtype | None = None, device=None
    ) -> Float[Tensor, "points d"]:
        """The points halfway between neighbours on one axis: the inner faces of the cells."""
        return self._lattice(axis, dtype, device)

    def _lattice(self, halfway: int | None, dtype, device) -> Tensor:
        axes = [
            torch.linspace(a, b, self.nodes, dtype=dtype, device=device)
            for a, b in zip(self.low, self.high, strict=True)
        ]
        if halfway is not None:
            axes[halfway] = (axes[halfway][1:] + axes[halfway][:-1]) / 2
        return torch.stack(torch.meshgrid(axes, indexing="ij"), -1).flatten(0, -2)

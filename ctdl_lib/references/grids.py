"""Regular grids in boxes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import guard


@dataclass(frozen=True)
class Grid:
    """A regular grid in a box of dimension d, with `nodes` nodes on each axis, ends included.

    Values on the grid are tensors of shape (nodes, …, nodes).

    Args of the constructor: the corners `low` and `high`, d numbers each; the number of `nodes`.

    Raises:
        ValueError: `low` is not below `high` on each axis, or there are fewer than four nodes,
            which cubic interpolation needs.
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
        """The distance between neighbouring nodes on each axis."""
        return tuple((b - a) / (self.nodes - 1) for a, b in zip(self.low, self.high, strict=True))

    def points(self, *, dtype: torch.dtype | None = None, device=None) -> Float[Tensor, "points d"]:
        """The nodes, ordered so that values at them can be reshaped to `shape`."""
        return self._lattice(None, dtype, device)

    def faces(
        self, axis: int, *, dtype: torch.dtype | None = None, device=None
    ) -> Float[Tensor, "points d"]:
        """The midpoints between neighbouring nodes along one axis, the inner faces of the cells."""
        return self._lattice(axis, dtype, device)

    def _lattice(self, halfway: int | None, dtype, device) -> Tensor:
        axes = [
            torch.linspace(a, b, self.nodes, dtype=dtype, device=device)
            for a, b in zip(self.low, self.high, strict=True)
        ]
        if halfway is not None:
            axes[halfway] = (axes[halfway][1:] + axes[halfway][:-1]) / 2
        return torch.stack(torch.meshgrid(axes, indexing="ij"), -1).flatten(0, -2)


guard(__name__)

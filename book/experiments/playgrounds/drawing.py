"""Squares of the plane for the still pictures of the playgrounds."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

REACH = 4.6  # the half side of the square that shows flows and data


def framed(ax: Axes, reach: float = REACH) -> Axes:
    """Axes that show a square of the plane."""
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    return ax


def squares(n: int, reach: float = REACH) -> list[Axes]:
    """Axes of n squares of the plane side by side."""
    _, axes = plt.subplots(1, n, figsize=(min(4.8 * n, 8.6), 4.8 if n == 1 else 8.6 / n))
    return [framed(ax, reach) for ax in np.atleast_1d(axes)]

"""Neural ODEs as networks: padded inputs, a flow, and a linear readout."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ctdl_lib.dynamics import Statistics, integrate


class NeuralODE(nn.Module):
    """The network F(y) = W x(1) + μ, where ẋ = v(t, x) and x(0) is y with p appended zeros.

    Args of the constructor: the `velocity` v in dimension d + p; the dimension `d` of y; the number
    of `outputs`; the number p of zeros (`augment`); `solver`, the arguments of `integrate`, such as
    {"tol": 1e-3}. `generator` draws W.

    Reference: chen2018neural; dupont2019augmented.
    """

    def __init__(
        self,
        velocity: Callable[[Any, Tensor], Tensor],
        d: int,
        outputs: int,
        *,
        augment: int = 0,
        solver: dict[str, Any],
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.velocity, self.augment, self.solver = velocity, augment, solver
        W = torch.randn(outputs, d + augment, generator=generator) / (d + augment) ** 0.5
        self.W, self.mu = nn.Parameter(W), nn.Parameter(torch.zeros(outputs))

    def forward(self, y: Float[Tensor, "batch d"]) -> Float[Tensor, "batch outputs"]:
        """The outputs W x(1) + μ."""
        return self.features(y) @ self.W.T + self.mu

    def features(
        self,
        y: Float[Tensor, "batch d"],
        *,
        save_at: Sequence[float] | Tensor | None = None,
        statistics: Statistics | None = None,
    ) -> Float[Tensor, "*times batch features"]:
        """The features x(1), or x at the times `save_at`, stacked.

        The counts of the integration are added to `statistics`.
        """
        x = functional.pad(y, (0, self.augment))
        how = {"save_at": save_at, "statistics": statistics, **self.solver}
        return integrate(self.velocity, x, 0.0, 1.0, **how)

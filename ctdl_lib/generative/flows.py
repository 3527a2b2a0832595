"""Continuous normalizing flows, whose velocity is a network or the gradient of a potential."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..dynamics.calculus import Transformed, divergence, hutchinson, standard_normal_log_prob
from ..dynamics.integration import integrate
from ..dynamics.stepping import Statistics, Velocity, same_shape
from ..potentials.potential import Potential
from .maps import Sample, TransportMap
from .optimal_transport import ot_flow_terms
from .scaling import BoxScaling, Rows


class Flow(TransportMap):
    """The map from data x to z = x(1), where ẋ = v(t, x) starts at the standardized x.

    The reference is N(0, I). With ℓ̇ = ∇·v, ℓ(0) = 0, the density of the data is

        log p(x) = log N(z; 0, I) + ℓ(1) − Σ log std.

    A potential Φ gives v = −∇Φ and ∇·v = −ΔΦ in closed form. The divergence of a network costs d
    vector–Jacobian products, and it does not work with backprop="recompute".

    Args of the constructor: the `velocity`, which is a `Potential` or a network v(t, x), or
    v(t, x, y) with a context; the dimensions `d` of x and `context_dim` of y; the arguments of
    `integrate` (`solver`), such as {"steps": 8} or {"tol": 1e-5}; `box`, `standardize` and
    `encoder` as in `TransportMap`.

    A flow is trained, kept and moved as any module of torch::

        flow = Flow(ResNetPotential(d), d, solver={"steps": 8}).standardize(x_train)
        loss = lambda flow, x: flow.objective(x, steps=8, likelihood=30.0, hjb=1.0)
        for step in tqdm(train(flow, loss, DataLoader(x_train, 512), steps=1000), total=1000):
            ...
        torch.save(flow.state_dict(), "flow.pt")  # the scaling of the data is in it
        flow.load_state_dict(torch.load("flow.pt", weights_only=True))
        flow.to("cuda").log_prob(x_test)

    Reference: chen2018neural, section 4; grathwohl2019ffjord.
    """

    def __init__(
        self,
        velocity: nn.Module,
        d: int,
        *,
        solver: dict[str, Any],
        context_dim: int = 0,
        box: tuple[Sequence[float], Sequence[float]] | None = None,
        standardize: bool = True,
        encoder: nn.Module | None = None,
    ):
        scaling: dict[str, Any] = {"box": box, "standardize": standardize}
        super().__init__(d, context_dim=context_dim, encoder=encoder, **scaling)
        self.velocity, self.solver = velocity, solver
        self.adopt(velocity)
        if isinstance(velocity, Potential):
            velocity.standardized = standardize or box is not None

    def objective(
        self,
        x: Rows,
        y: Tensor | np.ndarray | None = None,
        *,
        steps: int,
        likelihood: float,
        hjb: float,
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of OT-Flow's objective for data x, and contexts y, in their own units.

        They are those of `ot_flow` at the standardized data, so the likelihood leaves out the
        constant Σ log std.

        Raises:
            TypeError: the velocity is not a `Potential`.
            ValueError: `standardize` was not called, or an argument is invalid.
        """
        if not isinstance(self.velocity, Potential):
            raise TypeError("OT-Flow's objective needs a Potential as the velocity of the flow")
        if (y is None) != (len(self.conditions.mean) == 0):
            raise ValueError("give one context y for each x if, and only if, context_dim is set")
        phi = self.velocity
        if y is not None:
            phi = phi.given(self.encoded(self.conditions(y)))
        return ot_flow_terms(phi, self.data(x), steps=steps, likelihood=likelihood, hjb=hjb)

    def forward(
        self,
        x: Rows,
        *,
        save_at: Sequence[float] | Shaped[Tensor, " count"] | None = None,
        statistics: Statistics | None = None,
    ) -> Float[Tensor, "*times batch d"]:
        """The reference points z = x(1), or the standardized x(t) at the times `save_at`."""
        start = self.data(x)
        return self._solve(self._field(len(x)), start, 0, 1, save_at, statistics)

    def inverse(
        self,
        z: Float[Tensor, "batch d"],
        *,
        save_at: Sequence[float] | Shaped[Tensor, " count"] | None = None,
        statistics: Statistics | None = None,
    ) -> Float[Tensor, "*times batch d"]:
        """The data x = T⁻¹(z), or the standardized x(t) at decreasing times `save_at`."""
        x = self._solve(self._field(len(z)), self.data.checked(z), 1, 0, save_at, statistics)
        return x if save_at is not None else self.data.inverse(x)

    def transform(
        self,
        x: Rows,
        *,
        eps: Float[Tensor, "batch d"] | None = None,
        statistics: Statistics | None = None,
    ) -> Transformed:
        """The reference points z and log |det ∂z/∂x|, from a single solve.

        Args:
            eps: the noise ε of Hutchinson's estimate εᵀ(∂v/∂x)ε, which replaces ∇·v of a network.
                It is the same at all t, because solvers need a velocity that is smooth in t.
        """
        scaled = self.data.transform(x)
        state = Transformed(scaled.z, scaled.z.new_zeros(len(x)))
        end = self._solve(self._rates(len(x), eps), state, 0, 1, None, statistics)
        return Transformed(end.z, end.log_det + scaled.log_det)

    def sample_with_log_prob(self, n: int, generator: torch.Generator) -> Sample:
        """The n samples x = T⁻¹(z) with z ~ N(0, I), and log p(x), from a single solve.

        In a box, the samples whose distance to a face is rounded take a second solve.
        """
        z = self.reference(n, generator)
        state = Transformed(z, z.new_zeros(n))
        start = self._solve(self._rates(n, None), state, 1, 0, None, None)
        log_prob = standard_normal_log_prob(z) - start.log_det + self.data.log_det(start.z)
        x = self.data.inverse(start.z)
        if isinstance(self.data, BoxScaling):
            rows = self.data.rounded(x, start.z).nonzero()[:, 0]
            if len(rows):
                log_prob = log_prob.index_copy(0, rows, self.rows(rows).log_prob(x[rows]))
        return Sample(x, log_prob)

    def _solve(self, f, state, t0, t1, save_at, statistics):
        how = {"save_at": save_at, "statistics": statistics, **self.solver}
        further = [] if self.context is None or self.encoder is None else [self.context]
        further += self.velocity.parameters()
        return integrate(f, state, t0, t1, parameters=further, **how)

    def _bound(self, n: int) -> Any:
        """The potential or the network with the context of n samples."""
        y = self.context_of(n)
        if y is None:
            return self.velocity
        if isinstance(self.velocity, Potential):
            return self.velocity.given(y)
        return lambda t, x: self.velocity(t, x, y)

    def _field(self, n: int) -> Velocity:
        v = self._bound(n)
        return (lambda t, x: -v.gradient(t, x).dx) if isinstance(v, Potential) else v

    def _rates(self, n: int, eps: Tensor | None) -> Callable[[Any, Transformed], Transformed]:
        """The velocity (v, ∇·v) of (x, ℓ)."""
        v = self._bound(n)
        if isinstance(v, Potential):

            def rates(t: Any, s: Transformed) -> Transformed:
                phi = v.derivatives(t, s.z)
                return Transformed(-phi.dx, -phi.laplacian)

            return rates
        if self.solver.get("backprop") == "recompute" and torch.is_grad_enabled():
            raise ValueError(
                'backprop="recompute" cannot differentiate the divergence of a network: use'
                ' "through" or "adjoint", or a Potential'
            )
        if eps is None:
            return lambda t, s: Transformed(*divergence(partial(v, t), s.z))
        return lambda t, s: Transformed(*hutchinson(partial(v, t), s.z, eps))


def flow_matching(
    velocity: Velocity,
    x: Float[Tensor, "batch d"],
    z: Float[Tensor, "batch d"],
    t: Float[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """The mean of ‖v(t, x_t) − (z − x)‖² with x_t = (1 − t)x + t z, for independent x and z.

    The flow of its minimiser has the marginals of x_t, so it maps data to the reference. The loss
    needs no solve. v must accept one time per sample.

    Raises:
        ValueError: z, t or the velocity has another shape than x.

    Reference: lipman2023flow.
    """
    mixed = (1 - t)[:, None] * x + t[:, None] * z
    v = same_shape(velocity(t, mixed), x.shape, "velocity(t, x)")
    return (v - (z - x)).square().sum(-1).mean()

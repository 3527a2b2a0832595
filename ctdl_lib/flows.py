"""Continuous normalizing flows: densities and samples from a velocity, whoever computes it."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .calculus import Transformed, divergence, hutchinson, standard_normal_log_prob
from .integrate import integrate
from .potentials import Potential
from .stepping import Statistics, Velocity


class Standardization(nn.Module):
    """The map (x − mean)/std, column by column, and its inverse.

    Mean and standard deviation are unknown until `fit` has seen the training data, or a state
    dictionary brings them; what is kept with the weights cannot be forgotten when they are loaded.
    `identity` leaves the data as they are instead.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, d: int, *, identity: bool = False):
        super().__init__()
        self.register_buffer("mean", torch.full((d,), 0.0 if identity else math.nan))
        self.register_buffer("std", torch.full((d,), 1.0 if identity else math.nan))

    def fit(self, x: Float[Tensor, "batch d"], *, name: str = "x") -> "Standardization":
        """The same object, with the mean and the standard deviation of the columns of x.

        Raises:
            ValueError: x has a wrong shape, one row, entries that are not finite, or a column that
                does not vary; the message names the columns.
        """
        wanted = len(self.mean)
        if x.dim() != 2 or x.shape[1] != wanted:
            raise ValueError(f"{name} must have shape (batch, {wanted}), got {tuple(x.shape)}")
        if len(x) < 2:
            raise ValueError(f"{name} has one row, but its spread needs at least two")
        _refuse(~x.isfinite().all(0), name, "NaN or infinite entries: drop or impute those rows")
        mean, std = x.mean(0), x.std(0)
        constant = std <= 1e-6 * x.abs().amax(0)  # also what round-off alone makes vary
        _refuse(constant, name, "no variation, and no density: drop them")
        self.mean.copy_(mean)
        self.std.copy_(std)
        return self

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The value (x − mean)/std.

        Raises:
            ValueError: `fit` has not been called, or x is not (batch, d).
        """
        return (self.checked(x) - self.mean) / self.std

    def inverse(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The value mean + std z."""
        return self.mean + self.std * self.checked(z)

    def log_det(self) -> Float[Tensor, ""]:
        """The value −Σ log std, the logarithm of the determinant of the map."""
        return -self.std.log().sum()

    def checked(self, x: Tensor) -> Tensor:
        """The same x.

        Raises:
            ValueError: nothing was fitted, or x is not (batch, d).
        """
        if bool(self.mean.isnan().any()):
            raise ValueError(
                "nothing was trained here: call flow.standardize(x_train) first, load a state"
                " dictionary, or construct with standardize=False"
            )
        if x.dim() != 2 or x.shape[1] != len(self.mean):
            wanted = len(self.mean)
            raise ValueError(f"expected shape (batch, {wanted}), got {tuple(x.shape)}")
        return x


def _refuse(columns: Tensor, name: str, fault: str) -> None:
    if bool(columns.any()):
        raise ValueError(f"columns {columns.nonzero().flatten().tolist()} of {name} have {fault}")


class Sample(NamedTuple):
    """Points and the logarithm of the density at them."""

    x: Float[Tensor, "batch d"]
    log_prob: Float[Tensor, " batch"]


class Flow(nn.Module):
    """The map from data x to z = x(1), where ẋ = v(t, x) starts at the standardized x.

    The reference is N(0, I). With ℓ̇ = ∇·v, ℓ(0) = 0, the density of the data is

        log p(x) = log N(z; 0, I) + ℓ(1) − Σ log std.

    Args of the constructor: the `velocity`, a `Potential` Φ, whose v = −∇Φ and ∇·v = −ΔΦ come in
    closed form, or a network v(t, x), or v(t, x, y) with a context, whose ∇·v costs d
    vector–Jacobian products; the dimensions `d` of x and `context_dim` of y; `solver`, the
    arguments of `integrate`, such as {"steps": 8} or {"tol": 1e-5} (the divergence of a network
    does not go with backprop="recompute", that of a potential does). Without `standardize`, mean 0
    and deviation 1 stand in for those of the data.

    Reference: chen2018neural, section 4; grathwohl2019ffjord.
    """

    def __init__(
        self,
        velocity: nn.Module,
        d: int,
        *,
        solver: dict[str, Any],
        context_dim: int = 0,
        standardize: bool = True,
    ):
        super().__init__()
        self.velocity, self.solver, self.d = velocity, solver, d
        self.data = Standardization(d, identity=not standardize)
        self.conditions = Standardization(context_dim, identity=not (standardize and context_dim))
        self.context: Tensor | None = None

    def standardize(
        self, x: Float[Tensor, "batch d"], y: Float[Tensor, "batch context"] | None = None
    ) -> "Flow":
        """The same flow, which has taken mean and standard deviation from the training data."""
        if (y is None) != (len(self.conditions.mean) == 0):
            wanted = "(x_train, y_train)" if y is None else "(x_train), or context_dim="
            raise ValueError(f"the context of this flow asks for flow.standardize{wanted}")
        self.data.fit(x)
        if y is not None:
            self.conditions.fit(y, name="the context y")
        return self

    def given(self, y: Float[Tensor, "batch context"]) -> "Flow":
        """The flow of p(x | y): the same parameters, with a row of y for each sample, or one."""
        if not len(self.conditions.mean):
            raise ValueError("this flow takes no context: set context_dim= when constructing")
        bound = copy.copy(self)
        bound.context = self.conditions(y)
        return bound

    def forward(
        self,
        x: Float[Tensor, "batch d"],
        *,
        save_at: Sequence[float] | Tensor | None = None,
        statistics: Statistics | None = None,
    ) -> Float[Tensor, "*times batch d"]:
        """The reference points z = x(1), or the standardized x(t) at the times `save_at`."""
        return self._solve(self._field(len(x)), self.data(x), 0, 1, save_at, statistics)

    def inverse(
        self,
        z: Float[Tensor, "batch d"],
        *,
        save_at: Sequence[float] | Tensor | None = None,
        statistics: Statistics | None = None,
    ) -> Float[Tensor, "*times batch d"]:
        """The data of reference points, or the standardized x(t) at falling times `save_at`."""
        x = self._solve(self._field(len(z)), self.data.checked(z), 1, 0, save_at, statistics)
        return x if save_at is not None else self.data.inverse(x)

    def transform(
        self,
        x: Float[Tensor, "batch d"],
        *,
        eps: Float[Tensor, "batch d"] | None = None,
        statistics: Statistics | None = None,
    ) -> Transformed:
        """The reference points z, and log |det ∂z/∂x|, both in one solve.

        Args:
            eps: Hutchinson's noise, with which an estimate εᵀ(∂v/∂x)ε stands in for ∇·v. It stays
                the same for the whole solve: noise that changes with t is no function that a solver
                could follow. A potential needs none.
        """
        state = Transformed(self.data(x), x.new_zeros(len(x)))
        end = self._solve(self._rates(len(x), eps), state, 0, 1, None, statistics)
        return Transformed(end.z, end.log_det + self.data.log_det())

    def log_prob(
        self,
        x: Float[Tensor, "batch d"],
        *,
        eps: Float[Tensor, "batch d"] | None = None,
        statistics: Statistics | None = None,
    ) -> Float[Tensor, " batch"]:
        """The value log p(x), or its unbiased estimate with Hutchinson's noise `eps`."""
        z, log_det = self.transform(x, eps=eps, statistics=statistics)
        return standard_normal_log_prob(z) + log_det

    def sample(
        self, n: int, generator: torch.Generator, *, statistics: Statistics | None = None
    ) -> Float[Tensor, "{n} d"]:
        """The images of n reference points; no divergence is computed."""
        return self.inverse(self._reference(n, generator), statistics=statistics)

    def sample_with_log_prob(self, n: int, generator: torch.Generator) -> Sample:
        """The images of n reference points and log p there, both in one solve."""
        z = self._reference(n, generator)
        state = Transformed(z, z.new_zeros(n))
        start = self._solve(self._rates(n, None), state, 1, 0, None, None)
        log_prob = standard_normal_log_prob(z) - start.log_det + self.data.log_det()
        return Sample(self.data.inverse(start.z), log_prob)

    def _reference(self, n: int, generator: torch.Generator) -> Tensor:
        mean, device = self.data.mean, generator.device
        return torch.randn(n, self.d, generator=generator, device=device, dtype=mean.dtype).to(mean)

    def _solve(self, f, state, t0, t1, save_at, statistics):
        how = {"save_at": save_at, "statistics": statistics, **self.solver}
        return integrate(f, state, t0, t1, parameters=list(self.velocity.parameters()), **how)

    def _bound(self, n: int) -> Any:
        """The potential or network, with the context bound to n samples."""
        y, wanted = self.context, len(self.conditions.mean)
        if y is None:
            if wanted:
                raise ValueError(f"this flow has a context ({wanted},): call flow.given(y) first")
            return self.velocity
        if len(y) not in (1, n):
            raise ValueError(f"the context has {len(y)} rows for {n} samples: give one, or {n}")
        y = y.expand(n, -1)
        if isinstance(self.velocity, Potential):
            return self.velocity.given(y)
        return lambda t, x: self.velocity(t, x, y)

    def _field(self, n: int) -> Velocity:
        v = self._bound(n)
        return (lambda t, x: -v.gradient(t, x).dx) if isinstance(v, Potential) else v

    def _rates(self, n: int, eps: Tensor | None) -> Callable[[Any, Transformed], Transformed]:
        """The velocity of (x, ℓ)."""
        v = self._bound(n)
        if isinstance(v, Potential):

            def rates(t: Any, s: Transformed) -> Transformed:
                phi = v.derivatives(t, s.z)
                return Transformed(-phi.dx, -phi.laplacian)

        elif self.solver.get("backprop") == "recompute" and torch.is_grad_enabled():
            raise ValueError(
                'torch.func cannot take a divergence inside of a checkpoint: backprop="through" or'
                ' "adjoint" can, and so can a Potential with "recompute"'
            )
        elif eps is None:

            def rates(t: Any, s: Transformed) -> Transformed:
                return Transformed(*divergence(partial(v, t), s.z))

        else:

            def rates(t: Any, s: Transformed) -> Transformed:
                return Transformed(*hutchinson(partial(v, t), s.z, eps))

        return rates


def flow_matching(
    velocity: Velocity,
    x: Float[Tensor, "batch d"],
    z: Float[Tensor, "batch d"],
    t: Float[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """The mean of ‖v(t, x_t) − (z − x)‖² with x_t = (1 − t)x + t z, for independent x and z.

    Its minimiser has the marginals of x_t: a flow from data to reference without any solve. v must
    take one time a sample.

    Reference: lipman2023flow.
    """
    mixed = (1 - t)[:, None] * x + t[:, None] * z
    return (velocity(t, mixed) - (z - x)).square().sum(-1).mean()

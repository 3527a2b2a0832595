"""Scalar potentials Φ(t, x) that know their own derivatives."""

import abc
import copy
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap

from .networks import times_like
from .sweeps import adjoints, features, second_order

BLOCK = 1024
Time = float | int | Tensor
Sigma = float | Float[Tensor, ""] | Float[Tensor, "d k"]


class Gradient(NamedTuple):
    """Φ and its first derivatives: all that samplers and deterministic problems need."""

    value: Float[Tensor, " batch"]
    dt: Float[Tensor, " batch"]
    dx: Float[Tensor, "batch ..."]


class Derivatives(NamedTuple):
    """Φ and the derivatives that the Hamilton–Jacobi–Bellman equation asks for.

    `laplacian` is ΔΦ, or tr(σσᵀ∇²Φ) where a σ was given.
    """

    value: Float[Tensor, " batch"]
    dt: Float[Tensor, " batch"]
    dx: Float[Tensor, "batch ..."]
    laplacian: Float[Tensor, " batch"]


Known = TypeVar("Known", Gradient, Derivatives, Gradient | Derivatives)


class Potential(nn.Module, abc.ABC):
    """A scalar function Φ(t, x), or Φ(t, x; y) once a context y is bound by `given`."""

    context: Tensor | None = None

    @abc.abstractmethod
    def forward(self, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""

    @abc.abstractmethod
    def gradient(self, t: Time, x: Float[Tensor, "batch ..."]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ at (t, x)."""

    @abc.abstractmethod
    def derivatives(
        self, t: Time, x: Float[Tensor, "batch ..."], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ) for a number or matrix (d, k) σ."""

    def given(self, y: Float[Tensor, "batch context"]) -> "Potential":
        """The potential Φ(·, ·; y): the same parameters with the context bound."""
        bound = copy.copy(self)
        bound.context = y
        return bound


class AutodiffPotential(Potential):
    """The potential Φ(t, x; y) = net(t, x) or net(t, x, y), differentiated automatically.

    `net` is any network, on vectors or fields: it receives t (batch,), x (batch, …) and, once
    bound, y (batch, …); it returns (batch,) or (batch, 1) and treats samples independently. The
    Laplacian is exact and costs one forward-over-reverse product for each entry of x.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        return self._value(times_like(t, x), x)

    def _value(self, t: Tensor, x: Tensor) -> Tensor:
        context = () if self.context is None else (self.context,)
        value = self.net(t, x, *context)
        if value.numel() != x.shape[0]:
            raise ValueError(
                f"net must return one value a sample, ({x.shape[0]},) or ({x.shape[0]}, 1), but"
                f" returned {tuple(value.shape)}"
            )
        return value.reshape(x.shape[0])

    def gradient(self, t: Time, x: Float[Tensor, "batch ..."]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ by one reverse sweep."""
        value, pullback, *_ = vjp(self._value, times_like(t, x), x)
        return Gradient(value, *pullback(torch.ones_like(value)))

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch ..."], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ), by second-order differentiation."""
        times = times_like(t, x)
        slope = grad(lambda x: self._value(times, x).sum())

        def second(direction: Tensor) -> Tensor:  # directionᵀ ∇²Φ direction
            e = direction.reshape(x.shape[1:]).expand_as(x)
            hessian_e = jvp(slope, (x,), (e,))[1]
            return (hessian_e * e).flatten(1).sum(-1)

        trace = vmap(second)(_columns(sigma, x)).sum(0)
        return Derivatives(*self.gradient(t, x), trace)


def _columns(sigma: Sigma | None, x: Tensor) -> Tensor:
    """The columns of σ as rows (k, d), with σ = I by default."""
    d = math.prod(x.shape[1:])
    sigma = torch.as_tensor(1.0 if sigma is None else sigma, dtype=x.dtype, device=x.device)
    return sigma * torch.eye(d, dtype=x.dtype, device=x.device) if sigma.dim() == 0 else sigma.T


class ResNetPotential(Potential):
    """The potential Φ(s) = wᵀN(s) + ½ sᵀAᵀA s + bᵀs + c with s = (x, t) or (x, t, y).

    N is a residual network with antiderivative activation σ(a) = log(2 cosh a):
    u₀ = σ(K₀s + b₀), uᵢ = uᵢ₋₁ + h σ(Kᵢuᵢ₋₁ + bᵢ), i = 1, …, layers − 1, h = 1/(layers − 1).
    First derivatives cost one backward sweep; the exact Laplacian one more forward sweep,
    O(width² min(d, width)) flops a sample and layer.

    Args of the constructor: the dimensions d of x and `context_dim` of y, the `width` of N, the
    number of `layers` ≥ 1, the number of rows (`rank`) of A; `generator` draws the weights.

    Reference: onken2021otflow.
    """

    def __init__(
        self,
        d: int,
        *,
        context_dim: int = 0,
        width: int = 32,
        layers: int = 2,
        rank: int = 10,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if min(d, width, layers, rank) < 1:
            raise ValueError(f"{d=}, {width=}, {layers=} and {rank=} must be at least 1")
        self.d, self.context_dim, self.h = d, context_dim, 1.0 / max(layers - 1, 1)
        n = d + 1 + context_dim

        def uniform(fan_in: int, *shape: int) -> nn.Parameter:
            unit = torch.rand(shape, generator=generator)
            return nn.Parameter((2 * unit - 1) / math.sqrt(fan_in))

        self.K0, self.b0 = uniform(n, width, n), uniform(n, width)
        self.K = uniform(width, layers - 1, width, width)
        self.b = uniform(width, layers - 1, width)
        self.w = nn.Parameter(torch.ones(width))
        self.A = uniform(n, min(rank, n), n)
        self.linear = nn.Parameter(torch.zeros(n))
        self.constant = nn.Parameter(torch.zeros(()))

    def forward(self, t: Time, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        s = self._inputs(t, x)
        u, _ = features(s, self.K0, self.b0, self.K, self.b, self.h)
        return self.w @ u[-1] + self._quadratic(s)

    def gradient(self, t: Time, x: Float[Tensor, "batch d"]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ by one forward and one backward sweep."""
        s = self._inputs(t, x)
        u, slopes = features(s, self.K0, self.b0, self.K, self.b, self.h)
        _, y = adjoints(slopes, self.K, self.w, self.h)
        return self._gradient(s, self.w @ u[-1], self.K0.T @ y[0])

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch d"], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ), in closed form."""
        s = self._inputs(t, x)
        A, M = along_noise(self.A[:, : self.d], sigma), along_noise(self.K0[:, : self.d], sigma)
        swept = second_order(s, self.K0, self.b0, self.K, self.b, self.w, M, self.h)
        gradient = self._gradient(s, swept.value, swept.ds)
        return Derivatives(*gradient, swept.trace + A.square().sum())

    def _inputs(self, t: Time, x: Tensor) -> Tensor:
        """The columns s = (x, t, y), with a message that names what is missing."""
        if x.dim() != 2 or x.shape[1] != self.d:
            raise ValueError(f"x must have shape (batch, {self.d}), got {tuple(x.shape)}")
        parts = [x.T, times_like(t, x)[None]]
        if self.context_dim:
            if self.context is None:
                raise ValueError("this potential has a context: call potential.given(y) first")
            if self.context.shape != (x.shape[0], self.context_dim):
                wanted, came = (x.shape[0], self.context_dim), tuple(self.context.shape)
                raise ValueError(f"the context y must have shape {wanted}, got {came}")
            parts.append(self.context.T)
        elif self.context is not None:
            raise ValueError("a context was given, but context_dim=0: set it when constructing")
        return torch.cat(parts)

    def _quadratic(self, s: Tensor) -> Tensor:
        return 0.5 * (self.A @ s).square().sum(0) + self.linear @ s + self.constant

    def _gradient(self, s: Tensor, value: Tensor, ds: Tensor) -> Gradient:
        """The value and gradient of Φ from those of wᵀN."""
        ds = torch.addmm(ds + self.linear[:, None], self.A.T, self.A @ s)
        dx, dt, _ = ds.split([self.d, 1, self.context_dim])
        return Gradient(value + self._quadratic(s), dt[0], dx.T)


def along_noise(p: Tensor, sigma: Sigma | None) -> Tensor:
    """The products pᵀσ, row by row, for σ a number, a matrix or (None) the identity."""
    if sigma is None:
        return p
    is_matrix = isinstance(sigma, Tensor) and sigma.dim() == 2
    return p @ sigma if is_matrix else p * sigma


def _bound(whole: Potential, *parts: Potential) -> tuple[Potential, ...]:
    """The parts with the context of the whole."""
    y = whole.context
    return parts if y is None else tuple(part.given(y) for part in parts)


def in_blocks(
    evaluate: Callable[[Tensor, Tensor], Known],
    t: Float[Tensor, " points"],
    x: Float[Tensor, "points ..."],
) -> Known:
    """The result of `evaluate(t, x)` at many points, on a CPU a block at a time.

    A block's features and their derivatives stay in the cache; all at once took 1.4 times as long.
    """
    size = BLOCK if x.device.type == "cpu" else len(x)
    parts = [evaluate(*pair) for pair in zip(t.split(size), x.split(size), strict=True)]
    return (
        parts[0] if len(parts) == 1 else type(parts[0])(*map(torch.cat, zip(*parts, strict=True)))
    )


class PinnedPotential(Potential):
    """The potential Φ(t, x) = known(t, x) + (T − t)·correction(t, x): at t = T it is known.

    So a learned value function carries the terminal condition, and all that is known of the
    solution, exactly.

    Args of the constructor: the potentials `known` and `correction`, and the time T (`horizon`).
    """

    def __init__(self, known: Potential, correction: Potential, *, horizon: float = 1.0):
        super().__init__()
        self.known, self.correction, self.horizon = known, correction, horizon

    def forward(self, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        known, correction = _bound(self, self.known, self.correction)
        return known(t, x) + (self.horizon - times_like(t, x)) * correction(t, x)

    def gradient(self, t: Time, x: Float[Tensor, "batch ..."]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ from those of both parts."""
        known, correction = _bound(self, self.known, self.correction)
        return self._sum(t, x, known.gradient(t, x), correction.gradient(t, x))

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch ..."], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ), from those of both parts."""
        parts = _bound(self, self.known, self.correction)
        known, correction = (part.derivatives(t, x, sigma) for part in parts)
        trace = known.laplacian + (self.horizon - times_like(t, x)) * correction.laplacian
        return Derivatives(*self._sum(t, x, known, correction), trace)

    def _sum(
        self,
        t: Time,
        x: Tensor,
        known: Gradient | Derivatives,
        correction: Gradient | Derivatives,
    ) -> Gradient:
        left = self.horizon - times_like(t, x)
        return Gradient(
            known.value + left * correction.value,
            known.dt - correction.value + left * correction.dt,
            known.dx + left.reshape(-1, *(1,) * (x.dim() - 1)) * correction.dx,
        )


class ScaledPotential(Potential):
    """The potential Φ(t, x) = height · φ(s(t), (x − center)/unit): φ in convenient units.

    With a terminal `layer` ε, s = log((T + ε)/(T − t + ε))/log((T + ε)/ε) stretches the time before
    T, where feedback becomes strong, over the range from 0 to 1; without one s = t.

    Args of the constructor: the potential φ on vectors, the `height` (a number), for each entry of
    x its `center` and positive `unit`, (d,), ε > 0 (`layer`) and T (`horizon`).

    Raises:
        ValueError: a unit or ε is not positive, or `center` and `unit` differ in length.
    """

    center: Tensor
    unit: Tensor

    def __init__(
        self,
        potential: Potential,
        *,
        height: float,
        center: Float[Tensor, " d"],
        unit: Float[Tensor, " d"],
        layer: float | None = None,
        horizon: float = 1.0,
    ):
        super().__init__()
        if center.shape != unit.shape or not (unit > 0).all():
            raise ValueError(f"unit must be positive, one for each center, got {unit.tolist()}")
        if layer is not None and not layer > 0:
            raise ValueError(f"{layer=} must be positive, or None for the time itself")
        self.potential, self.height = potential, height
        self.layer, self.horizon = layer, horizon
        for name, value in (("center", center), ("unit", unit)):
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def forward(self, t: Time, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        potential, s, z, _ = self._inside(t, x)
        return self.height * potential(s, z)

    def gradient(self, t: Time, x: Float[Tensor, "batch d"]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ from those of φ."""
        potential, s, z, rate = self._inside(t, x)
        return self._scaled(potential.gradient(s, z), rate)

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch d"], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ), from those of φ."""
        potential, s, z, rate = self._inside(t, x)
        phi = potential.derivatives(s, z, _columns(sigma, x).T / self.unit[:, None])
        return Derivatives(*self._scaled(phi, rate), self.height * phi.laplacian)

    def _inside(self, t: Time, x: Tensor) -> tuple[Potential, Time, Tensor, float | Tensor]:
        """The potential φ with its context, its arguments, and ds/dt."""
        (potential,) = _bound(self, self.potential)
        z = (x - self.center) / self.unit
        if self.layer is None:
            return potential, t, z, 1.0
        left, most = self.horizon - times_like(t, x) + self.layer, self.horizon + self.layer
        span = math.log(most / self.layer)
        return potential, (math.log(most) - left.log()) / span, z, 1 / (left * span)

    def _scaled(self, phi: Gradient | Derivatives, rate: float | Tensor) -> Gradient:
        c = self.height
        return Gradient(c * phi.value, c * rate * phi.dt, c / self.unit * phi.dx)

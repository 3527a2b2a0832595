"""A source pollutes a closed basin and a sink can be opened: control of advection and diffusion."""

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from scipy.sparse import csr_array
from skfem import CellBasis
from torch import Tensor

from ctdl_lib.potentials.potential import Time

from .finite_elements import (
    Function,
    LinearSystems,
    advection_diffusion,
    load,
    mass,
    multiply,
    square,
)


class Basins(NamedTuple):
    """What tells one instance from another: the stream, the source and the sink.

    `stream` holds the coefficients of ψ = Σ cⱼₖ sin(jπx) sin(kπy), j, k = 1, 2. Its velocity
    v = (∂ψ/∂y, −∂ψ/∂x), scaled to max ‖v‖ = `speed`, has no divergence and does not cross the
    boundary. The source has its centre and its `strength`, what it emits in unit time; the sink
    its centre.
    """

    stream: Float[Tensor, "batch 2 2"]
    speed: Float[Tensor, " batch"]
    source: Float[Tensor, "batch 2"]
    strength: Float[Tensor, " batch"]
    sink: Float[Tensor, "batch 2"]


def draw_basins(
    count: int,
    generator: torch.Generator,
    *,
    speed: tuple[float, float] = (0.2, 1.0),
    strength: tuple[float, float] = (0.5, 1.5),
    margin: float = 0.2,
) -> Basins:
    """The parameters of that many instances: stream coefficients normal, all else uniform.

    Args:
        speed, strength: the least and the greatest.
        margin: how far centres keep from the boundary.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        draws = torch.rand(count, *shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * draws

    stream = torch.randn(count, 2, 2, generator=generator, dtype=torch.float64)
    inside = (margin, 1 - margin, 2)
    speeds, source, strengths = uniform(*speed), uniform(*inside), uniform(*strength)
    return Basins(stream, speeds, source, strengths, uniform(*inside))


@dataclass(frozen=True)
class SourceMitigation:
    """The problem of a sink a ≥ 0 in M u̇ = −A u + f − a g, for a batch of basins at once.

    u holds the nodal values of a concentration, u(0) = 0; M and A are the matrices of ∫ u w and
    ∫ κ ∇u·∇w + (v·∇u) w, f and g the vectors of source and sink. Least is to be
    ∫ (½ uᵀMu + ½ α a²) dt + ½ γ u(T)ᵀMu(T).

    A step of length h = T/steps is implicit Euler's. As a rate that is
    f(u, a) = (M + hA)⁻¹(−A u + f − a g), with which the explicit Euler step *is* the implicit one:
    so `control`, asked for as many `steps`, needs no other integrator, and a drift costs one sparse
    solve, its derivative another. Rows of states are those of all basins, one time after the other.

    Args of the constructor: κ is the `diffusivity`, α the `control_weight`, γ the
    `terminal_weight`; radii are the widths of source and sink, both Gaussian.

    Raises:
        ValueError: `steps` is not positive, a centre lies outside of the basin, or what
            `advection_diffusion` refuses.
    """

    basins: Basins
    nodes: int = 17
    steps: int = 25
    diffusivity: float = 0.05
    control_weight: float = 0.1
    terminal_weight: float = 1.0
    radius: float = 0.1
    horizon: float = 1.0
    diffusion: float = 0.0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        for name in ("source", "sink"):
            centres = getattr(self.basins, name)
            outside = ((centres < 0) | (centres > 1)).any(-1)
            if outside.any():
                k = int(outside.nonzero()[0])
                raise ValueError(
                    f"the {name} of basin {k} has its centre {centres[k].tolist()} outside of the"
                    " unit square"
                )

    @cached_property
    def basis(self) -> CellBasis:
        """The finite elements."""
        return square(self.nodes)

    @cached_property
    def mass(self) -> Float[Tensor, "n n"]:
        """The matrix M, in double precision."""
        return torch.from_numpy(self._mass.toarray())

    @cached_property
    def _mass(self) -> csr_array:
        return mass(self.basis)

    @cached_property
    def systems(self) -> LinearSystems:
        """The factorised matrices M + hA."""
        M, h = self._mass, self.horizon / self.steps
        return LinearSystems([csr_array(M + h * self._advection(v)) for v in self.velocities])

    def _advection(self, v: tuple[Function, Function]) -> csr_array:
        return advection_diffusion(self.basis, self.diffusivity, v)

    @cached_property
    def velocities(self) -> list[tuple[Function, Function]]:
        """The components of v, as functions, for each basin."""
        return [_velocity(c.numpy(), float(s)) for c, s in zip(*self.basins[:2], strict=True)]

    @cached_property
    def emissions(self) -> list[Function]:
        """The Gaussian of each source, whose integral on the whole plane is its strength."""
        emitted = zip(self.basins.source, self.basins.strength, strict=True)
        return [_bump(centre, float(strength), self.radius) for centre, strength in emitted]

    @cached_property
    def drains(self) -> list[Function]:
        """The Gaussian of each sink, of integral one."""
        return [_bump(centre, 1.0, self.radius) for centre in self.basins.sink]

    @cached_property
    def source(self) -> Float[Tensor, "batch n"]:
        """The vectors f."""
        return torch.from_numpy(np.stack([load(self.basis, f) for f in self.emissions]))

    @cached_property
    def sink(self) -> Float[Tensor, "batch n"]:
        """The vectors g."""
        return torch.from_numpy(np.stack([load(self.basis, g) for g in self.drains]))

    @cached_property
    def drained(self) -> Float[Tensor, "batch n"]:
        """The rates (M + hA)⁻¹g that a sink opened by a = 1 takes from u."""
        return self.systems(self.sink)

    @cached_property
    def images(self) -> Float[Tensor, "batch 4 nodes nodes"]:
        """The two components of v, f and g at the nodes: what a network sees of a basin."""
        x, y = self.basis.doflocs
        basins = zip(self.velocities, self.emissions, self.drains, strict=True)
        fields = [np.stack([field(x, y) for field in (*v, f, g)]) for v, f, g in basins]
        return torch.from_numpy(np.stack(fields)).view(-1, 4, self.nodes, self.nodes)

    @cached_property
    def start(self) -> Float[Tensor, "batch n"]:
        """The clean basins u(0) = 0."""
        return torch.zeros_like(self.source)

    def drift(
        self, t: Time, x: Float[Tensor, "rows n"], u: Float[Tensor, "rows 1"]
    ) -> Float[Tensor, "rows n"]:
        """The rate (M + hA)⁻¹(−A x + f − u g)."""
        h, shape = self.horizon / self.steps, (-1, *self.source.shape)
        inflow = self.source.to(x) - u.view(*shape[:2], 1) * self.sink.to(x)
        ahead = self.systems(multiply(self._mass, x).view(shape) + h * inflow)
        return (ahead.view(x.shape) - x) / h

    def running_cost(
        self, t: Time, x: Float[Tensor, "rows n"], u: Float[Tensor, "rows 1"]
    ) -> Float[Tensor, " rows"]:
        """The value ½ xᵀMx + ½ α u²."""
        return self._energy(x) + 0.5 * self.control_weight * u[:, 0].square()

    def terminal_cost(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
        """The value ½ γ xᵀMx."""
        return self.terminal_weight * self._energy(x)

    def _energy(self, x: Tensor) -> Tensor:
        return 0.5 * (multiply(self._mass, x) * x).sum(-1)

    def optimal_control(
        self, t: Time, x: Float[Tensor, "rows n"], p: Float[Tensor, "rows n"]
    ) -> Float[Tensor, "rows 1"]:
        """The opening max(0, pᵀ(M + hA)⁻¹g / α)."""
        gain = (p.view(-1, *self.source.shape) * self.drained.to(p)).sum(-1)
        return (gain / self.control_weight).clamp(min=0.0).view(-1, 1)


class Openings(NamedTuple):
    """Controls aₖ, k = 0, …, steps − 1, for each basin, and their cost."""

    controls: Float[Tensor, "batch steps"]
    cost: Float[Tensor, " batch"]


class Quadratic(NamedTuple):
    """The cost ½ aᵀHa − bᵀa + c of each basin as a function of its controls a (steps)."""

    curvature: Float[Tensor, "batch steps steps"]
    slope: Float[Tensor, "batch steps"]
    constant: Float[Tensor, " batch"]

    def __call__(self, a: Float[Tensor, "batch steps"]) -> Float[Tensor, " batch"]:
        """The cost of each basin."""
        bent = 0.5 * ((self.curvature @ a[..., None]).squeeze(-1) * a).sum(-1)
        return self.constant - (self.slope * a).sum(-1) + bent


def quadratic(problem: SourceMitigation) -> Quadratic:
    """The cost of each basin as a quadratic in the `steps` numbers aₖ.

    uₖ = freeₖ − Σ_{j<k} aⱼ responseₖ₋₁₋ⱼ, for the time-discrete basin is linear and does not change
    in time.
    """
    steps, M, h = problem.steps, problem.mass, problem.horizon / problem.steps
    free, response = [problem.systems(h * problem.source)], [h * problem.drained]
    for _ in range(steps - 1):
        free.append(problem.systems(free[-1] @ M + h * problem.source))
        response.append(problem.systems(response[-1] @ M))
    responses = torch.stack(response, 1)
    curvature = h * problem.control_weight * torch.eye(steps, dtype=M.dtype)
    curvature = curvature.expand(len(responses), -1, -1)
    slope = torch.zeros(len(responses), steps, dtype=M.dtype)
    constant = torch.zeros(len(responses), dtype=M.dtype)
    for k, u in enumerate(free, start=1):
        weight = problem.terminal_weight if k == steps else h
        effects = torch.zeros_like(responses)
        effects[:, :k] = responses[:, :k].flip(1)
        weighted = weight * effects @ M
        curvature = curvature + weighted @ effects.mT
        slope += (weighted @ u[..., None]).squeeze(-1)
        constant += 0.5 * weight * ((u @ M) * u).sum(-1)
    return Quadratic(curvature, slope, constant)


def least(cost: Quadratic) -> Float[Tensor, "batch steps"]:
    """The controls a ≥ 0 of least cost, by non-negative least squares."""
    factor = torch.linalg.cholesky(cost.curvature)
    goal = torch.linalg.solve_triangular(factor, cost.slope[..., None], upper=False).squeeze(-1)
    pairs = zip(factor.mT.numpy(), goal.numpy(), strict=True)
    return torch.from_numpy(np.stack([nnls(*pair)[0] for pair in pairs]))


def best_openings(problem: SourceMitigation, *, closable: bool = True) -> Openings:
    """The best controls of each basin, exactly, because the cost is quadratic in them.

    The least cost over a ≥ 0 follows by non-negative least squares, and without the sign
    (`closable=False`, a sink that may also emit) by one linear system.
    """
    cost = quadratic(problem)
    controls = least(cost)
    if not closable:
        controls = torch.linalg.solve(cost.curvature, cost.slope[..., None]).squeeze(-1)
    return Openings(controls, cost(controls))


def common_plan(
    cost: Quadratic, scale: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, " steps"], Float[Tensor, " batch"]]:
    """The plan a ≥ 0 that, times a number for each basin, costs all of them together the least.

    Returns:
        the plan, and what it costs in each basin.
    """
    bent = (scale.square()[:, None, None] * cost.curvature).sum(0, keepdim=True)
    leaning = (scale[:, None] * cost.slope).sum(0, keepdim=True)
    plan = least(Quadratic(bent, leaning, cost.constant.sum(0, keepdim=True)))[0]
    return plan, cost(scale[:, None] * plan)


def _velocity(coefficients: np.ndarray, speed: float) -> tuple[Function, Function]:
    """The components of (∂ψ/∂y, −∂ψ/∂x), scaled to a greatest norm of `speed`."""
    waves = math.pi * np.arange(1, 3)

    def wave(s: np.ndarray) -> np.ndarray:
        return np.sin(np.multiply.outer(waves, s))

    def slope(s: np.ndarray) -> np.ndarray:
        return np.cos(np.multiply.outer(waves, s)) * waves.reshape(2, *[1] * np.ndim(s))

    def stream(c: np.ndarray) -> tuple[Function, Function]:
        products = partial(np.einsum, "jk,j...,k...->...", c)
        return lambda x, y: products(wave(x), slope(y)), lambda x, y: -products(slope(x), wave(y))

    along, across = (v(*np.meshgrid(*2 * (np.linspace(0, 1, 65),))) for v in stream(coefficients))
    return stream(coefficients * speed / np.hypot(along, across).max())


def _bump(centre: Float[Tensor, "2"], strength: float, radius: float) -> Function:
    """The Gaussian of that width, centre and, on the whole plane, integral."""
    cx, cy = centre.tolist()
    height = strength / (2 * math.pi * radius**2)
    return lambda x, y: height * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * radius**2))

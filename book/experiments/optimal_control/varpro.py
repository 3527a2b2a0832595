"""Variable projection: the optimal readout is a function of the layers and is eliminated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, hessian, jvp, vjp

from ctdl_lib.learning import cosine
from ctdl_lib.metrics import cross_entropy


@dataclass(frozen=True)
class ReducedProblem:
    """The problem min_θ φ(θ), φ(θ) = min_W E[ℓ(W(u, 1), c)] + α/2 ‖W‖² + R(θ) with u = u_N(θ).

    The last column of W is the bias μ, and ℓ is the cross-entropy of the logits W(u, 1).

    Args of the constructor: the map `features`, θ ↦ u_N of all samples; the `label` of each sample;
    the number of `outputs` (one for two classes); α > 0 (`alpha`); the convex, quadratic
    `regularizer` R.
    """

    features: Callable[[Tensor], Tensor]
    label: Int[Tensor, " batch"]
    outputs: int
    alpha: float
    regularizer: Callable[[Tensor], Tensor]

    def __post_init__(self):
        if self.alpha <= 0:
            raise ValueError(f"alpha must be positive, so that W* exists, got {self.alpha}")

    def loss(
        self, W: Float[Tensor, "outputs columns"], u: Float[Tensor, "batch width"]
    ) -> Float[Tensor, ""]:
        """The value E[ℓ(W(u, 1), c)] + α/2 ‖W‖²."""
        return cross_entropy(logits(W, u), self.label) + self.alpha / 2 * W.square().sum()


class Readout(NamedTuple):
    """The optimal W for given features, and the number of Newton steps that found it."""

    W: Float[Tensor, "outputs columns"]
    iterations: int


class Point(NamedTuple):
    """A control θ with the results of one forward propagation: u_N, W*(θ) and φ(θ)."""

    theta: Tensor
    u: Float[Tensor, "batch width"]
    pullback: Callable
    W: Float[Tensor, "outputs columns"]
    value: float
    newton: int


class Work(NamedTuple):
    """The numbers of propagations (forward, adjoint, tangent) and of Newton steps for W."""

    forward: int
    adjoint: int
    tangent: int
    newton: int


@dataclass(frozen=True)
class Iteration:
    """An iterate of `gauss_newton`: φ and ‖∇φ‖ at this iterate, and the total work so far."""

    index: int
    loss: float
    grad_norm: float
    work: Work
    theta: Tensor
    W: Tensor


def logits(
    W: Float[Tensor, "outputs columns"], u: Float[Tensor, "batch width"]
) -> Float[Tensor, "batch outputs"]:
    """The logits W(u, 1)."""
    return u @ W[:, :-1].T + W[:, -1]


def readout(
    problem: ReducedProblem,
    u: Float[Tensor, "batch width"],
    start: Tensor | None = None,
    *,
    tol: float = 1e-10,
) -> Readout:
    """The minimiser W*(u) of the convex inner problem, by Newton's method with line search.

    Raises:
        ArithmeticError: ‖∂loss/∂W‖ stays above `tol`, as it does in float32: use float64.
    """
    W = u.new_zeros(problem.outputs, u.shape[1] + 1) if start is None else start
    loss = lambda W: problem.loss(W, u)  # noqa: E731
    for iteration in range(50):
        g = grad(loss)(W)
        if g.norm() <= tol:
            return Readout(W, iteration)
        H = hessian(loss)(W).reshape(W.numel(), W.numel())
        d = -torch.linalg.solve(H, g.flatten()).view_as(W)
        value, slope, t = loss(W).item(), (g * d).sum().item(), 1.0
        while t > 1e-9 and not _decreases(loss(W + t * d).item(), value, t * slope):
            t /= 2
        W = W + t * d
    raise ArithmeticError(f"Newton's method stopped at ‖∂loss/∂W‖ > tol={tol}; use float64")


def evaluate(problem: ReducedProblem, theta: Tensor, start: Tensor | None = None) -> Point:
    """The point θ, with its features, the optimal W for them, and φ(θ)."""
    u, pullback = vjp(problem.features, theta)[:2]
    W, newton = readout(problem, u.detach(), start)
    value = problem.loss(W, u) + problem.regularizer(theta)
    return Point(theta, u.detach(), pullback, W, value.item(), newton)


def reduced_gradient(problem: ReducedProblem, point: Point) -> Tensor:
    """The gradient ∇φ = (∂u_N/∂θ)ᵀ ∂loss/∂u + ∇R at W = W*, from one adjoint propagation.

    It needs no derivative of W*, because ∂loss/∂W = 0 at W*.

    Reference: newman2021train.
    """
    force = grad(problem.loss, argnums=1)(point.W, point.u)
    return point.pullback(force)[0] + grad(problem.regularizer)(point.theta)


def curvature(problem: ReducedProblem, point: Point) -> Callable[[Tensor], Tensor]:
    """The map v ↦ Gv, where G is the Gauss–Newton matrix of φ.

    Let D be the Hessian of ℓ in the logits, and let J and X be the derivatives of the logits with
    respect to θ and W. Then G = JᵀDJ − JᵀDX (XᵀDX + αI)⁻¹ XᵀDJ + R″, a Schur complement. Without R″
    it is symmetric and positive semidefinite. Each product costs one tangent and one adjoint
    propagation.
    """
    W, u = point.W, point.u
    ell = lambda z: cross_entropy(z, problem.label)  # noqa: E731
    z = logits(W, u)
    D = lambda dz: jvp(grad(ell), (z,), (dz,))[1]  # noqa: E731
    H = hessian(problem.loss)(W, u).reshape(W.numel(), W.numel())

    def product(v: Tensor) -> Tensor:
        du = jvp(problem.features, (point.theta,), (v,))[1]
        dz = du @ W[:, :-1].T
        pulled = vjp(lambda W: logits(W, u), W)[1](D(dz))[0]
        dW = torch.linalg.solve(H, pulled.flatten()).view_as(W)
        force = D(dz - logits(dW, u)) @ W[:, :-1]
        return point.pullback(force)[0] + jvp(grad(problem.regularizer), (point.theta,), (v,))[1]

    return product


class Parts(NamedTuple):
    """What Gauss–Newton needs of a problem: a point, the gradient there, and products with G."""

    evaluate: Callable[[ReducedProblem, Tensor, Tensor | None], Point]
    gradient: Callable[[ReducedProblem, Point], Tensor]
    curvature: Callable[[ReducedProblem, Point], Callable[[Tensor], Tensor]]


PROJECTED = Parts(evaluate, reduced_gradient, curvature)


def gauss_newton(
    problem: ReducedProblem,
    theta: Tensor,
    *,
    steps: int,
    cg: int = 10,
    damping: float = 0.0,
    tol: float = 1e-8,
    parts: Parts = PROJECTED,
) -> Iterator[Iteration]:
    """The iterates of Gauss–Newton–CG with line search for φ, started at `theta`.

    They end when ‖∇φ‖ ≤ tol, or when the line search finds no better point.

    Args:
        cg: the largest number of products with G per step. CG stops earlier if the relative
            residual is at most min(½, √‖∇φ‖).
        damping: the multiple of the identity that is added to G.
        parts: what is minimised; by default φ, from which the readout is eliminated.

    Reference: newman2021train.
    """
    point = parts.evaluate(problem, theta.detach(), None)
    work = Work(1, 0, 0, point.newton)
    for index in range(steps + 1):
        g = parts.gradient(problem, point)
        work = work._replace(adjoint=work.adjoint + 1)
        norm = g.norm().item()
        yield Iteration(index, point.value, norm, work, point.theta, point.W)
        if norm <= tol or index == steps:
            return
        G = parts.curvature(problem, point)
        d, products = conjugate_gradients(
            lambda v, G=G: G(v) + damping * v, -g, cg, min(0.5, norm**0.5)
        )
        trials = _searched(problem, point, d, (g * d).sum().item(), parts)
        if not trials:
            return
        work = Work(
            work.forward + len(trials) + products,  # torch's jvp repeats the forward pass
            work.adjoint + products,
            work.tangent + products,
            work.newton + sum(trial.newton for trial in trials),
        )
        point = trials[-1]


def _searched(
    problem: ReducedProblem, point: Point, d: Tensor, slope: float, parts: Parts
) -> list[Point]:
    """The points tried along d, the last of which decreases enough; none if no point does."""
    trials = []
    for k in range(30):
        trials.append(parts.evaluate(problem, point.theta + 0.5**k * d, point.W))
        if _decreases(trials[-1].value, point.value, 0.5**k * slope):
            return trials
    return []


def first_order(
    problem: ReducedProblem,
    theta: Tensor,
    *,
    evaluations: int,
    rate: float | None = None,
    project: bool = False,
) -> list[tuple[int, int, float]]:
    """The rows (gradients so far, Newton steps so far, loss) of a run of Adam or L-BFGS.

    Args:
        rate: the initial learning rate of Adam, which decreases to 0 along a cosine. None selects
            L-BFGS.
        project: minimise φ over θ alone. Otherwise θ and W are found together, from W*(θ).
    """
    theta = theta.detach().clone().requires_grad_()
    W = evaluate(problem, theta.detach()).W.requires_grad_(not project)
    free, curve, newton = ([theta] if project else [theta, W]), [], 0
    adam = torch.optim.Adam(free, lr=rate or 0.0)
    lbfgs = torch.optim.LBFGS(
        free,
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=50,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )
    optimizer = adam if rate else lbfgs

    def closure() -> Tensor:
        nonlocal newton
        optimizer.zero_grad()
        u = problem.features(theta)
        if project:
            best = readout(problem, u.detach(), W.detach())
            W.data, newton = best.W, newton + best.iterations
        loss = problem.loss(W, u) + problem.regularizer(theta)
        loss.backward()
        curve.append((len(curve) + 1, newton, loss.item()))
        return loss

    for k in range(evaluations if rate else 1):
        if rate:
            adam.param_groups[0]["lr"] = cosine(rate, evaluations)(k)
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return curve


def conjugate_gradients(
    A: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tol: float
) -> tuple[Tensor, int]:
    """The approximate solution of Ax = b, and the number of products with A.

    The iteration ends when ‖Ax − b‖ ≤ tol ‖b‖, or after `iterations` products.
    """
    x, r = torch.zeros_like(b), b.clone()
    d, rr = r, r.square().sum()
    for k in range(iterations):
        if rr.sqrt() <= tol * b.norm():
            return x, k
        Ad = A(d)
        step = rr / (d * Ad).sum()
        x, r = x + step * d, r - step * Ad
        rr, last = r.square().sum(), rr
        d = r + rr / last * d
    return x, iterations


def _decreases(value: float, start: float, slope: float) -> bool:
    """Whether a step meets the Armijo condition, up to rounding errors near a minimum."""
    return value <= start + 1e-4 * slope + 1e-14 * abs(start)

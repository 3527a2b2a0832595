"""Optimisers on one training problem, with the readout free or eliminated, by work."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import log
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp
from torch.nn import functional

from ctdl_lib.learning import cosine, minibatches
from ctdl_lib.metrics import cross_entropy
from ctdl_lib.networks import resnets
from ctdl_lib.problems.classification import ellipses
from machinery.store import Store

from . import pontryagin, varpro
from .pontryagin import TrainingProblem, tanh_layer

SEEDS = (*range(20, 30),)
LAYERS, WIDTH, ALPHA, BUDGET, TARGET = 16, 4, 1e-3, 300, 0.05
BATCH, PRODUCTS = 40, 10
TUNED = (0, 1)
JOINT = ("SGD", "Adam", "L-BFGS", "Gauss–Newton")
PROJECTED = ("L-BFGS, projected", "Gauss–Newton, projected")
DAMPINGS = (1e-3, 1e-2, 1e-1)
CHOICES = {  # rates, and multiples of the identity that are added to the Gauss–Newton matrix
    "SGD": (0.1, 0.3, 1.0, 3.0),
    "Adam": (0.01, 0.03, 0.1, 0.3),
    JOINT[3]: DAMPINGS,
    PROJECTED[1]: DAMPINGS,
}
Curve = list[list[float]]


def pose(seed: int) -> tuple[varpro.ReducedProblem, Tensor]:
    """Ellipses in ℝ⁴ with 16 layers and a free readout, and the first control."""
    y, label = ellipses(seed, train=200).train
    u0, h = y.double() @ torch.eye(2, WIDTH, dtype=torch.float64), 5.0 / LAYERS
    field = TrainingProblem(tanh_layer, u0, h, torch.clone, torch.clone)
    generator = torch.Generator().manual_seed(seed)
    start = 0.5 * torch.randn(1, WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    reduced = varpro.ReducedProblem(
        lambda theta: pontryagin.states(field, theta)[-1],
        label,
        1,
        ALPHA,
        lambda theta: ALPHA * h * resnets.tikhonov(theta),
    )
    return reduced, functional.pad(start, (0, 1)).repeat(LAYERS, 1, 1)


def joint(problem: varpro.ReducedProblem, theta: Tensor) -> tuple[Tensor, varpro.Parts]:
    """The control and the best readout W for it as one vector, and the objective of both.

    Its Gauss–Newton matrix is JᵀDJ + R″, where J is the derivative of the logits by both.
    """
    shape, n, W = theta.shape, theta.numel(), varpro.evaluate(problem, theta).W
    ell = lambda z: cross_entropy(z, problem.label)  # noqa: E731

    def logits(p: Tensor) -> Tensor:
        return varpro.logits(p[n:].view_as(W), problem.features(p[:n].view(shape)))

    def penalty(p: Tensor) -> Tensor:
        return problem.alpha / 2 * p[n:].square().sum() + problem.regularizer(p[:n].view(shape))

    def evaluate(_: varpro.ReducedProblem, p: Tensor, start: Tensor | None) -> varpro.Point:
        z, pull = vjp(logits, p)[:2]
        return varpro.Point(p, z.detach(), pull, p[n:], (ell(z) + penalty(p)).item(), 0)

    def gradient(_: varpro.ReducedProblem, point: varpro.Point) -> Tensor:
        return point.pullback(grad(ell)(point.u))[0] + grad(penalty)(point.theta)

    def curvature(_: varpro.ReducedProblem, point: varpro.Point) -> Callable[[Tensor], Tensor]:
        def product(v: Tensor) -> Tensor:
            bent = jvp(grad(ell), (point.u,), (jvp(logits, (point.theta,), (v,))[1],))[1]
            return point.pullback(bent)[0] + jvp(grad(penalty), (point.theta,), (v,))[1]

        return product

    return torch.cat([theta.flatten(), W.flatten()]), varpro.Parts(evaluate, gradient, curvature)


def gauss_newton(
    problem: varpro.ReducedProblem,
    theta: Tensor,
    budget: int,
    damping: float,
    parts: varpro.Parts = varpro.PROJECTED,
) -> Iterator[list]:
    """The pairs (work, loss) of Gauss–Newton–CG; a Newton step for the readout counts a layer."""
    how = {"steps": budget, "damping": damping, "cg": PRODUCTS, "parts": parts}
    for step in varpro.gauss_newton(problem, theta, **how):
        work = sum(step.work[:3]) + step.work.newton / LAYERS
        yield [work, step.loss]
        if work >= budget:
            return


def first_order(problem: varpro.ReducedProblem, theta: Tensor, budget: int, **how: Any) -> Curve:
    """The same for Adam or L-BFGS; a gradient costs two propagations."""
    curve = varpro.first_order(problem, theta, evaluations=budget // 2, **how)
    return [[2 * count + newton / LAYERS, loss] for count, newton, loss in curve]


def stochastic(seed: int, budget: int, rate: float) -> Curve:
    """The pairs (work, loss on all data) of stochastic gradients of forty samples."""
    full, start = pose(seed)
    y, label = ellipses(seed, train=200).train
    u0 = y.double() @ torch.eye(2, WIDTH, dtype=torch.float64)
    batches = minibatches(u0, label, size=BATCH, seed=seed)
    theta = start.clone().requires_grad_()
    W = varpro.evaluate(full, start).W.requires_grad_()
    steps, curve = round(budget / 2 * len(u0) / BATCH), []
    schedule, sgd = cosine(rate, steps), torch.optim.SGD([theta, W], lr=rate)
    for k in range(steps):
        if k % (len(u0) // BATCH) == 0:
            with torch.no_grad():
                loss = full.loss(W, full.features(theta)) + full.regularizer(theta)
            curve.append([2 * k * BATCH / len(u0), loss.item()])
        part, few = batches(k)
        field = TrainingProblem(tanh_layer, part, 5.0 / LAYERS, torch.clone, torch.clone)
        u = pontryagin.states(field, theta)[-1]
        loss = cross_entropy(varpro.logits(W, u), few) + ALPHA / 2 * W.square().sum()
        sgd.param_groups[0]["lr"] = schedule(k)
        sgd.zero_grad()
        (loss + full.regularizer(theta)).backward()
        sgd.step()
    return curve


def run(method: str, seed: int, budget: int, setting: float = 0.0) -> Curve:
    """The curve of one method within a budget, from the best readout of the first weights."""
    if method == "SGD":
        return stochastic(seed, budget, setting)
    problem, start = pose(seed)
    p, parts = joint(problem, start)
    ways: dict[str, Callable[[], Any]] = {
        "Adam": partial(first_order, problem, start, budget, rate=setting),
        "L-BFGS": partial(first_order, problem, start, budget),
        "L-BFGS, projected": partial(first_order, problem, start, budget, project=True),
        "Gauss–Newton": partial(gauss_newton, problem, p, budget, setting, parts),
        "Gauss–Newton, projected": partial(gauss_newton, problem, start, budget, setting),
    }
    return [[work, loss] for work, loss in ways[method]() if work <= budget]


def lowest(curve: Curve) -> float:
    """The least loss of a run."""
    return min(loss for _, loss in curve)


def work_to(curve: Curve, target: float = TARGET) -> float:
    """The work until a loss is reached; the budget if it never is."""
    return min((work for work, loss in curve if loss <= target), default=float(BUDGET))


def races(store: Store, seeds: Sequence[int]) -> dict[str, Any]:
    """The chosen rates, and the curves of all seeds by method, measured once."""
    budget = 10 if store.run == "smoke" else BUDGET

    def choose(method: str) -> float:
        def score(setting: float) -> float:
            return sum(log(lowest(run(method, s, budget, setting))) for s in TUNED)

        return CHOICES[method][0] if store.run == "smoke" else min(CHOICES[method], key=score)

    def compute() -> dict[str, Any]:
        chosen = {method: choose(method) for method in CHOICES}
        curves = {
            m: [run(m, s, budget, chosen.get(m, 0.0)) for s in seeds] for m in (*JOINT, *PROJECTED)
        }
        return {"chosen": chosen, "curves": curves}

    settings = {"layers": LAYERS, "width": WIDTH, "alpha": ALPHA, "budget": BUDGET, "batch": BATCH}
    settings |= {"products": PRODUCTS, "tuned": list(TUNED), "seeds": list(seeds)}
    settings |= {"choices": {k: list(v) for k, v in CHOICES.items()}}
    return store.measure("optimisers", settings, compute).numbers

"""Potentials of OT-Flow: closed forms against automatic differentiation and plain formulas."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.dynamics import integrate
from ctdl_lib.generative import ot_flow
from ctdl_lib.potentials import AutodiffPotential, Derivatives, Gradient, Potential, ResNetPotential
from machinery.benchmarking import Floor, Row, compare, has_compiler

Runs = dict[str, Callable[[], object]]

EVALUATIONS = [(2, 32, 1024), (13, 128, 256), (43, 256, 64)]
TRAINING = [(2, 32, 2048), (13, 128, 256), (43, 256, 64)]
COMPILED = TRAINING[:1]  # a graph of 32 evaluations takes minutes to compile
WIDE = (784, 64, 128)
STEPS, STAGES = 8, 4


class AsNet(nn.Module):
    """The closed-form potential as a network that is differentiated automatically."""

    def __init__(self, phi: ResNetPotential):
        super().__init__()
        self.phi = phi

    def forward(self, t, x):
        return self.phi(t, x)


class PlainPotential(Potential):
    """A simple implementation of the formulas of `ResNetPotential`, with J (batch, width, d)."""

    def __init__(self, phi: ResNetPotential):
        super().__init__()
        self.phi, self.d = phi, phi.d

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.phi(t, x)

    def gradient(self, t: Any, x: Tensor) -> Gradient:
        return Gradient(*self.derivatives(t, x)[:3])

    def derivatives(self, t: Any, x: Tensor, sigma: Any = None) -> Derivatives:
        assert sigma is None
        phi, d, h = self.phi, self.phi.d, self.phi.h
        s = torch.cat([x, t * torch.ones_like(x[:, :1])], dim=1)
        a = s @ phi.K0.T + phi.b0
        u, slopes = log_2_cosh(a), [torch.tanh(a)]
        for K, b in zip(phi.K, phi.b, strict=True):
            a = u @ K.T + b
            u, slopes = u + h * log_2_cosh(a), [*slopes, torch.tanh(a)]
        z = [phi.w.expand_as(u)]
        for K, slope in zip(phi.K.flip(0), slopes[:0:-1], strict=True):
            z.insert(0, z[0] + h * (slope * z[0]) @ K)
        As, M = s @ phi.A.T, phi.K0[:, :d]
        value = u @ phi.w + 0.5 * As.square().sum(-1) + s @ phi.linear + phi.constant
        ds = (slopes[0] * z[0]) @ phi.K0 + As @ phi.A + phi.linear
        trace = ((1 - slopes[0] ** 2) * z[0]) @ (M**2).sum(-1) + (phi.A[:, :d] ** 2).sum()
        J = slopes[0][:, :, None] * M
        for K, slope, zi in zip(phi.K, slopes[1:], z[1:], strict=True):
            KJ = K @ J
            trace = trace + h * ((1 - slope**2) * zi * (KJ**2).sum(-1)).sum(-1)
            J = J + h * slope[:, :, None] * KJ
        return Derivatives(value, ds[:, d], ds[:, :d], trace)


def log_2_cosh(a: Tensor) -> Tensor:
    return a.abs() + torch.log1p(torch.exp(-2 * a.abs()))


def rows() -> Iterator[Row]:
    for size in EVALUATIONS:
        yield from compare(named(size, "second derivatives and their gradient"), evaluation(*size))
    for size in TRAINING:
        yield from training(*size)
    for size in TRAINING:
        yield from sampling(*size)
    yield from compare(named(WIDE, "exact trace and its gradient"), traces(*WIDE))


def named(size: tuple[int, int, int], what: str) -> str:
    d, width, batch = size
    return f"{what}; d = {d}, width {width}, batch {batch}"


def example(d: int, width: int, batch: int) -> tuple[ResNetPotential, Tensor]:
    generator = torch.Generator().manual_seed(0)
    phi = ResNetPotential(d, width=width, generator=generator)
    return phi, torch.randn(batch, d, generator=generator)


def evaluation(d: int, width: int, batch: int) -> Runs:
    phi, x = example(d, width, batch)

    def step(potential: Potential):
        def run():
            phi.zero_grad()
            found = potential.derivatives(0.5, x)
            (found.laplacian + found.dt + found.dx.square().sum(-1)).mean().backward()

        return run

    return {"ours": step(phi), "autodiff": step(AutodiffPotential(AsNet(phi)))}


def training(d: int, width: int, batch: int) -> list[Row]:
    """A training step of OT-Flow against the plain formulas, and both compiled as a whole.

    The floor are the products of the sweep of the Jacobian: one forward and two backward.
    """
    phi, x = example(d, width, batch)
    plain = PlainPotential(phi)
    J = torch.randn(width, d * batch)
    K, out = torch.randn(width, width), torch.empty_like(J)
    products = Floor("products", lambda: torch.mm(K, J, out=out), 3 * STAGES * STEPS)
    runs = {"ours": step_of(phi, x), "plain": step_of(plain, x)}
    if (d, width, batch) in COMPILED:
        runs |= compiled(phi, plain, x)
    case = named((d, width, batch), f"OT-Flow, a training step of {STEPS} RK4 steps")
    return compare(case, runs, floor=products)


def compiled(phi: ResNetPotential, plain: "PlainPotential", x: Tensor) -> Runs:
    """Both losses in one graph of `torch.compile`, where there is a C++ compiler."""
    if not has_compiler():
        return {}
    loss = torch.compile(ot_flow_loss, fullgraph=True, dynamic=False)
    return {"ours, compiled": step_of(phi, x, loss), "plain, compiled": step_of(plain, x, loss)}


def ot_flow_loss(potential: Potential, x: Tensor) -> Tensor:
    terms = ot_flow(potential, x, steps=STEPS, likelihood=1.0, hjb=1.0)
    return torch.stack(list(terms.values())).sum()


def step_of(potential: Any, x: Tensor, loss: Callable = ot_flow_loss) -> Callable[[], None]:
    def run():
        potential.zero_grad()
        loss(potential, x).backward()

    return run


def sampling(d: int, width: int, batch: int) -> list[Row]:
    """Samples against the plain formulas, which integrate the log density and the costs as well.

    The floor are the products of the layers, one forward and one backward.
    """
    phi, z = example(d, width, batch)
    plain = PlainPotential(phi)

    def ours(potential: Potential, z: Tensor) -> Tensor:
        return integrate(lambda t, x: -potential.gradient(t, x).dx, z, 1.0, 0.0, steps=STEPS)

    def with_costs(potential: Any, z: Tensor) -> Tensor:
        def rates(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            _, dt, dx, laplacian = potential.derivatives(t, state[0])
            kinetic = 0.5 * dx.square().sum(-1)
            return -dx, -laplacian, kinetic, (dt - kinetic).abs()

        zeros = z.new_zeros(len(z))
        return integrate(rates, (z, zeros, zeros, zeros), 1.0, 0.0, steps=STEPS)[0]

    runs: Runs = {
        "ours": lambda: ours(phi, z),
        "plain, with costs": lambda: with_costs(plain, z),
        "ours, with costs": lambda: with_costs(phi, z),
    }
    if (d, width, batch) in COMPILED and has_compiler():
        fused = torch.compile(ours, fullgraph=True, dynamic=False)
        runs["ours, compiled"] = lambda: fused(phi, z)
    u, K, s, K0 = z.new_ones(width, batch), phi.K[0], z.new_ones(d + 1, batch), phi.K0

    def products() -> None:
        for A, b in ((K0, s), (K, u), (K.T, u), (K0.T, u)):
            torch.mm(A, b)

    case = named((d, width, batch), f"OT-Flow, samples by {STEPS} RK4 steps")
    with torch.no_grad():
        return compare(case, runs, floor=Floor("products", products, STAGES * STEPS))


def traces(d: int, width: int, batch: int) -> Runs:
    """The exact trace for d > width, from the columns of a factor of M Mᵀ or from all d columns."""
    phi, x = example(d, width, batch)

    def trace(potential: Any, x: Tensor) -> Tensor:
        return potential.derivatives(0.5, x).laplacian.mean()

    return {"ours": step_of(phi, x, trace), "plain": step_of(PlainPotential(phi), x, trace)}

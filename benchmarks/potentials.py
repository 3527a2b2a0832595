"""The closed-form potential against torch.func, a simple implementation, and matrix products."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch._inductor.exc import InductorError

from ctdl_lib.dynamics import integrate
from ctdl_lib.potentials import AutodiffPotential, Derivatives, Potential, ResNetPotential
from machinery.instruments import interleaved_times

SIZES = [(2, 32, 1024), (13, 128, 256), (43, 256, 64)]
TRAINING = [(2, 32, 2048), (13, 128, 256), (43, 256, 64)]
STEPS, STAGES = 8, 4


class AsNet(nn.Module):
    """The closed-form potential as a network that is differentiated automatically."""

    def __init__(self, phi: ResNetPotential):
        super().__init__()
        self.phi = phi

    def forward(self, t, x):
        return self.phi(t, x)


class PlainPotential(nn.Module):
    """A simple implementation of the formulas of `ResNetPotential`, with J (batch, width, d)."""

    def __init__(self, phi: ResNetPotential):
        super().__init__()
        self.phi = phi

    def derivatives(self, t: float, x: Tensor) -> Derivatives:
        phi, d, h = self.phi, self.phi.d, self.phi.h
        s = torch.cat([x, torch.full_like(x[:, :1], t)], dim=1)
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


def rows() -> Iterator[str]:
    for size in SIZES:
        yield described(size, "derivatives and gradient", evaluation(*size), rounds=5)
    for size in TRAINING:
        yield described(size, "training step", training(*size), rounds=5)
    yield gemm_share(43, 256, 64)
    yield described((13, 128, 256), "evaluation", sampling(13, 128, 256), rounds=50)
    yield described((784, 64, 128), "exact trace", traces(784, 64, 128), rounds=5)
    yield from compiled(2, 32, 2048)


def described(size, what: str, contenders, rounds: int) -> str:
    times = interleaved_times(contenders, rounds=rounds)
    (ours, time), (other, slower) = times.items()
    d, width, batch = size
    return (
        f"d={d:<3} width={width:<4} batch={batch:<5}{what}: {ours} {1e3 * time:.2f} ms,"
        f" {other} {1e3 * slower:.2f} ms, ratio {slower / time:.1f}"
    )


def example(d: int, width: int, batch: int) -> tuple[ResNetPotential, Tensor]:
    generator = torch.Generator().manual_seed(0)
    phi = ResNetPotential(d, width=width, generator=generator)
    return phi, torch.randn(batch, d, generator=generator)


def evaluation(d: int, width: int, batch: int):
    phi, x = example(d, width, batch)

    def step(potential: Potential):
        def run():
            phi.zero_grad()
            found = potential.derivatives(0.5, x)
            (found.laplacian + found.dt + found.dx.square().sum(-1)).mean().backward()

        return run

    return {"closed form": step(phi), "autodiff": step(AutodiffPotential(AsNet(phi)))}


def training(d: int, width: int, batch: int):
    phi, x = example(d, width, batch)
    return {"ours": training_step(phi, x), "plain": training_step(PlainPotential(phi), x)}


def training_step(potential, x: Tensor) -> Callable[[], None]:
    """One gradient of the loss of a continuous normalizing flow with the velocity −∇Φ."""

    def rates(t, state):
        _, dt, dx, laplacian = potential.derivatives(t, state[0])
        kinetic = 0.5 * dx.square().sum(-1)
        return -dx, -laplacian, kinetic, (dt - kinetic).abs()

    def run():
        potential.zero_grad()
        zeros = x.new_zeros(len(x))
        end, *others = integrate(rates, (x, zeros, zeros, zeros), 0.0, 1.0, steps=STEPS)
        log_det, cost, residual = others
        (0.5 * end.square().sum(-1) - log_det + cost + residual).mean().backward()

    return run


def gemm_share(d: int, width: int, batch: int) -> str:
    """The training step against the matrix products of its Jacobian sweep alone."""
    phi, x = example(d, width, batch)
    J = torch.randn(width, d * batch)
    K, out = torch.randn(width, width), torch.empty_like(J)
    contenders = {"step": training_step(phi, x), "gemm": lambda: torch.mm(K, J, out=out)}
    times = interleaved_times(contenders, rounds=10)
    floor = 3 * STAGES * STEPS * times["gemm"]
    rate = 2 * width**2 * d * batch / times["gemm"]
    return (
        f"d={d:<3} width={width:<4} batch={batch:<5}training step: its sweep alone"
        f" {1e3 * floor:.0f} ms at {rate / 1e9:.0f} GFlop/s, share {floor / times['step']:.0%}"
    )


def sampling(d: int, width: int, batch: int):
    phi, x = example(d, width, batch)

    def without_graph(what):
        return torch.no_grad()(lambda: what(0.5, x))

    return {"gradient": without_graph(phi.gradient), "derivatives": without_graph(phi.derivatives)}


def traces(d: int, width: int, batch: int):
    """The exact trace for d > width, from the columns of a factor of M Mᵀ or from all d columns."""
    phi, x = example(d, width, batch)
    return {"closed form": step_of(phi, x), "sweep": step_of(PlainPotential(phi), x)}


def step_of(potential, x: Tensor) -> Callable[[], None]:
    def run():
        potential.zero_grad()
        potential.derivatives(0.5, x).laplacian.mean().backward()

    return run


def compiled(d: int, width: int, batch: int) -> Iterator[str]:
    """The simple formulas with torch.compile, which ctdl_lib avoids: it needs a C++ compiler."""
    phi, x = example(d, width, batch)
    plain = PlainPotential(phi)
    run = step_of(phi, x), step_of(plain, x)
    fused = PlainPotential(phi)
    fused.derivatives = torch.compile(plain.derivatives)
    try:
        step_of(fused, x)()
    except InductorError as error:
        yield f"torch.compile is left out: {str(error).splitlines()[0]}"
        return
    times = interleaved_times(
        {"ours": run[0], "plain": run[1], "plain compiled": step_of(fused, x)}, rounds=20
    )
    found = ", ".join(f"{name} {1e3 * time:.2f} ms" for name, time in times.items())
    yield f"d={d:<3} width={width:<4} batch={batch:<5}trace and its gradient: {found}"

"""A partial differential equation from data: Kuramoto–Sivashinsky, found by implicit steps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ctdl_lib.dynamics import integrate
from ctdl_lib.learning import cosine, minibatches, train
from ctdl_lib.learning.training import Step
from machinery.store import Store

from .implicit import implicit_step

SEEDS = (10, 11, 12, 13, 14)
LENGTH, NODES, INTERVAL = 22.0, 64, 0.25
TRANSIENT, LONG = 20.0, 80.0
FINE = 5  # implicit steps an interval for predictions
FAR = 0.4  # of the standard deviation: from there on a prediction counts as lost
IMPLICIT, REGRESSION, DIFFERENCES = "implicit", "regression", "differences"
EXPLICIT, STILL = "explicit", "still"


@dataclass(frozen=True)
class Settings:
    """The training: a regression of the trapezoidal rule, and then steps that are solved.

    `kind` is "implicit" for both, and "regression" for the first alone. "differences" is the
    regression of central differences of the data in time, and "explicit" one step of RK4 an
    interval. All have as many iterations.
    """

    kind: str
    steps: int = 4400
    regression: int = 4000
    lr: float = 0.01
    fine_lr: float = 1e-3
    size: int = 32
    width: int = 24
    radius: int = 2
    horizon: float = 200.0


def wave_numbers() -> Tensor:
    """The wave numbers of a periodic grid, without their signs."""
    return 2 * math.pi / LENGTH * torch.arange(NODES // 2 + 1, dtype=torch.float64)


class Spectral(NamedTuple):
    """Factors of exponential time differencing of order four."""

    whole: Tensor
    half: Tensor
    q: Tensor
    first: Tensor
    middle: Tensor
    last: Tensor


def factors(h: float) -> Spectral:
    """The factors for steps of size h; contour integrals avoid the cancellation at k = 0.

    Reference: kassam2005fourth.
    """
    k = wave_numbers()
    rate = h * (k**2 - k**4)
    root = torch.exp(1j * math.pi * (torch.arange(32, dtype=torch.float64) + 0.5) / 32)
    z = rate[:, None] + root
    mean = lambda values: h * values.real.mean(1)  # noqa: E731
    return Spectral(
        rate.exp(),
        (rate / 2).exp(),
        mean(((z / 2).exp() - 1) / z),
        mean((-4 - z + z.exp() * (4 - 3 * z + z**2)) / z**3),
        mean((2 + z + z.exp() * (z - 2)) / z**3),
        mean((-4 - 3 * z - z**2 + z.exp() * (4 - z)) / z**3),
    )


def truth(u: Tensor, intervals: int, substeps: int = 20) -> Tensor:
    """Solutions of ∂ₜu = −u ∂ₓu − ∂ₓ²u − ∂ₓ⁴u at all multiples of the interval, stacked.

    The grid is periodic, with 64 nodes on a length of 22. `u` is (batch, 64).
    """
    e, k = factors(INTERVAL / substeps), wave_numbers()

    def bend(v: Tensor) -> Tensor:
        return -0.5j * k * torch.fft.rfft(torch.fft.irfft(v, NODES) ** 2)

    v, path = torch.fft.rfft(u), [u]
    for _ in range(intervals):
        for _ in range(substeps):
            n = bend(v)
            a = e.half * v + e.q * n
            na = bend(a)
            b = e.half * v + e.q * na
            nb = bend(b)
            c = e.half * a + e.q * (2 * nb - n)
            v = e.whole * v + e.first * n + 2 * e.middle * (na + nb) + e.last * bend(c)
        path.append(torch.fft.irfft(v, NODES))
    return torch.stack(path)


def solutions(seed: int, count: int, horizon: float) -> Tensor:
    """Solutions on the attractor at all intervals, from random sums of three waves."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * math.pi * torch.arange(NODES, dtype=torch.float64) / NODES
    waves = torch.stack([f(j * x) for j in (1, 2, 3) for f in (torch.cos, torch.sin)])
    u = torch.randn(count, 6, generator=generator, dtype=torch.float64) @ waves
    settled = round(TRANSIENT / INTERVAL)
    return truth(u, settled + round(horizon / INTERVAL))[settled:]


class Stencil(nn.Module):
    """The velocity ∂ₜuᵢ = w·z + φ(z) of the values z around node i, whitened; φ is a network.

    So it is a convolution. The whitening is that of the data, and the identity before training.
    """

    def __init__(self, key: Settings, seed: int):
        super().__init__()
        k, generator = 2 * key.radius + 1, torch.Generator().manual_seed(seed)
        sizes = [(k, key.width), (key.width, key.width), (key.width, 1)]
        self.layers = nn.ModuleList(nn.Linear(n, m).double() for n, m in sizes)
        for layer in self.layers:
            for weight in layer.parameters():
                bound = layer.in_features**-0.5  # pyright: ignore[reportOperatorIssue]
                nn.init.uniform_(weight, -bound, bound, generator=generator)  # pyright: ignore[reportArgumentType]
        self.w = nn.Parameter(torch.zeros(k, dtype=torch.float64))
        self.register_buffer("whitening", torch.eye(k, dtype=torch.float64))
        near = torch.arange(-key.radius, key.radius + 1)
        self.register_buffer("index", (torch.arange(NODES)[:, None] + near) % NODES)

    index: Tensor
    whitening: Tensor

    def local(self, window: Tensor) -> Tensor:
        """The velocity at the middle of windows (…, 2 radius + 1)."""
        z = window @ self.whitening
        out = z
        for i, layer in enumerate(self.layers):
            out = layer(torch.tanh(out) if i else out)
        return z @ self.w + out[..., 0]

    def forward(self, t: Any, u: Tensor) -> Tensor:
        """The velocity at all nodes."""
        return self.local(u[:, self.index])

    def jacobian(self, u: Tensor) -> Tensor:
        """The derivatives ∂v/∂u (batch, 64, 64), from one backward pass over all windows."""
        with torch.enable_grad():
            window = u.detach()[:, self.index].requires_grad_()
            (slope,) = torch.autograd.grad(self.local(window).sum(), window)
        empty = u.new_zeros(len(u), NODES, NODES)
        return empty.scatter(2, self.index.expand(len(u), -1, -1), slope)


def whitening_of(u: Tensor, radius: int) -> Tensor:
    """The matrix that makes the values in windows uncorrelated, with mean square one."""
    near = torch.arange(-radius, radius + 1)
    windows = u[:, (torch.arange(NODES)[:, None] + near) % NODES].flatten(0, 1)
    values, vectors = torch.linalg.eigh(windows.T @ windows / len(windows))
    return vectors / values.sqrt()


def advance(kind: str, velocity: Any, u: Tensor) -> Tensor:
    """The state an interval later."""
    if kind == EXPLICIT:
        return integrate(velocity, u, 0.0, INTERVAL, steps=1)
    return implicit_step(velocity, u, INTERVAL, jacobian=type(velocity).jacobian)


def fit(store: Store, kind: str, seed: int) -> Stencil:
    """The velocity found in one solution: loaded, trained or tried out."""
    key = Settings(kind)
    velocity = Stencil(key, seed)

    def loss(velocity: Any, batch: tuple[int, tuple[Tensor, ...]]) -> Tensor:
        k, (before, middle, after) = batch
        if kind == DIFFERENCES:
            slope = (after - before) / (2 * INTERVAL)
            return INTERVAL**2 * (slope - velocity(before.new_zeros(()), middle)).square().mean()
        before = middle
        if kind != EXPLICIT and (k < key.regression or kind == REGRESSION):
            zero = before.new_zeros(())
            mean = (velocity(zero, before) + velocity(zero, after)) / 2
            return (after - before - INTERVAL * mean).square().mean()
        return (advance(kind, velocity, before) - after).square().mean()

    first, second = cosine(key.lr, key.regression), cosine(key.fine_lr, key.steps - key.regression)

    def rate(k: int) -> float:
        if kind == IMPLICIT:
            return first(k) if k < key.regression else second(k - key.regression)
        return cosine(key.lr, key.steps)(k)

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        u = solutions(seed, 1, 5.0 if store.run == "smoke" else key.horizon)[:, 0]
        velocity.whitening.copy_(whitening_of(u, key.radius))
        parts = (u[:-2], u[1:-1], u[2:])
        if kind != DIFFERENCES:
            parts = (u[:-1], u[:-1], u[1:])
        batches = minibatches(*parts, size=min(key.size, len(parts[0])), seed=seed)
        draw = lambda k: (k, batches(k))  # noqa: E731
        return train(velocity, loss, draw, steps=steps, lr=rate, checkpoint=file)

    store.fit(f"waves-{kind}-{seed}", velocity, asdict(key) | {"seed": seed}, training)
    return velocity.requires_grad_(False)


def predict(velocity: Any, u: Tensor, intervals: int) -> Tensor:
    """The solution of the found equation at all intervals, stacked.

    It is computed by five implicit steps an interval, whatever has found the equation. It ends
    early where a step has no solution.
    """
    path, h = [u], INTERVAL / FINE
    with torch.no_grad():
        for _ in range(intervals):
            after = path[-1]
            try:
                for _ in range(FINE):
                    after = implicit_step(velocity, after, h, jacobian=type(velocity).jacobian)
            except (ArithmeticError, RuntimeError):
                break
            if not bool((after.abs() < 1e3).all()):
                break
            path.append(after)
    return torch.stack(path)


def lost_at(prediction: Tensor, u: Tensor) -> list[float]:
    """The times from which on predictions are off, by more than 0.4 standard deviations.

    A prediction that ends is off from then on.
    """
    error = (prediction - u[: len(prediction)]).square().mean(2).sqrt() / u.std()
    lost = torch.cat([error > FAR, torch.ones(1, u.shape[1], dtype=torch.bool)])
    return (INTERVAL * lost.int().argmax(0)).tolist()


def valid_times(velocity: Stencil, seed: int, horizon: float = LONG) -> list[float]:
    """The times until which eight predictions from fresh states are near the truth."""
    u = solutions(seed + 5000, 8, horizon)
    return lost_at(predict(velocity, u[0], len(u) - 1), u)


def still_times(seed: int, horizon: float = LONG) -> list[float]:
    """The same for the prediction that nothing moves."""
    u = solutions(seed + 5000, 8, horizon)
    return lost_at(u[:1].expand_as(u), u)


def study(store: Store, kind: str, seeds: Sequence[int]) -> list[float]:
    """The mean valid time of each seed, measured once; with "still" if nothing moves."""
    nets = [] if kind == STILL else [fit(store, kind, s) for s in seeds]
    horizon = 2.0 if store.run == "smoke" else LONG

    def compute() -> dict[str, list[list[float]]]:
        if kind == STILL:
            return {"times": [still_times(s, horizon) for s in seeds]}
        found = zip(nets, seeds, strict=True)
        return {"times": [valid_times(net, s, horizon) for net, s in found]}

    settings = asdict(Settings(kind)) | {"seeds": list(seeds), "horizon": LONG, "fine": FINE}
    found = store.measure(f"valid-{kind}", settings, compute).numbers["times"]
    return [sum(times) / len(times) for times in found]


def growth_rates(velocity: Stencil) -> Tensor:
    """The rates at which the waves of `wave_numbers` grow at u = 0; the truth is k² − k⁴."""
    column = velocity.jacobian(torch.zeros(1, NODES, dtype=torch.float64))[0, :, 0]
    return torch.fft.rfft(column).real


def rate_error(velocity: Stencil, most: float = 1.5) -> float:
    """The largest error of these rates for wave numbers up to `most`, where solutions live."""
    k = wave_numbers()
    wrong = (growth_rates(velocity) - (k**2 - k**4)).abs()
    return wrong[k <= most].max().item()

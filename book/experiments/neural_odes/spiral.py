"""A spiral from noisy observations at irregular times, and what a simple rival makes of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ctdl_lib.dynamics import integrate
from ctdl_lib.learning import cosine, train
from ctdl_lib.networks import MLP
from machinery.store import Store

from .problems import Series, observe, spiral_velocity

SEEDS = (10, 11, 12, 13, 14)
OBSERVED, LONG = 1.5, 3.0  # until when there are data, and until when we look


@dataclass(frozen=True)
class Settings:
    """The training: the mean absolute error of `solver_steps` steps of RK4."""

    steps: int = 800
    lr: float = 0.02
    noise: float = 0.05
    solver_steps: int = 30
    width: int = 50
    observations: int = 40
    starts: int = 6


class Network(nn.Module):
    """The velocity v(x³), or v(x) with `power` one, where v has one hidden layer."""

    def __init__(self, seed: int, power: int = 3):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.net = MLP(2, width=Settings.width, hidden=1, time=False, generator=generator)
        self.power = power

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The velocity at x."""
        return self.net(t, x**self.power)


class Linear(nn.Module):
    """The velocity Ax, or Ax³ with `power` three, which is the form of the true one."""

    def __init__(self, seed: int, power: int = 1):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.A = nn.Parameter(0.1 * torch.randn(2, 2, generator=generator))
        self.power = power

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The velocity at x."""
        return x**self.power @ self.A.T


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "spiral": Network,
    "plain": partial(Network, power=1),
    "linear": Linear,
    "cubes": partial(Linear, power=3),
}


def starts(dtype: torch.dtype = torch.float32) -> Tensor:
    """Six points between the radii 1 and 2, at angles that are multiples of 60°."""
    angle, radius = torch.arange(6) * math.pi / 3, torch.linspace(1.0, 2.0, 6)
    return (radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)).to(dtype)


def observed(seed: int, key: Settings | None = None) -> Series:
    """Noisy observations of the six solutions at random times."""
    key = key or Settings()
    generator = torch.Generator().manual_seed(seed)
    t = (OBSERVED * torch.rand(key.observations, generator=generator)).sort().values
    return observe(spiral_velocity, starts(), t, noise=key.noise, generator=generator)


def fit(store: Store, kind: str, seed: int) -> nn.Module:
    """The network or its rival: loaded, trained or tried out, as the store's `run` says."""
    key, velocity = Settings(), KINDS[kind](seed)

    def loss(net: nn.Module, series: Series) -> Tensor:
        how = {"steps": key.solver_steps, "save_at": series.t}
        return (integrate(net, starts(), 0.0, OBSERVED, **how) - series.x).abs().mean()

    def training(steps: int, file: Path | None):
        schedule, series = cosine(key.lr, steps), observed(seed)
        return train(velocity, loss, lambda k: series, steps=steps, lr=schedule, checkpoint=file)

    store.fit(f"{kind}-{seed}", velocity, asdict(key) | {"seed": seed}, training)
    return velocity


@dataclass(frozen=True)
class Distances:
    """The mean distance from the true spiral, where there are data and beyond."""

    within: float
    beyond: float


@cache
def truth() -> Series:
    """The true spirals at 121 times until t = 3."""
    return observe(spiral_velocity, starts(), torch.linspace(0, LONG, 121))


@torch.no_grad()
def distances(velocity: nn.Module) -> Distances:
    """How far the solutions of a velocity are from the true ones."""
    later, exact = truth()
    path = integrate(velocity, starts(), 0.0, LONG, steps=120, save_at=later)
    found = (path - exact).norm(dim=-1)
    return Distances(found[later <= OBSERVED].mean().item(), found[later > OBSERVED].mean().item())


def all_distances(store: Store, kind: str, seeds: Sequence[int]) -> list[Distances]:
    """The distances of all seeds."""
    return [distances(fit(store, kind, s)) for s in seeds]

"""Invertible residual networks as densities of two moons."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import make_moons
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ctdl_lib.learning import cosine, minibatches, train
from ctdl_lib.learning.training import Step
from machinery.store import Store

from . import invertible

SEEDS = (10, 11, 12, 13, 14)
RATE = 0.9  # the bound c of the contractions that are inverted
STOP = 0.1  # so that 1 − stop exceeds c², and the variance of the sums is finite


@dataclass(frozen=True)
class Settings:
    """The training of ten blocks x + g(x)."""

    steps: int = 600
    lr: float = 5e-3
    size: int = 256
    blocks: int = 10
    c: float = 0.97
    width: int = 32
    points: int = 2000
    noise: float = 0.08


def moons(seed: int, count: int = Settings.points) -> Tensor:
    """Points of two moons."""
    points, _ = make_moons(count, noise=Settings.noise, random_state=seed)
    return torch.as_tensor(points).float()


def log_density(net: invertible.InvertibleResNet, x: Tensor, log_det=invertible.log_det) -> Tensor:
    """The logarithm of the density of a flow to the standard normal distribution."""
    z, total = net(x, log_det)
    return total - 0.5 * z.square().sum(1) - math.log(2 * math.pi)


def fit(store: Store, seed: int) -> invertible.InvertibleResNet:
    """The flow of one seed: loaded, trained or tried out, as the store's `run` says."""
    key, g = Settings(), torch.Generator().manual_seed(seed)
    block = partial(invertible.Contraction, 2, width=key.width, c=key.c, generator=g)
    net = invertible.InvertibleResNet(block() for _ in range(key.blocks))
    batches = minibatches(moons(seed), size=key.size, seed=seed)

    def loss(net: Any, batch: tuple[tuple[Tensor], int]) -> Tensor:
        (x,), k = batch
        g = torch.Generator().manual_seed(k)
        eps = 2.0 * torch.randint(2, x.shape, generator=g) - 1
        roulette = lambda block, x: invertible.log_det_roulette(block, x, eps, g)  # noqa: E731
        return -log_density(net, x, roulette).mean()

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        draw = lambda k: (batches(k), k)  # noqa: E731
        return train(net, loss, draw, steps=steps, lr=cosine(key.lr, steps), checkpoint=file)

    store.fit(f"moons-{seed}", net, asdict(key) | {"seed": seed}, training)
    return net.requires_grad_(False)


def negative_log_likelihood(net: invertible.InvertibleResNet, seed: int) -> float:
    """The mean of −log density at fresh points, in nats."""
    return -log_density(net, moons(seed + 1000)).mean().item()


def gaussian(seed: int) -> float:
    """The same for the normal distribution with the mean and covariance of the data."""
    x = moons(seed)
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    return -normal.log_prob(moons(seed + 1000)).mean().item()


def mixture(seed: int, components: int = 16) -> float:
    """The same for a mixture of Gaussians, fitted to the same points."""
    model = GaussianMixture(components, random_state=seed).fit(moons(seed).numpy())
    return -float(model.score(moons(seed + 1000).numpy()))


def true_density(x: Tensor, nodes: int = 2000) -> Tensor:
    """The density of the moons: noise around two half circles, by the midpoint rule."""
    angle = math.pi * (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    squares = torch.cdist(x.double(), torch.cat([upper, lower])).square()
    variance = Settings.noise**2
    return (-squares / (2 * variance)).exp().mean(1) / (2 * math.pi * variance)


def floor(seed: int) -> float:
    """The least possible mean of −log density at the same fresh points."""
    return -true_density(moons(seed + 1000)).log().mean().item()


# --- the inverse and the determinant ------------------------------------------------------------


def network_error(seed: int, iterations: int, factor: float = 1.0) -> float:
    """The relative error of the inverse of x + factor g(x), for a random g bounded by 0.9."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    net = invertible.Contraction(4, width=64, c=RATE, generator=generator).double()
    g = lambda x: factor * net(x).detach()  # noqa: E731
    found = invertible.inverse(g, x + g(x), RATE, iterations=iterations).x
    return ((found - x).norm() / x.norm()).item()


def measured_rate(seed: int) -> float:
    """The factor by which a step lowers the error of the inverse, for a network bounded by 0.9."""
    five, ten = (network_error(seed, n) for n in (5, 10))
    return (ten / five) ** 0.2


def _turn() -> tuple[invertible.Contraction, Tensor]:
    """A contraction that turns and stretches, and a point; the series converges slowly there."""
    g = invertible.Contraction(2, width=16, hidden=0, c=RATE).double()
    g.weights[0].data = torch.tensor([[2.0, -0.3], [0.3, 2.0]], dtype=torch.float64)
    return g.requires_grad_(False), torch.zeros(1, 2, dtype=torch.float64)


def exact_log_det() -> float:
    """The logarithm of the determinant that the estimates below aim at."""
    return invertible.log_det(*_turn()).item()


def cut_log_det(terms: int) -> float:
    """The first terms of the series."""
    g, x = _turn()
    return invertible.log_det_series(g, x, torch.ones_like(x), terms=terms).item()


def roulette_log_det(seed: int, draws: int = 4000) -> float:
    """The mean of sums that end at random, each term divided by the probability to get there."""
    generator = torch.Generator().manual_seed(seed)
    g, x = _turn()
    signs = lambda: 2.0 * torch.randint(2, (1, 2), generator=generator).double() - 1  # noqa: E731
    estimates = [
        invertible.log_det_roulette(g, x, signs(), generator, stop=STOP) for _ in range(draws)
    ]
    return torch.cat(estimates).mean().item()


def roulettes(store: Store, seeds: Sequence[int]) -> list[float]:
    """The means of all seeds, measured once."""
    draws = 50 if store.run == "smoke" else 4000

    def compute() -> dict[str, list[float]]:
        return {"means": [roulette_log_det(s, draws) for s in seeds]}

    settings = {"seeds": list(seeds), "draws": 4000, "stop": STOP}
    return store.measure("roulette", settings, compute).numbers["means"]

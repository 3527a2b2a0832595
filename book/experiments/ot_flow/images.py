"""OT-Flow on the codes of an autoencoder: digits from a latent space of 16 dimensions."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib import metrics
from ctdl_lib.generative import Flow
from ctdl_lib.learning import Step, cosine, minibatches, train
from ctdl_lib.potentials import ResNetPotential
from ctdl_lib.problems.datasets import mnist
from machinery.seeds import seeded
from machinery.store import Store


@dataclass(frozen=True)
class Coding:
    """The settings of the autoencoder: `d` numbers a code, learned from `train` images."""

    d: int = 16
    hidden: int = 128
    batch: int = 256
    lr: float = 2e-3
    steps: int = 3000
    train: int = 4500


@dataclass(frozen=True)
class Flowing:
    """The settings of the flow on the codes."""

    width: int = 64
    layers: int = 2
    alpha: int = 100
    beta: int = 10
    rk4: int = 4
    batch: int = 512
    lr: float = 0.02
    steps: int = 600


class Autoencoder(nn.Module):
    """A network of 784, `hidden`, d, `hidden` and 784 units that repeats an image."""

    def __init__(self, d: int, hidden: int):
        super().__init__()
        squeeze = nn.Linear(784, hidden), nn.SiLU(), nn.Linear(hidden, d)
        widen = nn.Linear(d, hidden), nn.SiLU(), nn.Linear(hidden, 784), nn.Sigmoid()
        self.encode, self.decode = nn.Sequential(*squeeze), nn.Sequential(*widen)


@dataclass(frozen=True)
class Latent:
    """The images, the trained autoencoder and flow, and the codes of all images."""

    coding: Coding
    flowing: Flowing
    seed: int
    images: Tensor
    coder: Autoencoder
    flow: Flow
    codes: Tensor

    @property
    def learned(self) -> Tensor:
        """The images that were learned from."""
        return self.images[: self.coding.train]

    @property
    def shown(self) -> Tensor:
        """The held-out images."""
        return self.images[self.coding.train :]

    @property
    def held_out(self) -> Tensor:
        """The codes of the held-out images."""
        return self.codes[self.coding.train :]


def latent(store: Store, seed: int = 0) -> Latent:
    """The autoencoder and the flow on its codes: loaded, trained or tried out."""
    coding, flowing = Coding(), Flowing()
    order = torch.randperm(5000, generator=seeded(seed, 0))
    images = mnist().image[order].float()
    learned = images[: coding.train]
    coder = _coder(store, coding, learned, seed)
    codes = coder.encode(images)
    flow = _flow(store, coding, flowing, codes[: coding.train], seed)
    return Latent(coding, flowing, seed, images, coder, flow, codes)


def _coder(store: Store, coding: Coding, images: Tensor, seed: int) -> Autoencoder:
    torch.manual_seed(seed)
    coder = Autoencoder(coding.d, coding.hidden)

    def misfit(coder: Any, batch: tuple[Tensor]) -> Tensor:
        return (coder.decode(coder.encode(batch[0])) - batch[0]).square().mean()

    _fit(store, "autoencoder", coder, coding, asdict(coding), misfit, images, seed)
    return coder


def _flow(store: Store, coding: Coding, flowing: Flowing, codes: Tensor, seed: int) -> Flow:
    shape = {"width": flowing.width, "layers": flowing.layers}
    phi = ResNetPotential(coding.d, **shape, generator=seeded(seed, 0))
    flow = Flow(phi, coding.d, solver={"steps": 16}).standardize(codes)
    how = {"likelihood": flowing.alpha, "hjb": flowing.beta, "steps": flowing.rk4}

    def terms(flow: Any, batch: tuple[Tensor]) -> dict[str, Tensor]:
        return flow.objective(*batch, **how)

    key = asdict(flowing) | {"coder": asdict(coding)}
    _fit(store, "latent", flow, flowing, key, terms, codes, seed)
    return flow


def _fit(
    store: Store,
    name: str,
    model: nn.Module,
    key: Coding | Flowing,
    stored: dict[str, Any],
    loss: Callable[[nn.Module, Any], Any],
    data: Tensor,
    seed: int,
) -> None:
    """Fit the model to the rows of `data` and stop its gradients."""
    rows = minibatches(data, size=key.batch, seed=seed)
    lr = cosine(key.lr, key.steps)

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        return train(model, loss, rows, steps=steps, lr=lr, checkpoint=file, every=1000)

    store.fit(name, model, stored | {"seed": seed}, training)
    model.requires_grad_(False)


def from_data(found: Latent, code: Tensor) -> float:
    """The mean distance of the decoded codes from the nearest image that was learned from."""
    return torch.cdist(found.coder.decode(code), found.learned).amin(1).mean().item()


def distances(found: Latent) -> dict[str, float]:
    """The distances from the data of held-out images, of samples, and of two kinds of middles.

    Held-out images make pairs. "reference" is the image of the middle of a pair's reference points,
    "codes" that of the middle of its codes.
    """
    flow, pairs = found.flow, found.held_out.reshape(2, -1, found.coding.d)
    ends = flow(found.held_out).reshape(pairs.shape)
    codes = {
        "reference": flow.inverse(ends.mean(0)),
        "codes": pairs.mean(0),
        "samples": flow.sample(250, seeded(found.seed, 0)),
        "held out": found.held_out,
    }
    return {name: from_data(found, code) for name, code in codes.items()}


def told_apart(store: Store, found: Latent) -> dict[str, float]:
    """The percentage of codes that a classifier tells from samples, of OT-Flow and a Gaussian."""
    key = {"latent": asdict(found.coding), "flowing": asdict(found.flowing)}
    key |= {"seed": found.seed, "folds": 5}
    return store.measure("told-apart", key, partial(_told_apart, found)).numbers


def _told_apart(found: Latent) -> dict[str, float]:
    n, seed, flow = len(found.shown), found.seed, found.flow
    chance = torch.randn(n, found.coding.d, generator=seeded(seed, 1))
    fakes = {
        "OT-Flow": flow.sample(n, seeded(seed, 1)),
        "a Gaussian": flow.data.inverse(chance),
    }
    return {k: 100 * metrics.c2st(found.held_out, v, seed=seed) for k, v in fakes.items()}


def strip(found: Latent, columns: int = 10) -> Tensor:
    """One gray image of five rows of digits, with ink 1 and paper 0.

    They are held-out images, what the autoencoder keeps of them, samples, and two ways from the
    first held-out image to the first of the second half: on a line between reference points, and
    on one between codes.
    """
    share = torch.linspace(0, 1, columns)[:, None]
    pairs = found.held_out.reshape(2, -1, found.coding.d)
    a, b = pairs[:, 0]
    p, q = found.flow(found.held_out).reshape(pairs.shape)[:, 0]
    decode, flow = found.coder.decode, found.flow
    rows = [
        found.shown[:columns],
        decode(found.held_out[:columns]),
        decode(flow.sample(columns, seeded(found.seed, 0))),
        decode(flow.inverse((1 - share) * p + share * q)),
        decode((1 - share) * a + share * b),
    ]
    digits = torch.stack(rows).reshape(5, columns, 28, 28)
    return digits.transpose(1, 2).reshape(5 * 28, columns * 28)

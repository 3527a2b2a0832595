"""ResNets on three data sets in the plane, and the price of having two features only."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.func import jacrev, vmap

from ctdl_lib import metrics
from ctdl_lib.dynamics import integrate
from ctdl_lib.learning import Step, cosine, minibatches, train
from ctdl_lib.networks import resnets
from ctdl_lib.problems.classification import Classification, Samples, ellipses, peaks, swiss_roll
from machinery.store import Store

SEEDS = (10, 11, 12, 13, 14)  # settings were chosen on seeds 0 to 4
FRESH = 99_000  # added to a seed: new points of the ellipses, to judge their networks
INJECTIVE = 0.95  # the largest h‖K‖ of a layer that is kept injective
FINER = 4  # Runge–Kutta steps a layer of the exact flow


@dataclass(frozen=True)
class Settings:
    """The settings of one network, and how it is trained by Adam.

    `smooth` and `decay` weigh the change of θ(t) and the sum of all squared weights. With
    `injective`, every Kₖ is scaled down until h‖Kₖ‖ ≤ 0.95, so that no layer folds the features.
    """

    data: str
    width: int
    layers: int
    horizon: float
    smooth: float
    steps: int
    scale: float = 0.1
    decay: float = 1e-5
    lr: float = 0.05
    injective: bool = False


RECIPES = {
    "ellipses": Settings("ellipses", 3, 20, 2.0, 1e-3, 500),
    "swiss roll": Settings("swiss roll", 6, 32, 5.0, 1e-4, 1500, scale=0.3),
    "peaks": Settings("peaks", 8, 16, 5.0, 1e-4, 500),
}
NARROW = Settings("ellipses", 2, 20, 2.0, 1e-3, 500)
LONGER = Settings("ellipses", 2, 160, 10.0, 1e-3, 1500, injective=True)
WIDER = replace(LONGER, width=3)
PRINTED = {decay: replace(RECIPES["ellipses"], smooth=0.0, decay=decay) for decay in (1e-5, 1e-3)}


def data_of(name: str, seed: int) -> Classification:
    """The data set `name`, drawn by `seed`.

    Raises:
        KeyError: there is no such data set.
    """
    draw = {"ellipses": ellipses, "swiss roll": swiss_roll, "peaks": peaks}
    return draw[name](seed)


class Injective(nn.Module):
    """A ResNet whose layers u ↦ u + h tanh(Ku + b) are injective, because h‖K‖ < 1."""

    def __init__(self, net: resnets.ResNet):
        super().__init__()
        self.net = net

    @property
    def K(self) -> Tensor:  # noqa: N802
        """The matrices of all layers, scaled down where h‖K‖ exceeds 0.95."""
        size = self.net.h * torch.linalg.matrix_norm(self.net.K, ord=2)
        return self.net.K * (INJECTIVE / size.clamp(min=INJECTIVE))[:, None, None]

    def forward(self, y: Tensor) -> Tensor:
        """The logits."""
        u = resnets.propagate(y @ self.net.K_in.T, self.K, self.net.b, self.net.h)
        return u @ self.net.K_out.T + self.net.b_out

    def scaled(self) -> resnets.ResNet:
        """The ResNet with the scaled matrices as its own."""
        with torch.no_grad():
            self.net.K.copy_(self.K)
        return self.net


def network(key: Settings, seed: int) -> resnets.ResNet:
    """The network before its training."""
    classes = data_of(key.data, seed).classes
    return resnets.ResNet(
        2,
        1 if classes == 2 else classes,
        width=key.width,
        layers=key.layers,
        horizon=key.horizon,
        scale=key.scale,
        generator=torch.Generator().manual_seed(seed),
    )


def objective(key: Settings, model: nn.Module, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """The cross-entropy, the weight decay, and the smoothness of θ(t)."""
    y, label = batch
    net = model.net if isinstance(model, Injective) else model
    assert isinstance(net, resnets.ResNet)
    change = resnets.time_smoothness(net.K, net.h) + resnets.time_smoothness(net.b, net.h)
    return {
        "cross-entropy": metrics.cross_entropy(model(y), label),
        "decay": key.decay * resnets.tikhonov(*net.parameters()),
        "smoothness": key.smooth * change,
    }


def fit(store: Store, name: str, key: Settings, seed: int, device: str = "cpu") -> resnets.ResNet:
    """The network `name` of one seed: loaded, trained or tried out, as the store's `run` says."""
    data = data_of(key.data, seed)
    net = network(key, seed).to(device)
    model = Injective(net) if key.injective else net

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        y, label = data.train.to(device)
        batches = minibatches(y, label, size=len(y), seed=seed)
        schedule = cosine(key.lr, key.steps)
        return train(
            model, partial(objective, key), batches, steps=steps, lr=schedule, checkpoint=file
        )

    store.fit(f"{name}-{seed}", model, asdict(key) | {"seed": seed}, training, device=device)
    net = model.scaled() if isinstance(model, Injective) else net
    return net.cpu().requires_grad_(False)


@torch.no_grad()
def accuracy(net: resnets.ResNet, samples: Samples) -> float:
    """The share of right labels in percent."""
    return metrics.accuracy(net(samples.y), samples.label)


def linear_accuracy(name: str, seed: int) -> float:
    """The control: the accuracy of a logistic regression."""
    data = data_of(name, seed)
    model = LogisticRegression().fit(data.train.y.numpy(), data.train.label.numpy())
    return 100 * float(model.score(data.val.y.numpy(), data.val.label.numpy()))


def fresh(seed: int, points: int = 20_000) -> Samples:
    """New points of the ellipses, `points` a class."""
    return ellipses(FRESH + seed, train=points, val=1).train


@dataclass(frozen=True)
class Price:
    """What a network for the ellipses does, and what it takes.

    The accuracies are in percent, on fresh points: of the network, of the exact flow of the same
    weights, and of the network where noise of standard deviation 0.05 is added to the points.
    `stretch` is the largest singular value of ∂u_N/∂y among them, `motion` is ∫‖K(t)‖ dt, and
    `steepest` is the largest h‖K‖.
    """

    accuracy: float
    flow: float
    noisy: float
    stretch: float
    motion: float
    steepest: float


@torch.no_grad()
def price(net: resnets.ResNet, seed: int, points: int = 20_000) -> Price:
    """The price of separating the ellipses with the trained `net`."""
    y, label = fresh(seed, points)
    noise = 0.05 * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    few = y[torch.arange(0, len(y), max(1, len(y) // 2000))]
    jacobians = vmap(jacrev(lambda y: net.path(y[None])[-1, 0]))(few)
    norms = torch.linalg.matrix_norm(net.K, ord=2)
    flow = integrate(
        net.velocity, y @ net.K_in.T, 0.0, net.horizon, steps=FINER * net.layers, method="rk4"
    )
    return Price(
        metrics.accuracy(net(y), label),
        metrics.accuracy(flow @ net.K_out.T + net.b_out, label),
        metrics.accuracy(net(y + noise), label),
        torch.linalg.matrix_norm(jacobians, ord=2).max().item(),
        (net.h * norms.sum()).item(),
        (net.h * norms.max()).item(),
    )

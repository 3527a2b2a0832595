"""How a change of the features grows: eigenvalues, energies, and a search for the worst."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ctdl_lib.dynamics import integrate
from ctdl_lib.networks.architectures import architectures
from ctdl_lib.networks.resnets import ResNet
from machinery.store import Store

MATRICES = {
    "K₊": torch.tensor([[2.0, -2.0], [0.0, 2.0]], dtype=torch.float64),
    "K₋": torch.tensor([[-2.0, 0.0], [2.0, -2.0]], dtype=torch.float64),
    "K₀": torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64),
}
STEP = 0.1
ROTATION = MATRICES["K₀"]
HALF_RATE = math.exp(5.0)  # eᵀᐟ² for the final time T = 10 of the search


def path(K: Tensor, layers: int, u: Tensor, h: float = STEP) -> Tensor:
    """The features of all layers uₖ₊₁ = uₖ + h tanh(K uₖ), stacked."""
    features = [u]
    for _ in range(layers):
        features.append(features[-1] + h * torch.tanh(features[-1] @ K.T))
    return torch.stack(features)


def growth_at_rest(K: Tensor, layers: int, h: float = STEP) -> float:
    """The growth ‖(I + hK)ᴺ‖ of a change of the features u = 0, where tanh′ = 1."""
    one = torch.eye(len(K), dtype=K.dtype)
    return torch.linalg.matrix_norm(torch.linalg.matrix_power(one + h * K, layers), ord=2).item()


# --- eigenvalues do not decide ------------------------------------------------------------------


class Layers(NamedTuple):
    """The biases (layers, 2) and the slopes σ′ (layers, 2) of layers with the matrix K₀."""

    biases: Tensor
    slopes: Tensor
    h: float


def swinging(
    cycles: int,
    *,
    slope: float = 0.5,
    phase: float = 1.0,
    per_phase: int = 200,
    slow: bool = False,
) -> Layers:
    """Layers uₖ₊₁ = uₖ + h tanh(K₀uₖ + bₖ), whose biases let a change of u₀ = 0 grow.

    In each phase one of the two units is saturated until its slope is `slope`, so a change moves on
    an ellipse with the axes 1 and 1/√slope. The units take turns after `phase` quarters of the
    ellipse. If that is one, a change grows by 1/slope in two phases, and a cycle has four. With
    `slow`, the same unit stays saturated, and nothing grows beyond 1/√slope, up to the error of
    Euler's method.
    """
    h = phase * math.pi / (2 * math.sqrt(slope)) / per_phase
    saturated = math.acosh(slope**-0.5)  # tanh′ = 1/cosh² is the slope there
    u, rows, inputs = torch.zeros(2, dtype=torch.float64), [], []
    for k in range(4 * cycles * per_phase):
        unit = 0 if slow else (k // per_phase) % 2
        sign = 1.0 if k % per_phase < per_phase // 2 else -1.0  # there and back again
        z = torch.zeros(2, dtype=torch.float64)
        z[unit] = sign * saturated
        rows.append(z - ROTATION @ u)
        inputs.append(z)
        u = u + h * torch.tanh(z)
    return Layers(torch.stack(rows), torch.cosh(torch.stack(inputs)) ** -2, h)


def modulated(turns: float, period: float, *, per_turn: int = 600) -> Layers:
    """Layers with the matrix K₀, whose two slopes vary smoothly and oppositely between ½ and 1.

    A turn is the time 2π that K₀ takes for one. The slopes have a `period` in turns, so J(t) varies
    slowly if it is long. The inputs change sign in every layer, so that u₀ = 0 hardly moves.
    """
    h, u = 2 * math.pi / per_turn, torch.zeros(2, dtype=torch.float64)
    rows, slopes = [], []
    for k in range(round(turns * per_turn)):
        wave = math.cos(2 * math.pi * k / per_turn / period) / 4
        slope = torch.tensor([0.75 - wave, 0.75 + wave], dtype=torch.float64)
        z = (-1.0) ** k * torch.acosh(slope**-0.5)
        rows.append(z - ROTATION @ u)
        slopes.append(slope)
        u = u + h * torch.tanh(z)
    return Layers(torch.stack(rows), torch.stack(slopes), h)


def growths(layers: Layers) -> Tensor:
    """The growth ‖∂uₖ/∂u₀‖ of a change after each layer, for u₀ = 0."""
    jacobian = torch.eye(2, dtype=torch.float64)
    norms = [1.0]
    for slope in layers.slopes:
        jacobian = jacobian + layers.h * (slope[:, None] * ROTATION) @ jacobian
        norms.append(torch.linalg.matrix_norm(jacobian, ord=2).item())
    return torch.tensor(norms, dtype=torch.float64)


# --- a search for the worst weights -------------------------------------------------------------

SEARCHED = ("resnet", "antisymmetric", "hamiltonian", "two-layer hamiltonian", "parabolic")


class Bounded(nn.Module):
    """The matrices K, scaled down until the velocity has a Lipschitz constant of at most 1.

    The constant is ‖K‖, ‖K − Kᵀ‖ for antisymmetric layers, and ‖K‖² where the velocity is Kᵀσ(Ku).
    """

    def __init__(self, kind: str):
        super().__init__()
        self.antisymmetric = kind == "antisymmetric"

    def forward(self, K: Tensor) -> Tensor:
        """The scaled matrices."""
        A = K - K.mT if self.antisymmetric else K
        return K / torch.linalg.matrix_norm(A, ord=2).clamp(min=1.0)[..., None, None]


def worst_growth(
    kind: str, seed: int, *, steps: int = 400, layers: int = 100, horizon: float = 10.0
) -> float:
    """The largest ‖u_N − ũ_N‖/‖u₀ − ũ₀‖ that a search over all weights and both points finds.

    Every layer has weights of its own, and a velocity with a Lipschitz constant of at most 1, so
    the growth is at most (1 + T/N)ᴺ. Adam climbs from random weights and points, and once more from
    layers that are alike, without biases and near u = 0, where no unit is saturated. The largest
    growth on the way counts.
    """
    generator = torch.Generator().manual_seed(seed)
    return max(
        _climbed(kind, generator, steps, layers, horizon, at_rest) for at_rest in (False, True)
    )


def _climbed(
    kind: str, generator: torch.Generator, steps: int, layers: int, horizon: float, at_rest: bool
) -> float:
    """The largest growth that Adam sees from one start."""
    shape = {"width": 4, "layers": layers, "horizon": horizon, "scale": 1.0}
    net = ResNet(4, 1, **shape, architecture=architectures()[kind], generator=generator).double()
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    if not at_rest:
        net.K.data, net.b.data = draw(net.K.shape), draw(net.b.shape)
    points = nn.Parameter((1e-3 if at_rest else 1.0) * draw(2, 4))
    free = [{"params": [net.K, net.b]}, {"params": [points], "lr": 1e-5 if at_rest else 0.05}]
    parametrize.register_parametrization(net, "K", Bounded(kind))
    optimizer = torch.optim.Adam(free, lr=0.02 if at_rest else 0.05)
    most = 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        end = net.features(points)
        ratio = (end[0] - end[1]).norm() / (points[0] - points[1]).norm()
        most = max(most, ratio.item())
        (-ratio.log()).backward()
        optimizer.step()
    return most


def worst(store: Store, seeds: Sequence[int]) -> dict[str, list[float]]:
    """The largest growths found for each kind of layer, one a seed."""
    steps = 2 if store.run == "smoke" else 400

    def compute() -> dict[str, list[float]]:
        return {kind: [worst_growth(kind, s, steps=steps) for s in seeds] for kind in SEARCHED}

    settings = {"kinds": list(SEARCHED), "seeds": list(seeds), "steps": 400, "starts": 2}
    return store.measure("worst", settings, compute).numbers


# --- energies -----------------------------------------------------------------------------------

EVALUATIONS, LONG = 800, 200.0
METHODS = {"euler": 1, "rk4": 4, "verlet": 1}  # evaluations of the velocity a step


def energies(method: str, start: Tensor) -> Tensor:
    """The energy log cosh y + log cosh z of (y, z) along ẏ = −tanh z, ż = tanh y, until T = 200.

    Every method has 800 evaluations of the velocity. `start` is (y, z); 201 times are returned.
    """
    steps = EVALUATIONS // METHODS[method]
    times = torch.linspace(0, LONG, 201, dtype=torch.float64)
    y, z = integrate(
        lambda t, s: (-torch.tanh(s[1]), torch.tanh(s[0])),
        (start[:1], start[1:]),
        0.0,
        LONG,
        steps=steps,
        method=method,
        save_at=times,
    )
    return (torch.log(torch.cosh(y)) + torch.log(torch.cosh(z)))[:, 0]


def energy_error(method: str, seed: int) -> float:
    """The largest relative error of the energy in the last tenth of the time.

    The start is a random point of the unit circle.
    """
    angle = 2 * math.pi * torch.rand((), generator=torch.Generator().manual_seed(seed)).double()
    found = energies(method, torch.stack([angle.cos(), angle.sin()]))
    return (found[-20:] / found[0] - 1).abs().max().item()

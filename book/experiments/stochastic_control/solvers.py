"""Three neural solvers for dx = 2u dt + σ dW with L = ‖u‖², on paths in the same form.

For this problem u = −∇Φ, and Itô's formula reads dΦ = ‖∇Φ‖² dt + ∇Φᵀdx on *any* path. So each
solver has a value and a gradient at all nodes of any path, those that it is trained on or others.
"""

import math
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vjp

from ctdl_lib.control import feedback, objective
from ctdl_lib.control.problem import Policy
from ctdl_lib.potentials import AutodiffPotential, Potential, ResNetPotential
from ctdl_lib.potentials.potential import Time
from machinery.seeds import seeded

from .radial import LogarithmicTarget

STEPS = 20  # of all paths
WEIGHTS: dict[str, Any] = {"cost": 1.0, "hjb": 1.0, "terminal": 1.0, "terminal_gradient": 1.0}

Nodes = Float[Tensor, "nodes batch d"]


class Along(NamedTuple):
    """The values Φ at the nodes of some paths, and ∇Φ at those before the last, at least."""

    value: Float[Tensor, "nodes batch"]
    slope: Float[Tensor, "times batch d"]


def noise_of(count: int, seed: int, d: int = 100, steps: int = STEPS) -> Tensor:
    """The increments ΔW of some paths, (steps, count, d)."""
    return torch.randn(steps, count, d, generator=seeded(seed)) / math.sqrt(steps)


def idle(t: Time, x: Tensor) -> Tensor:
    """The control 0."""
    return torch.zeros_like(x)


def walk(problem: LogarithmicTarget, x: Tensor, dW: Tensor) -> Nodes:
    """The nodes of paths without control."""
    return torch.cat([x[None], x + problem.diffusion * dW.cumsum(0)])


def along(phi: Potential, nodes: Nodes) -> Along:
    """A potential at all nodes of some paths, in one batch."""
    t = torch.linspace(0, 1, len(nodes)).to(nodes).repeat_interleave(nodes.shape[1])
    g = phi.gradient(t, nodes.flatten(0, 1))
    return Along(g.value.view(nodes.shape[:2]), g.dx.view(nodes.shape))


class DeepBSDE(nn.Module):
    """The number Φ(0, x₀) and one network a time step for σ∇Φ, trained on paths without control.

    The loss is the mean square of the terminal defect. With `centred`, ∇Φ starts from the slope
    x − x* of ½‖x − x*‖². The learned value is in units of `height`, and what is learned of σ∇Φ in
    units of `gain`.

    Reference: han2018solving.
    """

    def __init__(
        self,
        seed: int,
        problem: LogarithmicTarget,
        *,
        steps: int = STEPS,
        height: float = 1.0,
        gain: float | None = None,
        centred: bool = False,
    ):
        super().__init__()
        torch.manual_seed(seed)
        d = len(problem.target)
        self.problem, self.steps, self.height = problem, steps, height
        self.gain, self.centred = 1 / d if gain is None else gain, centred
        self.number = nn.Parameter(torch.rand(()))
        self.first = nn.Parameter(0.2 * torch.rand(d) - 0.1)
        self.nets = nn.ModuleList(self._network(d, d + 10) for _ in range(steps - 1))
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm1d):  # as its authors start them
                nn.init.uniform_(layer.weight, 0.1, 0.5)
                nn.init.normal_(layer.bias, 0.0, 0.1)

    @staticmethod
    def _network(d: int, width: int) -> nn.Sequential:
        norm = partial(nn.BatchNorm1d, eps=1e-6, momentum=0.01)
        sizes, layers = (d, width, width, d), [norm(d)]
        for n, m in pairwise(sizes):
            layers += [nn.Linear(n, m, bias=False), norm(m), nn.ReLU()]
        return nn.Sequential(*layers[:-1])  # no ReLU at the end

    def _slope(self, k: int, x: Tensor) -> Tensor:
        """The gradient ∇Φ at the k-th time."""
        z = self.first.expand_as(x) if k == 0 else self.gain * self.nets[k - 1](x)
        known = x - self.problem.target.to(x) if self.centred else 0.0
        return known + z / self.problem.diffusion

    def along(self, nodes: Nodes) -> Along:
        """The values and gradients on some paths: Φ is summed up by Itô's formula."""
        value = [(self.height * self.number).expand(nodes.shape[1])]
        slopes, h = [], 1 / self.steps
        for k, (x, ahead) in enumerate(pairwise(nodes)):
            p = self._slope(k, x)
            value.append(value[-1] + h * p.square().sum(1) + (p * (ahead - x)).sum(1))
            slopes.append(p)
        return Along(torch.stack(value), torch.stack(slopes))

    def loss(self, x: Tensor, dW: Tensor) -> Tensor:
        """The mean square of Φ − G at the end."""
        nodes = walk(self.problem, x, dW)
        return (self.along(nodes).value[-1] - self.problem.terminal_cost(nodes[-1])).square().mean()

    def policy(self, t: Time, x: Tensor) -> Tensor:
        """The feedback −∇Φ of the step that begins at t."""
        return -self._slope(round(float(t) * self.steps), x)


class Sine(nn.Module):
    """Four layers of 256 sines of (t, x)."""

    def __init__(self, seed: int, d: int, width: int = 256):
        super().__init__()
        torch.manual_seed(seed)
        sizes = (d + 1, width, width, width, width, 1)
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The values N(t, x), (batch, 1)."""
        u = torch.cat([t[:, None], x], 1)
        for layer in self.layers[:-1]:
            u = layer(u).sin()
        return self.layers[-1](u)


class Centred(nn.Module):
    """The function ½‖x − x*‖² + height · N(t, x − x*)."""

    target: Tensor

    def __init__(self, net: nn.Module, target: Tensor, height: float):
        super().__init__()
        self.net, self.height = net, height
        self.register_buffer("target", target.to(torch.get_default_dtype()), persistent=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The values, (batch, 1)."""
        z = x - self.target
        return 0.5 * z.square().sum(1, keepdim=True) + self.height * self.net(t, z)


class FBSNN(nn.Module):
    """One network for Φ, trained on paths without control by the defects of all steps.

    With a `height` the network starts from ½‖x − x*‖², and its output is in units of the height.

    Reference: raissi2018forward.
    """

    def __init__(self, seed: int, problem: LogarithmicTarget, *, height: float | None = None):
        super().__init__()
        self.problem, net = problem, Sine(seed, len(problem.target))
        whole = net if height is None else Centred(net, problem.target, height)
        self.phi: Potential = AutodiffPotential(whole)

    def along(self, nodes: Nodes) -> Along:
        """The values and gradients on some paths."""
        return along(self.phi, nodes)

    def loss(self, x: Tensor, dW: Tensor) -> Tensor:
        """The sum of the squared defects of Itô's formula, and of Φ and ∇Φ at the end."""
        nodes = walk(self.problem, x, dW)
        value, p = self.along(nodes)
        cost, pullback, *_ = vjp(self.problem.terminal_cost, nodes[-1])
        spent = p[:-1].square().sum(2) / len(dW)
        defect = value.diff(dim=0) - spent - (p[:-1] * nodes.diff(dim=0)).sum(2)
        slope = pullback(torch.ones_like(cost))[0]
        end = (value[-1] - cost).square() + (p[-1] - slope).square().sum(1)
        return (defect.square().sum(0) + end).mean()

    @property
    def policy(self) -> Policy:
        """The feedback −∇Φ."""
        return feedback(self.problem, self.phi)


class Ours(nn.Module):
    """One closed-form potential for Φ, trained on paths of its own feedback with their cost.

    Its quadratic part starts as ½‖0.05 x‖², for a `rank` of d + 1.

    Reference: li2024neural.
    """

    def __init__(self, seed: int, problem: LogarithmicTarget, *, rank: int | None = None):
        super().__init__()
        self.problem, d = problem, len(problem.target)
        rank = d + 1 if rank is None else rank
        phi = ResNetPotential(d, width=64, rank=rank, generator=seeded(seed))
        with torch.no_grad():
            phi.w.zero_()
            phi.A.copy_(0.05 * torch.eye(rank, d + 1))
        self.phi = phi

    def along(self, nodes: Nodes) -> Along:
        """The values and gradients on some paths."""
        return along(self.phi, nodes)

    def loss(self, x: Tensor, dW: Tensor) -> dict[str, Tensor]:
        """The cost of the feedback and the penalties, on its own paths."""
        return objective(self.problem, self.phi, x, steps=len(dW), dW=dW, **WEIGHTS)

    @property
    def policy(self) -> Policy:
        """The feedback −∇Φ."""
        return feedback(self.problem, self.phi)


Solver = DeepBSDE | FBSNN | Ours

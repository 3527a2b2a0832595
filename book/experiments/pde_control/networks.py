"""What a policy sees of a basin, the networks that read it, and the policies they make."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctdl_lib.control import feedback
from ctdl_lib.potentials import AutodiffPotential
from ctdl_lib.potentials.potential import Time

from .mitigation import SourceMitigation

Policy = Callable[[Time, Tensor], Tensor]

NODES = 17  # per axis, of what a network sees
WIDEST = 3.0  # the opening for the action 1 of an agent
SCALES = (1.0, 1.0, 1.0, 0.06, 0.06, 1.0)  # of u, v₁, v₂, f, g, t


def picture(t: Time, x: Tensor, images: Tensor) -> Tensor:
    """What a network sees, (rows, 6, 17, 17): u, v, f, g and t. A finer mesh is thinned."""
    rows, n = len(x), images.shape[-1]
    clock = torch.as_tensor(t).to(x).expand(rows).view(-1, 1, 1, 1).expand(-1, 1, n, n)
    fields = images.to(x).repeat(rows // len(images), 1, 1, 1)
    seen = torch.cat([x.view(-1, 1, n, n), fields, clock], 1)
    scale = torch.tensor(SCALES).to(x).view(6, 1, 1)
    return (scale * seen)[..., :: (n - 1) // (NODES - 1), :: (n - 1) // (NODES - 1)]


class Encoder(nn.Sequential):
    """Three convolutions with stride 2, and a layer to 64 features."""

    def __init__(self, channels: int = 6):
        layers: list[nn.Module] = []
        for n, m in ((channels, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(n, m, 3, stride=2, padding=1), nn.SiLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(288, 64), nn.SiLU())


class Net(nn.Module):
    """One number for each state, which `last` makes positive where it has to be."""

    def __init__(self, last: Callable[[Tensor], Tensor] = lambda z: z):
        super().__init__()
        self.encoder, self.head, self.last = Encoder(), nn.Linear(64, 1), last

    def forward(self, t: Time, x: Tensor, images: Tensor) -> Tensor:
        """The number (rows, 1)."""
        return self.last(self.head(self.encoder(picture(t, x, images))))


class Height(nn.Module):
    """The number V₀(t; y) = s² F(t, v, f/s, g), where s is the mean of the source f.

    The cost of a basin grows exactly with the square of its source, and so does V₀.
    """

    def __init__(self):
        super().__init__()
        self.encoder, self.head = Encoder(5), nn.Linear(64, 1)

    def forward(self, t: Time, images: Tensor, rows: int) -> Tensor:
        """The number (rows, 1)."""
        s = images[:, 2:3].mean((2, 3), keepdim=True)
        unit = torch.cat([images[:, :2], images[:, 2:3] / s, images[:, 3:]], 1)
        empty = images.new_zeros(rows, images.shape[-1] ** 2)
        seen = picture(t, empty, unit)[:, 1:]
        return s.view(-1, 1).repeat(rows // len(images), 1) ** 2 * self.head(self.encoder(seen))


class Split(nn.Module):
    """The number V₀(t; y) + φ(t, u; y) − φ(t, 0; y): its height at u = 0 has a network of its own.

    The slope in u, and with it the feedback, is that of φ alone.
    """

    def __init__(self):
        super().__init__()
        self.height, self.shape = Height(), Net()

    def forward(self, t: Time, x: Tensor, images: Tensor) -> Tensor:
        """The number (rows, 1)."""
        return self.height(t, images, len(x)) + self.above(t, x, images)

    def above(self, t: Time, x: Tensor, images: Tensor) -> Tensor:
        """The difference φ(t, u; y) − φ(t, 0; y), by one pass over both."""
        both = torch.cat([x, torch.zeros_like(x)])
        times = torch.as_tensor(t).to(x).expand(len(x)).repeat(2)
        full, empty = self.shape(times, both, images).chunk(2)
        return full - empty


def untrained(kind: str) -> Any:
    """The model of a learner that knows the solver, before its training."""
    if kind == "split":
        return AutodiffPotential(Split())
    if kind == "hjb":
        return AutodiffPotential(Net())
    return Net(functional.softplus)


def steering(kind: str, model: Any, problem: SourceMitigation) -> Policy:
    """The policy (t, x) ↦ a of a trained model on the basins of a problem."""
    images = problem.images.float()
    if kind == "split":  # the height has no slope in u
        return feedback(problem, AutodiffPotential(model.net.shape).given(images))
    if kind == "hjb":
        return feedback(problem, model.given(images))
    if kind == "policy":
        return lambda t, x: model(t, x, images)

    def act(t: Time, x: Tensor) -> Tensor:  # agents answer by actions between -1 and 1
        action = model._predict(picture(t, x, images), deterministic=True)
        return WIDEST * (action.clamp(-1, 1) + 1) / 2

    return act

"""Networks inside an implicit step, and what they find in data of stiff systems.

The idea is that of ricomartinez1992discrete, and for partial differential equations that of
gonzalezgarcia1998identification.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ctdl_lib.dynamics import integrate
from ctdl_lib.learning import cosine, minibatches, train
from ctdl_lib.learning.training import Step
from ctdl_lib.networks import MLP
from machinery.store import Store

Advance = Callable[[nn.Module, Tensor], Tensor]
NEWTON = 12
TRAPEZOID = "trapezoidal rule"


def jacobian(velocity: nn.Module, x: Tensor) -> Tensor:
    """The derivatives ∂v/∂x (batch, d, d), with a record of no graph."""
    weights = {name: p.detach() for name, p in velocity.named_parameters()}
    slope = lambda x: functional_call(velocity, weights, (x.new_zeros(()), x[None]))[0]  # noqa: E731
    return vmap(jacrev(slope))(x)


def implicit_step(
    velocity: nn.Module,
    x: Tensor,
    h: float,
    *,
    theta: float = 0.5,
    jacobian: Callable[[nn.Module, Tensor], Tensor] = jacobian,
    tol: float = 1e-8,
) -> Tensor:
    """The solution z of z = x + h ((1 − θ) v(x) + θ v(z)), which can be differentiated.

    θ = ½ is the trapezoidal rule, and θ = 1 implicit Euler. Newton's method finds z without a
    graph. One more step of it, z − M⁻¹g(z), is recorded, with M = I − hθ ∂v/∂z fixed. As g(z) = 0,
    its derivatives are those of the implicit function theorem, −M⁻¹∂g. The velocity must not depend
    on time, and states have the shape (batch, d).

    Raises:
        ArithmeticError: Newton's method has not met `tol` after twelve steps.
    """
    zero, eye = x.new_zeros(()), torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    with torch.no_grad():
        known, z = x + h * (1 - theta) * velocity(zero, x), x
        for _ in range(NEWTON):
            residual = z - known - h * theta * velocity(zero, z)
            if residual.abs().max() <= tol:
                break
            z = z - torch.linalg.solve(eye - h * theta * jacobian(velocity, z), residual)
        else:
            raise ArithmeticError(f"Newton's method has not met tol={tol:g}: take smaller steps")
        M = eye - h * theta * jacobian(velocity, z)
    g = z - x - h * ((1 - theta) * velocity(zero, x) + theta * velocity(zero, z))
    return z - torch.linalg.solve(M, g)


# --- an ODE with a fast and a slow part ---------------------------------------------------------

SEEDS = (10, 11, 12, 13, 14)
KAPPA = {"stiff": 100.0, "mild": 2.0}
INTERVAL, LONG = 0.1, 6.0
STEPS: dict[str, Advance] = {
    TRAPEZOID: lambda v, x: implicit_step(v, x, INTERVAL),
    "RK4": lambda v, x: integrate(v, x, 0.0, INTERVAL, steps=1),
    "RK4, eight steps": lambda v, x: integrate(v, x, 0.0, INTERVAL, steps=8),
}


@dataclass(frozen=True)
class Settings:
    """The data, `starts` solutions with `intervals` intervals of 0.1, and the training."""

    kappa: float
    rule: str
    steps: int = 3000
    lr: float = 0.01
    size: int = 64
    width: int = 32
    starts: int = 24
    intervals: int = 20
    noise: float = 0.002


def solution(kappa: float, x: Tensor, t: float) -> Tensor:
    """The state after the time t of (ȧ, ḃ, ċ) = (b, −a, −κ(c − ab)), in closed form.

    The eigenvalues are ±i and −κ: a turn, and a fast way to the slow c = ab. As ab turns with twice
    the frequency, c is the sum of a term that turns with it and of a multiple of e^{−κt}.
    """
    a, b, c = x.unbind(-1)
    cos, sin = math.cos(t), math.sin(t)
    forced = lambda a, b: (  # noqa: E731
        kappa * (kappa * a * b - (b * b - a * a)) / (kappa**2 + 4)
    )
    now = a * cos + b * sin, b * cos - a * sin
    return torch.stack([*now, forced(*now) + math.exp(-kappa * t) * (c - forced(a, b))], -1)


def points(count: int, seed: int) -> Tensor:
    """Random points of the cube [−1, 1]³."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 1


def pairs(key: Settings, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy states and the noisy states an interval later."""
    x = points(key.starts, seed)
    path = torch.stack([solution(key.kappa, x, INTERVAL * k) for k in range(key.intervals + 1)])
    generator = torch.Generator().manual_seed(seed + 1000)
    path = path + key.noise * torch.randn(path.shape, generator=generator, dtype=path.dtype)
    return path[:-1].flatten(0, 1), path[1:].flatten(0, 1)


def _short(rule: str) -> str:
    return rule.replace(", ", "-").replace(" ", "-")


def fit(store: Store, key: Settings, seed: int) -> nn.Module:
    """The velocity that one step an interval finds, or eight: loaded, trained or tried out."""
    generator = torch.Generator().manual_seed(seed)
    velocity = MLP(3, width=key.width, time=False, generator=generator).double()
    batches, advance = minibatches(*pairs(key, seed), size=key.size, seed=seed), STEPS[key.rule]

    def loss(velocity: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (advance(velocity, batch[0]) - batch[1]).square().mean()

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        schedule = cosine(key.lr, key.steps)
        return train(velocity, loss, batches, steps=steps, lr=schedule, checkpoint=file)

    name = f"{'stiff' if key.kappa > 10 else 'mild'}-{_short(key.rule)}-{seed}"
    store.fit(name, velocity, asdict(key) | {"seed": seed}, training)
    return velocity


@torch.no_grad()
def prediction_error(velocity: nn.Module, kappa: float, seed: int, horizon: float = LONG) -> float:
    """The mean distance of solutions of the found equation from the true ones until t = 6.

    They start at eight fresh points. The found equation is solved by implicit steps of 0.01, so
    this judges the equation and not the rule that has found it.
    """
    x = points(8, seed + 5000)
    z, errors = x, []
    for k in range(round(horizon / INTERVAL)):
        for _ in range(10):
            z = implicit_step(velocity, z, INTERVAL / 10)
        errors.append((z - solution(kappa, x, INTERVAL * (k + 1))).norm(dim=1).mean())
    return torch.stack(errors).mean().item()


def prediction_errors(store: Store, name: str, rule: str, seeds: Sequence[int]) -> list[float]:
    """The prediction errors of all seeds, measured once."""
    key = Settings(KAPPA[name], rule)
    nets, long = [fit(store, key, s) for s in seeds], 0.2 if store.run == "smoke" else LONG

    def compute() -> dict[str, list[float]]:
        found = zip(nets, seeds, strict=True)
        return {"errors": [prediction_error(net, key.kappa, s, long) for net, s in found]}

    settings = asdict(key) | {"seeds": list(seeds)}
    return store.measure(f"prediction-{name}-{_short(rule)}", settings, compute).numbers["errors"]


def still(kappa: float, seed: int) -> float:
    """The same distance for the prediction that nothing moves."""
    x = points(8, seed + 5000)
    times = [INTERVAL * (k + 1) for k in range(round(LONG / INTERVAL))]
    errors = [(x - solution(kappa, x, t)).norm(dim=1).mean() for t in times]
    return torch.stack(errors).mean().item()

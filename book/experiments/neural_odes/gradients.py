"""Gradients of one loss in three ways, and where one of them fails."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctdl_lib.dynamics import IntegrationError, integrate
from machinery import instruments
from machinery.store import Store

from . import spiral
from .problems import observe, spiral_velocity

How = dict[str, Any]
TIMES = torch.linspace(0.05, spiral.OBSERVED, 30, dtype=torch.float64)
EXACT: How = {"steps": 2000}
TRIAL: How = {"steps": 60}
WAYS: dict[str, How] = {
    "through, 30 steps": {"steps": 30},
    "recompute, 30 steps": {"steps": 30, "backprop": "recompute"},
    "through, tol 1e-2": {"tol": 1e-2},
    "adjoint, tol 1e-7": {"tol": 1e-7, "backprop": "adjoint"},
    "adjoint, tol 1e-2": {"tol": 1e-2, "backprop": "adjoint"},
}
OWN = ("recompute, 30 steps", "through, tol 1e-2", "adjoint, tol 1e-2")


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries as one vector."""
    return torch.cat([x.flatten() for x in tensors])


def off(found: Tensor, exact: Tensor) -> float:
    """The relative error ‖found − exact‖/‖exact‖."""
    return ((found - exact).norm() / exact.norm()).item()


@cache
def spiral_target() -> Tensor:
    """The true spirals at thirty regular times, in double precision."""
    return observe(spiral_velocity, spiral.starts(torch.float64), TIMES).x


def spiral_loss(velocity: nn.Module, how: How) -> Tensor:
    """The mean squared error at thirty regular times, in double precision."""
    x = spiral.starts(torch.float64)
    path = integrate(velocity, x, 0.0, spiral.OBSERVED, save_at=TIMES, **how)
    return (path - spiral_target()).square().mean()


def spiral_gradient(velocity: nn.Module, how: How) -> Tensor:
    """The gradient of that loss by the weights."""
    loss = spiral_loss(velocity, how)
    return flat(torch.autograd.grad(loss, tuple(velocity.parameters())))


def own_gradient(
    velocity: nn.Module, how: How, h: float = 1e-5, count: int | None = None
) -> Tensor:
    """The gradient of the computed loss by its weights, or by the first `count` of them.

    It is computed by central differences. With adaptive steps it contains how the step sizes depend
    on the weights, which no other gradient here does.
    """
    start = nn.utils.parameters_to_vector(velocity.parameters()).detach()
    quotients = []
    with torch.no_grad():
        for unit in (h * torch.eye(len(start), dtype=start.dtype))[:count]:
            ends = []
            for theta in (start + unit, start - unit):
                nn.utils.vector_to_parameters(theta, velocity.parameters())
                ends.append(spiral_loss(velocity, how))
            quotients.append((ends[0] - ends[1]) / (2 * h))
    nn.utils.vector_to_parameters(start, velocity.parameters())
    return torch.stack(quotients)


def own_miss(velocity: nn.Module, how: How, count: int | None = None) -> float:
    """The error of a gradient against that of the loss that was computed.

    It is zero, up to round-off, for fixed steps that are differentiated.
    """
    computed = {key: value for key, value in how.items() if key != "backprop"}
    found = spiral_gradient(velocity, how)
    return off(found[:count], own_gradient(velocity, computed, count=count))


@dataclass(frozen=True)
class Misses:
    """The errors of gradients by way, one a seed.

    `ode` is against the gradient of the ODE, `own` against that of the computed loss, for the ways
    in OWN.
    """

    ode: dict[str, list[float]]
    own: dict[str, list[float]]


def all_misses(store: Store, nets: Sequence[nn.Module], seeds: Sequence[int]) -> Misses:
    """The errors of all ways and seeds, measured once."""
    count, fine = (3, TRIAL) if store.run == "smoke" else (None, EXACT)

    def compute() -> dict[str, Any]:
        exact = [spiral_gradient(net, fine) for net in nets]
        pairs = list(zip(nets, exact, strict=True))
        return {
            "ode": {
                name: [off(spiral_gradient(net, how), truth) for net, truth in pairs]
                for name, how in WAYS.items()
            },
            "own": {name: [own_miss(net, WAYS[name], count) for net in nets] for name in OWN},
        }

    settings = asdict(spiral.Settings()) | {"seeds": list(seeds), "ways": list(WAYS)}
    return Misses(**store.measure("misses", settings | {"own": list(OWN)}, compute).numbers)


# --- going back in time -------------------------------------------------------------------------

RATES = (0, 2, 4, 6, 8, 10)
CONTRACTING: dict[str, How] = {
    "through, tol 1e-4": {"tol": 1e-4},
    "adjoint, tol 1e-4": {"tol": 1e-4, "backprop": "adjoint"},
    "√N snapshots, 50 steps": {"steps": 50, "backprop": "recompute", "snapshots": 7},
}


class Contracting(nn.Module):
    """The velocity tanh(Wx) − cDx for x ∈ ℝ⁸, where D selects four of the eight components.

    `x` has sixteen random starts.
    """

    def __init__(self, c: float, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator)
        self.W = nn.Parameter(draw(8, 8).double() / 8**0.5)
        self.c = c * (torch.arange(8) < 4).double()
        self.x = draw(16, 8).double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The velocity at x."""
        return torch.tanh(x @ self.W.T) - self.c * x


def contracting_error(c: float, seed: int, how: How) -> float:
    """The error of the gradient of E‖x(3)‖² by W against that of 400 steps."""
    f = Contracting(c, seed)

    def gradient(how: How) -> Tensor:
        value = integrate(f, f.x, 0.0, 3.0, **how).square().mean()
        return torch.autograd.grad(value, f.W)[0]

    return off(gradient(how), gradient({"steps": 400}))


def round_trip(velocity: Callable, x: Tensor, T: float, tol: float) -> float:
    """The relative error of x(0) after the way to T and back, and infinity where none is found."""
    with torch.no_grad():
        try:
            there = integrate(velocity, x, 0.0, T, tol=tol)
            return off(integrate(velocity, there, T, 0.0, tol=tol), x)
        except IntegrationError:
            return math.inf


def contraction(store: Store, seeds: Sequence[int]) -> dict[str, dict[int, list[float]]]:
    """The errors of gradients by way and rate of contraction, one a seed, measured once."""
    rates = RATES[::5] if store.run == "smoke" else RATES

    def compute() -> dict[str, dict[str, list[float]]]:
        return {
            name: {str(c): [contracting_error(c, s, how) for s in seeds] for c in rates}
            for name, how in CONTRACTING.items()
        }

    settings = {"rates": list(RATES), "ways": list(CONTRACTING), "seeds": list(seeds)}
    found = store.measure("contraction", settings, compute).numbers
    return {
        name: {int(c): errors for c, errors in by_rate.items()} for name, by_rate in found.items()
    }


# --- time ---------------------------------------------------------------------------------------

FIXED, TOLS = (5, 10, 15, 30, 60, 120), (1e-3, 1e-5, 1e-7)
ON_GRID = (30, 60, 120)  # steps whose grid contains the observed times
ADJOINT, ODEINT, THEIR_RK4 = "odeint_adjoint", "torchdiffeq odeint", "torchdiffeq rk4"
OURS, ONE_OUTPUT = "ours, RK4|", "odeint_adjoint, one output"


def parallel(f: nn.Module, x0: Tensor, grid: Tensor, tol: float) -> Tensor:
    """The path at all times of the grid but the first, by torchode, with steps for each sample."""
    import torchode

    term: Any = torchode.ODETerm(f)  # pyright: ignore[reportArgumentType]
    control: Any = torchode.IntegralController(atol=tol, rtol=tol, term=term)
    method: Any = torchode.Dopri5(term=term)
    times: Any = grid.expand(len(x0), -1)
    problem = torchode.InitialValueProblem(y0=x0, t_eval=times)  # pyright: ignore[reportArgumentType]
    return torchode.AutoDiffAdjoint(method, control).solve(problem).ys[:, 1:].transpose(0, 1)


def contenders(f: nn.Module, x0: Tensor) -> dict[str, tuple[tuple, Callable]]:
    """The solvers that race: their settings, and the path at the observed times for one of them.

    The last one looks at its end alone: its time counts, and not its error.
    """
    from torchdiffeq import odeint, odeint_adjoint

    grid = torch.cat([torch.zeros(1, dtype=torch.float64), TIMES])

    def path(**how: Any) -> Tensor:
        return integrate(f, x0, 0.0, spiral.OBSERVED, save_at=TIMES, **how)

    def theirs(solve: Callable, tol: float, times: Tensor = grid) -> Tensor:
        return solve(f, x0, times, rtol=tol, atol=tol)[1:]

    def their_rk4(n: int) -> Tensor:
        fine = torch.linspace(0, spiral.OBSERVED, n + 1, dtype=torch.float64)
        path: Any = odeint(f, x0, fine, method="rk4")
        return path[n // len(TIMES) :: n // len(TIMES)]

    return {
        "ours, RK4": (FIXED, lambda n: path(steps=n)),
        "ours, RK4 recompute": (FIXED, lambda n: path(steps=n, backprop="recompute")),
        THEIR_RK4: (ON_GRID, their_rk4),
        "ours, dopri5": (TOLS, lambda tol: path(tol=tol)),
        ODEINT: (TOLS, partial(theirs, odeint)),
        "torchode": (TOLS, partial(parallel, f, x0, grid)),
        ADJOINT: (TOLS, partial(theirs, odeint_adjoint)),
        ONE_OUTPUT: (TOLS, partial(theirs, odeint_adjoint, times=grid[[0, -1]])),
    }


def race(f: nn.Module, x0: Tensor, smoke: bool) -> dict[str, Any]:
    """The seconds of a gradient (five repetitions, least of four interleaved rounds) and errors."""
    target, theta = observe(spiral_velocity, x0, TIMES).x, tuple(f.parameters())
    found: dict[str, Tensor] = {}
    runs: dict[str, Callable[[], None]] = {}

    def gradient(path: Tensor) -> Tensor:
        loss = (path - target[-len(path) :]).square().mean()
        return flat(torch.autograd.grad(loss, theta))

    for name, (settings, solve) in contenders(f, x0).items():
        for setting in settings:
            if smoke and setting not in (FIXED[0], 30, TOLS[2], TOLS[1]):
                continue

            def step(solve=solve, setting=setting, key=f"{name}|{setting}") -> None:
                found[key] = gradient(solve(setting))

            runs[f"{name}|{setting}"] = step
    repeat, rounds = range(1 if smoke else 5), 1 if smoke else 4
    seconds = [instruments.interleaved_times(runs, rounds=rounds) for _ in repeat]
    fine = TRIAL if smoke else EXACT
    exact = gradient(integrate(f, x0, 0.0, spiral.OBSERVED, save_at=TIMES, **fine))
    return {"seconds": seconds, "error": {key: off(value, exact) for key, value in found.items()}}


def races(store: Store, velocity: nn.Module, seed: int) -> dict[str, dict[str, Any]]:
    """The race for a network that is not trained and one solution, and for the trained one."""
    problems = {
        "at first": (spiral.Network(seed).double(), torch.tensor([[2.0, 0.0]]).double()),
        "trained": (velocity, spiral.starts(torch.float64)),
    }
    found = {}
    for when, (f, x0) in problems.items():
        settings = asdict(spiral.Settings()) | {"seed": seed, "when": when, "outputs": len(TIMES)}
        settings |= {"fixed": list(FIXED), "tols": list(TOLS), "torchode": "1.0.1"}
        settings |= {"loss": "squares", "their steps": list(ON_GRID)}
        name = "work-" + when.replace(" ", "-")

        def compute(f: nn.Module = f, x0: Tensor = x0) -> dict[str, Any]:
            return race(f, x0, store.run == "smoke")

        found[when] = store.measure(name, settings, compute).numbers
    return found


def equally_exact(work: dict[str, Any], slow: str) -> list[float]:
    """The times of `slow` over those of our fixed steps with an equal error of the gradient.

    The logarithm of the time is interpolated in that of the error, and is that of the first or last
    number of steps outside of their errors. One ratio a repetition.
    """
    fixed = sorted((work["error"][key], key) for key in work["error"] if key.startswith(OURS))
    errors = np.log([max(error, 1e-300) for error, _ in fixed])
    at = np.log(max(work["error"][slow], 1e-300))

    def ours(seconds: dict[str, float]) -> float:
        return float(np.exp(np.interp(at, errors, np.log([seconds[key] for _, key in fixed]))))

    return [seconds[slow] / ours(seconds) for seconds in work["seconds"]]

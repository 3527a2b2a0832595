"""The trainings of the chapter on mean-field games, and the true costs of what they learn."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.generative import mean_field, transport
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.potentials import Potential, ResNetPotential
from ctdl_lib.references.grids import Grid
from machinery.store import Store

from .games import EntropicGame

CHAPTER = "08_mean_field_games"
TERMS = ("transport", "interaction", "terminal", "hjb", "terminal condition")
SEEDS = (10, 11, 12, 13, 14)  # settings were chosen with other seeds, 0 to 4
DIMENSIONS = (2, 10, 50, 100)
TRANSPORTING: dict[str, Any] = {
    **{"width": 16, "batch": 512, "steps": 1000, "lr": 0.03, "times": 2},
    **{"hjb": 1.5, "end": 1.5},
}
WALKING: dict[str, Any] = {
    **{"width": 32, "batch": 256, "steps": 1200, "lr": 0.08, "times": 4},
    **{"hjb": 20.0, "end": 1.0},
}
SOLVING = WALKING | {"steps": 900, "hjb": 5.0}  # for new games: a smaller penalty learned faster
CROSSING = SOLVING | {"label": 5.0}
UNLABELLED = CROSSING | {"label": 0.0, "steps": 400}
FREE = {"hjb": 0.0, "end": 0.0}  # without penalties
STRONG = TRANSPORTING | {"batch": 1024, "steps": 8}  # a step of L-BFGS has 20 iterations
SLOT = TRANSPORTING | {"steps": 400}
LAMBDA = {"ring": 2.5, "crowd": 5.0}
FINE = 16  # Runge–Kutta steps by which costs are judged

Objective = Callable[..., dict[str, Tensor]]
Make = Callable[[int], EntropicGame]


class Learned(nn.Module):
    """A potential that begins small, and the terms of its objective in all steps of a training."""

    history: Tensor

    def __init__(self, d: int, width: int, steps: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.phi = ResNetPotential(d, width=width, generator=generator)
        with torch.no_grad():
            self.phi.w.fill_(0.1)  # at first the crowd hardly moves
            self.phi.A.mul_(0.3)
        self.register_buffer("history", torch.zeros(steps, len(TERMS)))
        self.weights: str | None = None  # the hash of what is stored

    def curve(self, term: str, window: int = 20) -> Tensor:
        """The means of a term over `window` steps each."""
        values = self.history[:, TERMS.index(term)]
        return values.unfold(0, min(window, len(values)), 1).mean(1)


def steps_of(
    model: Learned,
    game: EntropicGame,
    seed: int,
    how: dict[str, Any],
    *,
    steps: int,
    objective: Objective = mean_field,
    lbfgs: bool = False,
    checkpoint: Path | None = None,
) -> Iterator[Step]:
    """The steps of a training on fresh samples of ρ₀: by Adam, or by 20 iterations of L-BFGS each.

    `how` has the keys batch, lr, times (Runge–Kutta steps), hjb and end (the weights of the two
    penalties). The terms of the objective are kept in `model.history`.
    """

    def batch(k: int) -> tuple[int, Tensor]:
        generator = torch.Generator().manual_seed(10_000 * seed + k)
        return k, game.initial.sample(how["batch"], generator, dtype=torch.float32)

    def loss(model: nn.Module, drawn: tuple[int, Tensor]) -> dict[str, Tensor]:
        k, x = drawn
        weights = {"hjb": how["hjb"], "terminal_condition": how["end"]}
        terms = objective(model.phi, x, game, steps=how["times"], **weights)
        values = [terms[term].detach() if term in terms else torch.zeros(()) for term in TERMS]
        model.history[k] = torch.stack(values)  # pyright: ignore[reportIndexIssue]
        return terms

    schedule: dict[str, Any] = {"lr": cosine(how["lr"], steps), "max_grad_norm": 10.0}
    if lbfgs:
        search: dict[str, Any] = {"history_size": 20, "line_search_fn": "strong_wolfe"}
        search |= {"max_iter": how.get("iterations", 20)}
        schedule = {"lr": 1.0, "optimizer": torch.optim.LBFGS(model.parameters(), **search)}
    return train(model, loss, batch, steps=steps, checkpoint=checkpoint, **schedule)


def solve(
    game: EntropicGame, *, seed: int = 0, objective: Objective = mean_field, **how: Any
) -> Learned:
    """The learned value function `.phi` of a game, with the history of its training.

    Settings that are not given are SOLVING.
    """
    how = SOLVING | how
    model = Learned(game.initial.means.shape[1], how["width"], how["steps"], seed)
    list(steps_of(model, game, seed, how, steps=how["steps"], objective=objective))
    return model.requires_grad_(False)


def fit(
    store: Store,
    name: str,
    game: EntropicGame,
    seed: int,
    how: dict[str, Any],
    *,
    objective: Objective = mean_field,
    lbfgs: bool = False,
) -> Learned:
    """The model of one seed, stored as `name-seed`."""
    d = game.initial.means.shape[1]
    model = Learned(d, how["width"], how["steps"], seed)
    used = how | {"batch": 64, "iterations": 2} if store.run == "smoke" else how

    def training(steps: int, checkpoint: Path | None) -> Iterator[Step]:
        kind: dict[str, Any] = {"objective": objective, "lbfgs": lbfgs, "checkpoint": checkpoint}
        return steps_of(model, game, seed, used, steps=steps, **kind)

    settings = how | {"d": d, "seed": seed, "lbfgs": lbfgs, "objective": objective.__name__}
    settings |= {"lambda": game.relative_entropy, "eta": game.entropy}
    model.weights = store.fit(f"{name}-{seed}", model, settings, training).weights
    return model.requires_grad_(False)


def double(model: Learned) -> ResNetPotential:
    """The potential that was learned, in double precision."""
    return copy.deepcopy(model.phi).double().requires_grad_(False)


def wrong_slot(
    phi: Potential,
    x: Tensor,
    game: EntropicGame,
    *,
    steps: int,
    hjb: float,
    terminal_condition: float,
) -> dict[str, Tensor]:
    """The terms of `mean_field` with a mistake: the transport cost in place of the log-determinant.

    All integrals along a path are columns of one state in some codes. This one reads the wrong one.
    """
    end = transport(phi, x, steps=steps, game=game)
    cost = game.terminal(end.x, game.log_initial(x) - end.transport_cost)
    gap = (phi(1.0, end.x) - cost.variation).abs()
    return {
        "transport": end.transport_cost.mean(),
        "terminal": cost.value.mean(),
        "hjb": hjb * end.hjb_residual.mean(),
        "terminal condition": terminal_condition * gap.mean(),
    }


def averages(
    phi: Potential, game: EntropicGame, x: Tensor, w: Tensor, steps: int
) -> dict[str, float]:
    """All terms of a game, unweighted, as means over x with the weights w, and the total cost."""
    end = transport(phi, x, steps=steps, game=game)
    cost = game.terminal(end.x, game.log_initial(x) - end.log_det)
    gap = (phi(1.0, end.x) - cost.variation).abs()
    parts = (end.transport_cost, end.interaction_cost, cost.value, end.hjb_residual, gap)
    means = [float(part @ w / w.sum()) for part in parts]
    return dict(zip(TERMS, means, strict=True)) | {"cost": sum(means[:3])}


def costs(
    phi: Potential,
    make: Make,
    d: int,
    *,
    seed: int = 0,
    smoke: bool = False,
    steps: int = FINE,
    spacing: float = 0.15,
    points: int = 16_000,
) -> dict[str, float]:
    """All terms of the game make(d), unweighted, and the total cost.

    The plane of the first two coordinates is covered by a grid with the weights ρ₀ (from 1e-5 of
    its maximum). For d > 2 it is repeated, with the other coordinates drawn at random.
    """
    game, plane = make(d), make(2).initial
    n = 9 if smoke else round(12 / spacing) + 1
    y = Grid((-6.0, -6.0), (6.0, 6.0), n).points(dtype=torch.float64)
    w = plane.log_prob(y).exp()
    y, w = y[w > 1e-5 * w.max()], w[w > 1e-5 * w.max()]
    generator = torch.Generator().manual_seed(seed + 100)
    copies = 1 if d == 2 or smoke else -(-points // len(y))
    y, w = y.repeat(copies, 1), w.repeat(copies)
    others = game.initial.sample(len(y), generator, dtype=torch.float64)[:, 2:]
    return averages(phi, game, torch.cat([y, others], 1), w, min(steps, 2) if smoke else steps)


def evaluate(
    store: Store, name: str, model: Learned, make: Make, d: int, *, seed: int = 0, **how: Any
) -> dict[str, float]:
    """The costs of what was learned, kept in the store."""
    settings = {"d": d, "seed": seed, "steps": FINE, "spacing": 0.15, "points": 16_000} | how
    settings["weights"] = model.weights
    smoke = store.run == "smoke"
    compute = lambda: costs(double(model), make, d, seed=seed, smoke=smoke, **how)  # noqa: E731
    return store.measure(f"{name}-costs", settings, compute).numbers


def sampled(
    store: Store, name: str, model: Learned, game: EntropicGame, *, seed: int = 0, n: int = 20_000
) -> dict[str, float]:
    """The costs of a game whose first densities are no grid's: a mean over n samples of ρ₀.

    `moved` is the share of agents, in percent, whose first coordinate has changed its sign.
    """
    n, steps = (200, 2) if store.run == "smoke" else (n, FINE)
    settings = {"n": n, "seed": seed, "steps": steps, "weights": model.weights}

    def compute() -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed + 100)
        x = game.initial.sample(n, generator, dtype=torch.float64)
        phi = double(model)
        end = transport(phi, x, steps=steps)
        moved = (end.x[:, 0] * x[:, 0] < 0).double().mean()
        equal = torch.ones(n, dtype=torch.float64)
        return averages(phi, game, x, equal, steps) | {"moved": 100 * float(moved)}

    return store.measure(f"{name}-sampled", settings, compute).numbers

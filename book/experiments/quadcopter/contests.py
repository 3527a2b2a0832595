"""All controllers of the chapter, each in the winds that its costs are compared in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from machinery.store import Store

from . import flights, plans
from .blends import TRIALS, averaged, best_of, blended, bounded, chosen, shared, summed
from .flights import (
    AT,
    MPC_DISTURBED,
    Costs,
    Make,
    contest,
    disturbed,
    linear,
    name_of,
    network,
    open_loop,
)
from .training import Fitted

LINEAR, OPEN, BOUNDED, MPC = "linear feedback", "open loop", "bounded linear feedback", "MPC"
STOCHASTIC, DETERMINISTIC, FLAT = "trained with noise", "trained without noise", "even clock"
BLEND, SHARE, SUM, MEAN = "blend", "mean of controls", "mean of values", "mean of networks"
SOME = ((0.0, 100), (0.1, 100), *((0.2, steps) for steps in plans.STEPS), (0.4, 100))
ONE = ((0.2, 100),)
PAIR = ((0.2, 100), (0.4, 100))

Nets = Mapping[str, Sequence[Fitted]]


@dataclass(frozen=True)
class Contests:
    """The costs of each controller by condition: a table a seed, or one if it has none."""

    winds: dict[str, list[Costs]]
    disturbed: dict[str, list[Costs]]
    first: dict[str, dict[str, float]]  # mean and deviation of 64 flights of MPC
    anew: list[float]  # from other starts, by the linear feedback along own plans
    scores: dict[str, dict[str, float]]  # of candidates, which chose the numbers of blends


def _each(
    store: Store,
    name: str,
    nets: Sequence[Fitted],
    make: Callable[[Fitted], Make],
    *args,
    flown: Callable[..., Costs] = contest,
    **key,
) -> list[Costs]:
    """The costs of a controller that is made of each network, in winds or with disturbances."""
    return [
        flown(store, f"{name}-{f.seed}", make(f), *args, weights=f.record.weights, **key)
        for f in nets
    ]


def in_winds(store: Store, nets: Nets, scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The costs of all controllers but model predictive control."""
    best = {name: best_of(row) for name, row in scores.items()}
    noisy, own = nets[STOCHASTIC], lambda f: network(f.phi)
    make = lambda rule, of: lambda f: partial(rule, f.phi, best[of])  # noqa: E731
    key: Callable[[str], dict[str, Any]] = lambda name: {"parameter": best[name]}  # noqa: E731
    return {
        STOCHASTIC: _each(store, "stochastic", noisy, own),
        DETERMINISTIC: _each(store, "deterministic", nets[DETERMINISTIC], own, SOME),
        FLAT: _each(store, "flat", nets[FLAT], own, ONE),
        OPEN: [contest(store, "open-loop", open_loop)],
        LINEAR: [contest(store, "linear", linear)],
        BOUNDED: [contest(store, "bounded", partial(bounded, best["bound"]), TRIALS)],
        BLEND: _each(store, "blend", noisy, make(blended, "blend"), **key("blend")),
        SHARE: _each(store, "share", noisy, make(shared, "share"), TRIALS, **key("share")),
        SUM: _each(store, "sum", noisy, make(summed, "sum"), PAIR, **key("sum")),
        MEAN: [contest(store, "mean", averaged([f.phi for f in noisy]), TRIALS)],
    }


def with_disturbances(store: Store, nets: Nets, radius: float) -> dict[str, list[Costs]]:
    """The costs of the main controllers with each disturbance, model predictive control last."""
    noisy, calm, own = nets[STOCHASTIC], nets[DETERMINISTIC], lambda f: network(f.phi)
    each = partial(_each, store, flown=disturbed)
    return {
        STOCHASTIC: each("stochastic", noisy, own),
        DETERMINISTIC: each("deterministic", calm, own),
        BLEND: each("blend", noisy, lambda f: partial(blended, f.phi, radius)),
        OPEN: [disturbed(store, "open-loop", open_loop)],
        LINEAR: [disturbed(store, "linear", linear)],
    }


def held(store: Store, nets: Nets) -> Contests:
    """All contests: loaded, computed or tried out."""
    scores = chosen(store, nets[STOCHASTIC])
    winds = in_winds(store, nets, scores)
    others = with_disturbances(store, nets, best_of(scores["blend"]))
    anew = flights.planned_anew(store)
    winds[MPC] = [flights.replanned(store)]
    others[MPC] = [flights.replanned_disturbed(store)]
    if (calm := name_of(*AT)) in winds[MPC][0]:
        others[MPC][0]["none"] = winds[MPC][0][calm][:MPC_DISTURBED]
    return Contests(winds, others, flights.mean_costs_of_mpc(store), anew, scores)

"""What is asked of the learned posteriors: likelihood, match, calibration, steps, and clocks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import zuko
from torch import Tensor

from machinery import instruments
from machinery.seeds import seeded

from . import calibration, maps, posteriors, references
from .campaigns import seeds as spawned
from .lotka_volterra import statistics
from .maps import COT, COT_READS, METHODS, NPE, PCP, Fitted, Key
from .predators import BOX, LENGTHS, OBSERVED, PROBLEM, Campaign, chosen, features, inside, pairs

JUDGED = (  # by calibration and modes; that of PCP-Map with an encoder would take long
    *((chosen(COT, n), n) for n in (500_000, 50_000)),
    *((PCP, 50_000), (chosen(NPE, 50_000), 50_000)),
)
STEPS = (2, 4, 8, 32)  # of the solves by which likelihoods are compared
COUNTS, BEST = (1, 2, 4, 8, 16), 32
TOLERANCES = (0.1, 0.01, 1e-3, 1e-4)
POINTS, DRAWN = 3000, 99
NARROW = 0.8  # the factor of widths by which calibration shows its power
THINNINGS = (0, 1, 2, 3, 4)


def weights_of(fits: Sequence[Fitted]) -> list[str | None]:
    """The hashes of what was trained, by which a measurement knows its models."""
    return [fitted.record.weights for fitted in fits]


# likelihood -------------------------------------------------------------------------------------


def likelihoods(campaign: Campaign, name: str, n: int) -> dict[str, list[float]]:
    """The NLL of new pairs, one a seed: for each number of Runge–Kutta steps, or once."""
    fits = campaign.fits(name, n)
    steps = STEPS if maps.base_of(name) == COT else (maps.SOLVED,)

    def compute() -> Key:
        x, y = campaign.held_out
        models = {k: [maps.by_steps(fitted.model, k) for fitted in fits] for k in steps}
        return {str(k): [maps.mean_nll(m, x, y) for m in row] for k, row in models.items()}

    key = {"pairs": 3000, "steps": steps, "weights": weights_of(fits), "seed": campaign.seed}
    return campaign.store.measure(f"nll-{name}-{n}", key, compute).numbers


# the match with the reference -------------------------------------------------------------------


def match(campaign: Campaign, name: str, n: int) -> list[list[Key]]:
    """Moments at both observations, and C2ST against the reference, a row for each seed."""
    fits = campaign.fits(name, n)
    return _matched(campaign, f"{name}-{n}", [fits, fits])


def match_zoomed(campaign: Campaign) -> list[list[Key]]:
    """The same of the trainings near one observation."""
    return _matched(campaign, "zoom", [campaign.zooms(0), campaign.zooms(1)])


def _matched(campaign: Campaign, name: str, fits: Sequence[Sequence[Fitted]]) -> list[list[Key]]:
    def judged(model: Any, index: int) -> Key:
        x = inside(model, OBSERVED[index], 50 if campaign.smoke else POINTS, campaign.seed)
        return references.moments(x) | {"c2st": against(campaign, index, x.double())}

    def compute() -> Key:
        return {"rows": [[judged(f.model, i) for f in row] for i, row in enumerate(fits)]}

    key = {"points": POINTS, "thinnings": THINNINGS, "weights": list(map(weights_of, fits))}
    key |= {"seed": campaign.seed}
    return campaign.store.measure(f"match-{name}", key, compute).numbers["rows"]


def against(campaign: Campaign, index: int, x: Tensor) -> float:
    """How well a classifier tells samples from the reference, the mean over some thinnings."""
    found = references.record(campaign.store, f"theta{index + 1}-adapted", campaign.seed)
    thinnings = THINNINGS[:1] if campaign.smoke else THINNINGS
    scores = [references.told_apart(references.thinned(found, k), x, k) for k in thinnings]
    return sum(scores) / len(scores)


def rejections(campaign: Campaign, n: int) -> list[list[Key]]:
    """What rejection ABC with regression finds from the pairs of each seed, without a network."""

    def compute() -> Key:
        drawn = 100 if campaign.smoke else n
        rows = []
        for index in (0, 1):
            found = [references.rejection(drawn, s, index) for s in campaign.seeds]
            plain = [references.rejection(drawn, s, index, adjust=False) for s in campaign.seeds]
            rows.append(
                [
                    references.moments(x)
                    | {"c2st": against(campaign, index, x)}
                    | {"plain": references.moments(p)}
                    for x, p in zip(found, plain, strict=True)
                ]
            )
        return {"rows": rows}

    key = {"simulations": n, "kept": references.KEPT, "seeds": campaign.seeds}
    return campaign.store.measure(f"rejection-{n}", key, compute).numbers["rows"]


def power(campaign: Campaign) -> list[dict[str, Key]]:
    """What the measures of a match say of laws that are known to be right or wrong."""

    def compute() -> Key:
        rows = []
        for index in (0, 1):
            found = references.record(campaign.store, f"theta{index + 1}-adapted", campaign.seed)
            other = references.record(campaign.store, f"theta{2 - index}-adapted", campaign.seed)
            half = references.thinned(found, 9)
            first, second = half[: len(half) // 2], half[len(half) // 2 :]
            laws = {
                "Gaussian with its moments": references.normal(
                    references.last(found), references.covariance(found), 1000, campaign.seed
                ),
                "posterior of the other observation": references.thinned(other, 9),
                "prior": PROBLEM.prior.sample(1000, seeded(campaign.seed, 0), dtype=torch.float64),
            }
            row = {
                name: references.moments(x) | {"c2st": against(campaign, index, x)}
                for name, x in laws.items()
            }
            same = references.told_apart(first, second)
            row["one half of the reference"] = references.moments(first) | {"c2st": same}
            rows.append(row)
        return {"rows": rows}

    key = {"thinnings": THINNINGS, "seed": campaign.seed}
    key |= {"stops": [references.RUNS[f"theta{k}-adapted"]["stop"] for k in (1, 2)]}
    return campaign.store.measure("power", key, compute).numbers["rows"]


# pictures ---------------------------------------------------------------------------------------


def modes(campaign: Campaign) -> list[dict[str, list[float]]]:
    """The maxima a posteriori that the first seeds find at both observations."""
    models = {f"{name}-{n}": campaign.fits(name, n)[0] for name, n in JUDGED}

    def compute() -> Key:
        found = []
        for y in OBSERVED:
            bound = {name: f.model.given(features(y[None])) for name, f in models.items()}
            many, steps = (20, 2) if campaign.smoke else (500, 100)
            mode = partial(posteriors.mode, n=many, steps=steps)
            found.append(
                {k: mode(b, generator=seeded(campaign.seed, 0)).tolist() for k, b in bound.items()}
            )
        return {"rows": found}

    key = {"weights": weights_of(list(models.values())), "seed": campaign.seed}
    return campaign.store.measure("modes", key, compute).numbers["rows"]


def predictive(campaign: Campaign) -> list[Key]:
    """What new simulations say with parameters from COT-Flow: bands in time, and a count."""
    fitted = campaign.fits(chosen(COT, 500_000), 500_000)[0]

    def compute() -> Key:
        rows, levels = [], torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
        for y in OBSERVED:
            n = 50 if campaign.smoke else 1000
            x = inside(fitted.model, y, n, campaign.seed).double()
            runs = PROBLEM.paths(x, spawned(n, campaign.seed))
            states = runs.states[runs.completed]
            low, _, high = statistics(states).quantile(levels, dim=0)
            bands = states.quantile(levels, dim=0).permute(2, 0, 1)
            within = int(((y >= low) & (y <= high)).sum())
            rows.append({"bands": np.round(bands.numpy(), 1).tolist(), "inside": within})
        return {"rows": rows}

    key = {"draws": 1000, "weights": fitted.record.weights, "seed": campaign.seed}
    return campaign.store.measure("predictive", key, compute).numbers["rows"]


# calibration ------------------------------------------------------------------------------------


class Ranks(NamedTuple):
    """Ranks of the truth among samples, a row for each pair, of all seeds."""

    sbc: list[Tensor]
    tarp: list[Tensor]

    @property
    def sbc_pvalue(self) -> float:
        """The least p-value of all coordinates and seeds, with Holm's correction."""
        return least(torch.cat(self.sbc, 1))

    @property
    def tarp_pvalue(self) -> float:
        """The least p-value of all seeds, with Holm's correction."""
        return least(torch.stack(self.tarp, 1))


def least(ranks: Tensor) -> float:
    """The least p-value of uniformity over the columns, with Holm's correction."""
    return calibration.holm(calibration.uniformity_pvalues(ranks, DRAWN)).min().item()


def calibrated(campaign: Campaign, name: str, n: int) -> tuple[Ranks, list[float]]:
    """The ranks by 500 new pairs, and the share of samples outside of the prior, one a seed."""
    fits = campaign.fits(name, n)

    def compute() -> Key:
        pairs_of = zip(fits, campaign.seeds, strict=True)
        return {"rows": [ranked(f.model, *_new_pairs(campaign), s) for f, s in pairs_of]}

    key = {"pairs": 500, "draws": DRAWN, "weights": weights_of(fits), "seed": campaign.seed}
    rows = campaign.store.measure(f"calibration-{name}-{n}", key, compute).numbers["rows"]
    return _as_ranks(rows), [row["outside"] for row in rows]


def calibrated_narrow(campaign: Campaign, name: str, n: int) -> Ranks:
    """The same where all samples are moved towards their mean, so that they lie too close."""
    fits = campaign.fits(name, n)

    def compute() -> Key:
        pairs_of = zip(fits, campaign.seeds, strict=True)
        return {"rows": [ranked(f.model, *_new_pairs(campaign), s, NARROW) for f, s in pairs_of]}

    key = {"pairs": 500, "draws": DRAWN, "weights": weights_of(fits), "seed": campaign.seed}
    key |= {"factor": NARROW}
    record = campaign.store.measure(f"calibration-narrow-{name}-{n}", key, compute)
    return _as_ranks(record.numbers["rows"])


def _as_ranks(rows: Sequence[Key]) -> Ranks:
    return Ranks(*([torch.tensor(row[part]) for row in rows] for part in ("ranks", "tarp")))


def ranked(model: Any, x: Tensor, y: Tensor, s: int, factor: float = 1.0) -> Key:
    """The ranks of pairs, with samples at `factor` times their distance from their mean."""
    with torch.no_grad(), maps.quietly():
        many = model.given(y.repeat_interleave(DRAWN + 1, 0))
        samples = many.sample((DRAWN + 1) * len(y), seeded(s, 0)).reshape(len(y), DRAWN + 1, -1)
    outside = calibration.leakage(samples, PROBLEM.prior).mean().item()
    if factor != 1:
        samples = samples.mean(1, keepdim=True).lerp(samples, factor)
    rest = samples[:, 1:]
    how: Key = {"references": samples[:, 0], "generator": seeded(s, 0)}
    ranks = calibration.sbc_ranks(rest, x, generator=seeded(s, 0))
    tarp = calibration.tarp_ranks(rest, x, **how)
    return {"ranks": ranks.tolist(), "tarp": tarp.tolist(), "outside": outside}


def _new_pairs(campaign: Campaign) -> tuple[Tensor, Tensor]:
    n = 20 if campaign.smoke else 500
    x, y = campaign.data(1000, campaign.seed + 3)
    return x[:n], y[:n]


# steps ------------------------------------------------------------------------------------------


class SolverErrors(NamedTuple):
    """Errors of samples at the first observation: relative in percent, and of the worst in σ."""

    percent: list[list[float]]
    sigma: list[list[float]]


def solver_errors(campaign: Campaign) -> dict[str, SolverErrors]:
    """What few Runge–Kutta steps and loose tolerances do, a row for each seed."""
    fits = {COT: campaign.fits(chosen(COT, 500_000), 500_000), PCP: campaign.fits(PCP, 50_000)}

    def errors(model: Any, values: Sequence[Any], attribute: str, best: Any) -> list[list[float]]:
        bound = model.given(features(OBSERVED[[0]]))
        z = bound.reference(20 if campaign.smoke else 2000, seeded(campaign.seed, 0))

        def samples(value: Any) -> Tensor:
            setattr(bound, attribute, value)
            with torch.no_grad():
                return bound.inverse(z)

        exact, rows = samples(best), []
        for value in values:
            error = samples(value) - exact
            worst = (error.square().mean(0).sqrt() / exact.std(0)).max().item()
            rows.append([100 * (error.norm() / exact.norm()).item(), worst])
        return rows

    def compute() -> Key:
        solvers = [{"steps": k} for k in COUNTS]
        cot = [errors(f.model, solvers, "solver", {"steps": BEST}) for f in fits[COT]]
        pcp = [errors(f.model, TOLERANCES, "tol", 1e-5) for f in fits[PCP]]
        return {COT: cot, PCP: pcp}

    key = {"points": 2000, "steps": COUNTS, "tolerances": TOLERANCES, "seed": campaign.seed}
    key |= {"weights": [weights_of(row) for row in fits.values()]}
    numbers = campaign.store.measure("solver-errors", key, compute).numbers
    return {
        name: SolverErrors(*([[v[k] for v in row] for row in rows] for k in (0, 1)))
        for name, rows in numbers.items()
    }


# clocks -----------------------------------------------------------------------------------------


def given_up(campaign: Campaign) -> float:
    """The share of 50,000 draws of the prior whose simulation is given up, in percent."""

    def compute() -> Key:
        n = 1000 if campaign.smoke else 50_000
        return {"percent": 100 * (1 - len(pairs(n, campaign.seed)[0]) / n)}

    key = {"draws": 50_000, "seed": campaign.seed}
    return campaign.store.measure("given-up", key, compute).numbers["percent"]


CHANGES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])


def gillespie(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The recorded path of one simulation in plain NumPy, as long as it was not given up."""
    state, t, path, made = np.array(PROBLEM.start), 0.0, [], 0
    while len(path) < 150 and made < PROBLEM.max_reactions:
        X, Y = state
        rates = theta * np.array([X * Y, X, Y, X * Y])
        total = rates.sum()
        t += rng.exponential(1 / total) if total > 0 else np.inf
        while len(path) < 150 and PROBLEM.interval * len(path) < t:
            path.append(state)
        if total > 0:
            state = state + CHANGES[rng.choice(4, p=rates / total)]
        made += 1
    return np.array(path)


def speedup(campaign: Campaign) -> float:
    """How many times faster the compiled simulator is than the one in plain NumPy."""

    def compute() -> Key:
        rng, x = (
            np.random.default_rng(campaign.seed),
            PROBLEM.prior.sample(2 if campaign.smoke else 16, seeded(campaign.seed, 0)).double(),
        )
        often = x.repeat(50, 1)
        runs: dict[str, Callable[[], object]] = {
            "plain": lambda: [gillespie(row, rng) for row in x.exp().numpy()],
            "compiled": lambda: PROBLEM.simulate(often, spawned(len(often), campaign.seed)),
        }
        best = instruments.interleaved_times(runs, rounds=1 if campaign.smoke else 3)
        return {"plain": best["plain"] / len(x), "compiled": best["compiled"] / len(often)}

    key = {"draws": 16, "rounds": 3, "seed": campaign.seed}
    numbers = campaign.store.measure("simulator", key, compute).numbers
    return numbers["plain"] / numbers["compiled"]


def clocks(campaign: Campaign) -> dict[str, dict[str, float]]:
    """Milliseconds of a training step on 256 pairs, and of 2,000 samples for one observation."""
    fits = {name: campaign.fits(name, 50_000)[0] for name in (*METHODS, COT_READS)}
    methods = {name: campaign.methods[name] for name in fits}
    key = {"methods": methods, "weights": [fitted.record.weights for fitted in fits.values()]}
    return campaign.store.measure("clocks", key, partial(_clocks, campaign, fits)).numbers


def _stepper(key: Key, model: Any, x: Tensor, y: Tensor) -> Callable[[], object]:
    def run() -> None:
        model.requires_grad_(True).zero_grad()
        loss = maps.objective(key, model, x, y)
        total: Any = sum(loss.values()) if isinstance(loss, dict) else loss
        total.backward()

    return run


def _clocks(campaign: Campaign, fits: dict[str, Fitted]) -> Key:
    torch.set_num_threads(1)
    seed, methods = campaign.seed, campaign.methods
    x, y = (part[: 16 if campaign.smoke else 256] for part in campaign.data(1000, seed))
    steps: dict[str, Callable[[], object]] = {}
    wide = {"width": 128, "rk4": 8, "alpha": 100.0, "beta": 1.0}
    model: Any = None
    for name in METHODS:
        key = {"method": name} | (methods[name] if name == NPE else wide)
        model = maps.model_of(key, 4, 9, seed, BOX).standardize(x, y)
        steps[name] = _stepper(key, model, x, y)
    a, b = model.data(x), model.conditions(y)  # standardized
    for name, kind in (("zuko CNF", zuko.flows.CNF), ("zuko NSF", zuko.flows.NSF)):
        flow = kind(4, 9)

        def run(flow: Any = flow) -> None:
            flow.zero_grad()
            (-flow(b).log_prob(a).mean()).backward()

        steps[name] = run
    samples: dict[str, Callable[[], object]] = {}
    new = campaign.data(100, seed + 4)[1][:1]
    for name in fits:
        model = fits[name].model.given(new)
        if name == PCP:
            model.tol = 1e-3
        samples[name] = partial(model.sample, 100 if campaign.smoke else 2000, seeded(seed, 0))
    rounds = 1 if campaign.smoke else 5
    best = {"step": instruments.interleaved_times(steps, rounds=rounds)}
    best["samples"] = instruments.interleaved_times(samples, rounds=rounds)
    return {part: {k: 1e3 * v for k, v in row.items()} for part, row in best.items()}


def all_matches(campaign: Campaign) -> dict[tuple[str, int], list[list[Key]]]:
    """The matches of all methods with 50,000 simulations or more."""
    sizes = {name: [n for n in campaign.sizes(name) if n >= 50_000] for name in LENGTHS}
    return {(name, n): match(campaign, name, n) for name in LENGTHS for n in sizes[name]}

"""Approximate Bayesian computation with populations of particles, at falling tolerances."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ctdl_lib.learning import storage

from .campaigns import Simulated

# Distances between particles that are in memory at a time.
BLOCK = 2**20


class AcceptanceError(RuntimeError):
    """The simulations allowed did not give enough particles within the tolerance."""


@runtime_checkable
class Prior(Protocol):
    """A distribution of parameters; its log-density is −∞ outside of its support."""

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """The n independent draws."""
        ...

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The log-density, up to a constant."""
        ...


@dataclass(frozen=True)
class Population:
    """Weighted particles of the posterior given that the distance is within the tolerance.

    The log-weights are normalised, Σ exp(log_weights) = 1. All simulations are counted, also those
    `aborted` by the simulator and those of particles beyond the number wanted; proposals that are
    `rejected_by_prior` were not simulated.
    """

    x: Float[Tensor, "particles d"]
    log_weights: Float[Tensor, " particles"]
    distances: Float[Tensor, " particles"]
    tolerance: float
    simulations: int  # of this round
    total_simulations: int  # of this round and all before it
    aborted: int  # of this round
    rejected_by_prior: int  # of this round

    @property
    def ess(self) -> float:
        """The effective sample size 1/Σwᵢ²."""
        return math.exp(-float((2 * self.log_weights).logsumexp(0)))

    def mean(self) -> Float[Tensor, " d"]:
        """The weighted mean μ = Σwᵢxᵢ."""
        return self.log_weights.exp() @ self.x

    def covariance(self) -> Float[Tensor, "d d"]:
        """The weighted covariance Σwᵢ(xᵢ − μ)(xᵢ − μ)ᵀ."""
        centred = self.x - self.mean()
        return (self.log_weights.exp()[:, None] * centred).T @ centred

    def resample(self, n: int, generator: torch.Generator) -> Float[Tensor, "{n} d"]:
        """The particles of n independent draws by weight, fit for what ignores weights."""
        drawn = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        return self.x[drawn]


def geometric(start: float, stop: float, factor: float) -> tuple[float, ...]:
    """The tolerances start, start·factor, start·factor², …, as long as above stop, and stop."""
    if not (0 < stop < start < math.inf and 0 < factor < 1):
        raise ValueError(
            f"tolerances fall from start to stop > 0 by a factor in (0, 1), got "
            f"start={start}, stop={stop}, factor={factor}"
        )
    rounds = math.ceil(math.log(stop / start) / math.log(factor)) + 1
    powers = (start * factor**k for k in range(rounds))
    return (*(power for power in powers if power > stop), stop)


def smc_abc(
    simulate: Callable[[Float[Tensor, "n d"], tuple[int, ...]], Simulated],
    prior: Prior,
    distance: Callable[[Float[Tensor, "n m"]], Float[Tensor, " n"]],
    *,
    particles: int,
    tolerances: Sequence[float],
    seed: int | Sequence[int],
    batch: int = 10_000,
    max_simulations: int = 100_000_000,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Iterator[Population]:
    """The populations at each tolerance: x with distance(y) ≤ tolerance, weighted by π(x)/q(x).

    The first proposal q is the prior π, then q(x) = Σⱼ wⱼ N(x; xⱼ, 2 cov), with the particles, the
    weights and the weighted covariance of the population before. A proposal starts from a particle
    drawn by its weight: this is all the resampling there is. Weights are not carried along from
    round to round: a small `ess` makes its round imprecise, but no later one wrong.

    Proposals are simulated in batches as large as the particles missing and the rate of acceptance
    suggest. The first `particles` acceptances in the order of proposal are kept, as if one proposal
    had been made at a time: which they are does not depend on how long simulations take.

    The weights of n particles cost n² distances. On a CPU the result depends on seed and batch, but
    not on the executor, and a run that was killed goes on bit-identical from its last population,
    first yielding again those before it; further tolerances may then be appended.

    Args:
        simulate: (x, seed) ↦ Simulated, such as `campaigns.simulate` with its simulator bound.
        distance: the distances of simulated y, completed ones only, to what was observed.
        batch: the most proposals simulated at once.
        max_simulations: of all rounds; proposals outside of the prior's support are not simulated
            and not counted, but a round ends when they alone are as many.
        checkpoint: a file, written atomically after every population.
        identity: what simulator, prior and distance depend on, such as the observation, as numbers,
            strings and lists. A checkpoint goes on only where it is the same.

    Raises:
        AcceptanceError: max_simulations were too few; the populations before remain valid.
        SimulationError: of `campaigns.simulate`; nothing of its round is kept, so that a row that
            raises stops every resumed run at the same place: let the simulator return
            completed=False for it.
        TypeError: identity holds something else.
        ValueError: tolerances do not fall; a distance or a prior density is NaN; the checkpoint
            belongs to another run; a population collapsed to fewer points than dimensions.

    Reference: beaumont2009adaptive; toni2009approximate.
    """
    tolerances = tuple(float(tolerance) for tolerance in tolerances)
    _check(particles, tolerances, batch)
    settings = {"particles": particles, "seed": np.atleast_1d(seed).tolist(), "batch": batch}
    settings |= _entries(identity or {})
    done = [] if checkpoint is None else _restored(checkpoint, settings, tolerances)
    for index, tolerance in enumerate(tolerances):
        if index == len(done):
            words = (*settings["seed"], index)
            search = _Search(simulate, prior, distance, words, done[-1] if done else None)
            done.append(search.population(particles, tolerance, batch, max_simulations))
            if checkpoint is not None:
                storage.save(checkpoint, settings | {"populations": [asdict(p) for p in done]})
        yield done[index]


class _Search:
    """One round: proposals are made, simulated and counted until enough are accepted."""

    def __init__(self, simulate, prior, distance, seed, previous: Population | None):
        self.simulate, self.prior, self.distance = simulate, prior, distance
        # stream 1 proposes, and 2, 3, … simulate; a last word of 0 would leave a seed unchanged
        self.seed, self.stream = seed, 1
        state = int(np.random.SeedSequence((*seed, 1)).generate_state(1, np.uint64)[0])
        self.generator = torch.Generator().manual_seed(state)
        self.previous = previous
        self.scale = None if previous is None else _kernel_scale(previous)
        self.simulations = self.aborted = self.rejected = 0

    def population(self, n: int, tolerance: float, batch: int, most: int) -> Population:
        before = 0 if self.previous is None else self.previous.total_simulations
        rate = 1.0 if self.previous is None else n / self.previous.simulations
        accepted: list[tuple[Tensor, Tensor]] = []
        found = 0
        while found < n:
            left = most - before - self.simulations
            # proposals that are never simulated would never use up the simulations
            if left < 1 or self.rejected >= most:
                why = f"max_simulations={most} were used up"
                if left > 0:
                    why = f"{self.rejected} proposals of this round were outside of the prior's "
                    why += f"support, as many as max_simulations={most}"
                raise AcceptanceError(
                    f"{found} of {n} particles were within the tolerance {tolerance:.4g} when "
                    f"{why}: allow more, or end at a larger tolerance; the populations before are "
                    "valid"
                )
            rate = max(found, 1) / self.simulations if self.simulations else rate
            x, distances = self._simulated(min(batch, left, math.ceil((n - found) / rate)))
            within = distances <= tolerance
            accepted.append((x[within], distances[within]))
            found += int(within.sum())
        x, distances = (torch.cat(parts)[:n] for parts in zip(*accepted, strict=True))
        return Population(
            x,
            self._log_weights(x),
            distances,
            tolerance,
            self.simulations,
            before + self.simulations,
            self.aborted,
            self.rejected,
        )

    def _simulated(self, size: int) -> tuple[Tensor, Tensor]:
        """The completed ones of that many proposals, in their order, and their distances."""
        x = self._proposals(size)
        self.rejected += size - len(x)
        if len(x) == 0:
            return x, x.new_zeros(0)
        self.stream += 1
        y, completed = self.simulate(x, (*self.seed, self.stream))
        self.simulations += len(x)
        self.aborted += int((~completed).sum())
        x, y = x[completed], y[completed]
        distances = self.distance(y)
        if distances.shape != (len(x),) or distances.isnan().any():
            raise ValueError(
                f"distance must give one number for each of {len(x)} simulations, got shape "
                f"{tuple(distances.shape)} with {int(distances.isnan().sum())} NaN: is what was "
                "observed finite?"
            )
        return x, distances

    def _proposals(self, size: int) -> Tensor:
        """The proposals inside of the prior's support."""
        if self.previous is None:
            x = self.prior.sample(size, self.generator)
        else:
            x = self.previous.resample(size, self.generator)
            noise = torch.randn(x.shape, dtype=x.dtype, generator=self.generator)
            x = x + noise @ self.scale.T  # pyright: ignore[reportOptionalMemberAccess]
        log_prior = self.prior.log_prob(x)
        inside = log_prior > -math.inf
        if log_prior.isnan().any() or (self.previous is None and not inside.all()):
            raise ValueError(
                "prior.log_prob must be finite where prior.sample draws, and −inf outside, but "
                f"is {float(log_prior[~inside][0])} at {x[~inside][0].tolist()}"
            )
        return x[inside]

    def _log_weights(self, x: Tensor) -> Tensor:
        """The normalised log π(x) − log Σⱼ exp(log wⱼ − ½‖L⁻¹(x − xⱼ)‖²), with LLᵀ = 2 cov."""
        if self.previous is None:
            return torch.full((len(x),), -math.log(len(x)), dtype=x.dtype)
        z, centres = (
            torch.linalg.solve_triangular(self.scale, points.T, upper=False).T
            for points in (x, self.previous.x)
        )
        log_proposal = [
            (self.previous.log_weights - 0.5 * _squared_distances(part, centres)).logsumexp(1)
            for part in z.split(max(1, BLOCK // len(centres)))
        ]
        log_weights = self.prior.log_prob(x) - torch.cat(log_proposal)
        return log_weights - log_weights.logsumexp(0)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    # the expanded square would lose digits where particles are close
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def _kernel_scale(population: Population) -> Tensor:
    """The lower triangular L with LLᵀ = 2 cov."""
    scale, failed = torch.linalg.cholesky_ex(2 * population.covariance())
    # equal particles differ from their mean by rounding
    rounding = 100 * torch.finfo(scale.dtype).eps * population.x.abs().amax(0)
    if failed or not (scale.diagonal() > rounding).all():
        raise ValueError(
            f"the {len(population.x)} particles at tolerance {population.tolerance:.4g} have no "
            f"positive definite covariance (effective sample size {population.ess:.3g}): take "
            "more particles, or let the tolerances fall more slowly"
        )
    return scale


def _check(particles: int, tolerances: tuple[float, ...], batch: int) -> None:
    if particles < 2 or batch < 1:
        raise ValueError(f"needed: particles ≥ 2, batch ≥ 1; got particles={particles}, {batch=}")
    falls = all(a > b for a, b in pairwise(tolerances))
    if not tolerances or not falls or not tolerances[-1] >= 0:
        raise ValueError(
            f"tolerances must fall from each to the next and not below 0, got {tolerances}"
        )


def _entries(identity: Mapping[str, Any]) -> dict[str, Any]:
    try:
        # as they are compared: tuples are lists
        return {f"identity {key!r}": json.loads(json.dumps(v)) for key, v in identity.items()}
    except TypeError as error:
        raise TypeError(
            f"identity must hold numbers, strings and lists of them only ({error}): use .tolist()"
        ) from error


def _restored(
    checkpoint: Path, settings: dict[str, Any], tolerances: tuple[float, ...]
) -> list[Population]:
    try:
        kept = {**storage.load(checkpoint)}
        populations = [Population(**population) for population in kept.pop("populations")]
    except FileNotFoundError:
        return []
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"the checkpoint {checkpoint} belongs to another program: delete it to start afresh"
        ) from error
    shared = min(len(populations), len(tolerances))
    kept["tolerances"] = tuple(p.tolerance for p in populations[:shared])
    wanted = settings | {"tolerances": tolerances[:shared]}
    # as text, in which NaN is NaN
    differing = [
        f"{key} {kept.get(key, 'absent')} there, {wanted.get(key, 'absent')} here"
        for key in {**kept, **wanted}
        if json.dumps(kept.get(key)) != json.dumps(wanted.get(key))
    ]
    if differing:
        raise ValueError(
            f"the checkpoint {checkpoint} belongs to another run ({'; '.join(differing)}); "
            "delete it to start afresh"
        )
    return populations

"""The stochastic Lotka–Volterra model, simulated exactly, one reaction after the other."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt64
from numba import njit
from torch import Tensor

from .campaigns import Simulated
from .problems import BoxUniform

THETA = ((0.01, 0.5, 1.0, 0.01), (0.02, 0.02, 0.02, 0.02))


"""The two parameters θ* of published tests: populations that oscillate, and prey that die out."""


STATISTICS = (
    "mean X",
    "mean Y",
    "log(var X + 1)",
    "log(var Y + 1)",
    "autocorrelation X, lag 1",
    "autocorrelation X, lag 2",
    "autocorrelation Y, lag 1",
    "autocorrelation Y, lag 2",
    "correlation X, Y",
)


"""What the nine columns of `statistics` are."""


LARGEST = 300.0  # of log θ, so that no rate overflows


class Paths(NamedTuple):
    """Recorded states (X, Y), whether the last time was reached, and the number of reactions."""

    states: Float[Tensor, "n times 2"]
    completed: Bool[Tensor, " n"]
    reactions: Int[Tensor, " n"]


class Observation(NamedTuple):
    """Parameters x = log θ, and the statistics y of one simulation with them."""

    x: Float[Tensor, " 4"]
    y: Float[Tensor, " 9"]


@dataclass(frozen=True)
class StochasticLotkaVolterra:
    """The jump process of predators X and prey Y with parameters x = log θ, uniform in a box.

    At the rates θ₁XY, θ₂X, θ₃Y and θ₄XY happen X+1, X−1, Y+1 and Y−1. States are recorded at the
    times k·interval in [0, horizon), thus not at the horizon, and nothing is simulated beyond the
    last of them. A simulation that makes `max_reactions` reactions before is given up and not
    repeated. Where all rates are 0 the state stays as it is.

    Args of the constructor: `start` is (X, Y) at t = 0; the box is [low, high]⁴.

    Raises:
        ValueError: a count is negative, fewer than three times fit, or no reaction is allowed.

    Reference: wang2023efficient; the algorithm is that of gillespie1977exact.
    """

    start: tuple[int, int] = (50, 100)
    horizon: float = 30.0
    interval: float = 0.2
    max_reactions: int = 10_000
    low: float = -5.0
    high: float = 2.0

    def __post_init__(self):
        if len(self.start) != 2 or min(self.start) < 0:
            raise ValueError(f"start must be two counts (X, Y), none negative, got {self.start}")
        if not self.interval > 0 or not math.isfinite(self.horizon) or self._count < 3:
            raise ValueError(
                f"horizon={self.horizon} and interval={self.interval} must be positive with at"
                " least three times k·interval < horizon, for a correlation of lag 2"
            )
        if self.max_reactions < 1:
            raise ValueError(f"max_reactions must be at least 1, got {self.max_reactions}")

    @property
    def _count(self) -> int:
        # 0.2·150 may round to either side of 30
        return math.ceil(self.horizon / self.interval - 1e-9)

    @property
    def prior(self) -> BoxUniform:
        """The uniform law of log θ on [low, high]⁴."""
        return BoxUniform((self.low,) * 4, (self.high,) * 4)

    @property
    def times(self) -> Float[Tensor, " times"]:
        """The times k·interval < horizon of the records, in float64."""
        return self.interval * torch.arange(self._count, dtype=torch.float64)

    def simulate(self, x: Float[Tensor, "n 4"], seeds: UInt64[np.ndarray, " n"]) -> Simulated:
        """The nine statistics of one simulation for each x = log θ, and which of them completed.

        Row i depends on x[i] and seeds[i] alone, to the last bit. Rows given up are NaN.

        Raises:
            TypeError: the seeds are no array of dtype uint64.
            ValueError: x or a shape is wrong, or x is not finite or larger than 300.
        """
        log_theta = _checked(x, seeds)
        found, reactions = np.empty((len(x), 9)), np.empty(len(x), np.int64)
        path = np.empty((self._count, 2))
        _fill_statistics(log_theta, seeds, *self._settings(), path, found, reactions)
        completed = torch.from_numpy(reactions < self.max_reactions)
        return Simulated(torch.from_numpy(found).to(x), completed.to(x.device))

    def paths(self, x: Float[Tensor, "n 4"], seeds: UInt64[np.ndarray, " n"]) -> Paths:
        """The recorded states of the same simulations, NaN from where they were given up.

        Raises:
            TypeError: the seeds are no array of dtype uint64.
            ValueError: x or a shape is wrong, or x is not finite or larger than 300.
        """
        log_theta = _checked(x, seeds)
        states, reactions = np.empty((len(x), self._count, 2)), np.empty(len(x), np.int64)
        _fill_paths(log_theta, seeds, *self._settings(), states, reactions)
        made = torch.from_numpy(reactions).to(x.device)
        return Paths(torch.from_numpy(states).to(x), made < self.max_reactions, made)

    def observed(self, index: int, *, seed: int = 0) -> Observation:
        """A simulation in float64 at θ* = `THETA[index]`, to be inferred from.

        Raises:
            ValueError: the simulation with this seed was given up.
        """
        x = torch.tensor(THETA[index], dtype=torch.float64).log()
        y, completed = self.simulate(x[None], np.array([seed], np.uint64))
        if not completed.all():
            raise ValueError(f"seed={seed} made {self.max_reactions} reactions: take another one")
        return Observation(x, y[0])

    def _settings(self) -> tuple[float, float, float, int]:
        return float(self.start[0]), float(self.start[1]), self.interval, self.max_reactions


def statistics(states: Float[Tensor, "n times 2"]) -> Float[Tensor, "n 9"]:
    """The nine `STATISTICS` of each recorded path, finite wherever the path is.

    Variances are those of the n recorded states, Σ(x − m)²/n, and with s² this variance the
    autocorrelation is Σ(xᵢ − m)(xᵢ₊ₗ − m)/((n − 1)s²) for lag l, m and s from the whole series. A
    series that never changes has no correlation: autocorrelations and correlation are then 0.

    Raises:
        ValueError: the shape is wrong or there are fewer than three times.

    Reference: wang2023efficient.
    """
    if states.dim() != 3 or states.shape[1] < 3 or states.shape[2] != 2:
        raise ValueError(f"states must be (n, times ≥ 3, 2), got {tuple(states.shape)}")
    paths = states.detach().double().cpu().contiguous().numpy()
    found = np.empty((len(paths), 9))
    _fill_summaries(paths, found)
    return torch.from_numpy(found).to(states)


def rate_equations(x: Float[Tensor, "*n 4"]) -> Callable[[Any, Tensor], Tensor]:
    """The velocity (θ₁XY − θ₂X, θ₃Y − θ₄XY) of the limit of large populations, θ = eˣ.

    It is the limit of X/Ω and Y/Ω when the start is multiplied by Ω, and θ₁, θ₄ are divided by it.
    """
    theta = x.exp()

    def velocity(t: Any, state: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        X, Y = state.unbind(-1)
        birth, death, growth, eaten = theta.to(state).unbind(-1)
        return torch.stack([(birth * Y - death) * X, (growth - eaten * X) * Y], -1)

    return velocity


def _checked(x: Tensor, seeds: Any) -> np.ndarray:
    """The parameters as an array in float64, if they and the seeds are what is wanted."""
    if x.dim() != 2 or x.shape[1] != 4 or not x.is_floating_point():
        raise ValueError(f"x = log θ must be real, (n, 4), got {x.dtype}, {tuple(x.shape)}")
    if not isinstance(seeds, np.ndarray) or seeds.dtype != np.uint64:
        kind = getattr(seeds, "dtype", type(seeds).__name__)
        raise TypeError(f"seeds must be an array of dtype uint64, got {kind}: use astype")
    if seeds.shape != (len(x),):
        raise ValueError(f"seeds must have shape ({len(x)},), one a row of x, got {seeds.shape}")
    values = x.detach().double().cpu().contiguous().numpy()
    bad = ~(values <= LARGEST) | np.isinf(values)
    if bad.any():
        raise ValueError(
            f"{int(bad.any(1).sum())} rows of x = log θ are not finite or above {LARGEST:.0f}:"
            " drop or clip them"
        )
    return values


def _compiled(function: Callable) -> Callable:
    """The function in machine code, which numba keeps on disk wherever it may write.

    It is kept beside this file or in the user's cache, so that a new process need not compile it;
    numba sees when this file changes. All that is compiled must stay in this file, for of changes
    in others it would not know. Where neither place can be written, numba raises an error, and the
    code is compiled anew in each process.
    """
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **settings)(function)
    except RuntimeError:
        return njit(**settings)(function)


# numba compiles the functions below themselves, not a wrapper that checks types: no_type_check


@_compiled
@no_type_check
def _split_mix(state):
    """The next state and output of the generator SplitMix64, which turns one seed into many."""
    state += np.uint64(0x9E3779B97F4A7C15)
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state, z ^ (z >> np.uint64(31))


@_compiled
@no_type_check
def _seeded(seed):
    """The state of xoshiro256++ for a seed of 64 bits."""
    seed, a = _split_mix(seed)
    seed, b = _split_mix(seed)
    seed, c = _split_mix(seed)
    seed, d = _split_mix(seed)
    return a, b, c, d


@_compiled
@no_type_check
def _next(state):
    """The next state of xoshiro256++, and 64 random bits.

    Reference: blackman2021scrambled.
    """
    a, b, c, d = state
    mixed = a + d
    bits = ((mixed << np.uint64(23)) | (mixed >> np.uint64(41))) + a
    shifted = b << np.uint64(17)
    c ^= a
    d ^= b
    b ^= c
    a ^= d
    c ^= shifted
    d = (d << np.uint64(45)) | (d >> np.uint64(19))
    return (a, b, c, d), bits


@_compiled
@no_type_check
def _run(log_theta, seed, X, Y, interval, max_reactions, path):
    """The number of reactions; the path is filled, with NaN from where it was given up."""
    theta1, theta2 = math.exp(log_theta[0]), math.exp(log_theta[1])
    theta3, theta4 = math.exp(log_theta[2]), math.exp(log_theta[3])
    random = _seeded(seed)
    t, recorded, reactions = 0.0, 0, 0
    while True:
        XY = X * Y
        # sums of rates, afresh from integers: updating them would gather rounding errors
        first = theta1 * XY
        second = first + theta2 * X
        growth = theta3 * Y
        third = second + growth
        # so that fewer sums wait for one another
        total = second + (growth + theta4 * XY)
        # a multiple of 2⁻⁵³ in (0, 1], so that the logarithm is finite
        random, bits = _next(random)
        t -= math.log(((bits >> np.uint64(11)) + np.uint64(1)) * 2.0**-53) / total
        while t > recorded * interval or total == 0:
            path[recorded, 0] = X
            path[recorded, 1] = Y
            recorded += 1
            if recorded == len(path):
                return reactions
        random, bits = _next(random)
        choice = (bits >> np.uint64(11)) * 2.0**-53 * total
        # sums instead of branches, which a processor would have to guess, and mostly wrongly
        birth, before_growth, before_eaten = choice < first, choice < second, choice < third
        X += 2 * birth - before_growth
        Y += 2 * before_eaten - before_growth - 1
        reactions += 1
        if reactions == max_reactions:
            path[recorded:] = np.nan
            return reactions


@_compiled
@no_type_check
def _summarise(path, found):
    """The nine statistics of one path, written to the array."""
    n = len(path)
    X, Y = path[:, 0], path[:, 1]
    mean_X, mean_Y = X.sum() / n, Y.sum() / n
    constant_X, constant_Y = True, True
    square_X, square_Y, product = 0.0, 0.0, 0.0
    lag_X, lag_Y, second_X, second_Y = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        constant_X &= X[i] == X[0]
        constant_Y &= Y[i] == Y[0]
        x, y = X[i] - mean_X, Y[i] - mean_Y
        square_X += x * x
        square_Y += y * y
        product += x * y
        if i >= 1:
            lag_X += x * (X[i - 1] - mean_X)
            lag_Y += y * (Y[i - 1] - mean_Y)
        if i >= 2:
            second_X += x * (X[i - 2] - mean_X)
            second_Y += y * (Y[i - 2] - mean_Y)
    scale_X = 0.0 if constant_X else n / ((n - 1) * square_X)
    scale_Y = 0.0 if constant_Y else n / ((n - 1) * square_Y)
    found[0], found[1] = mean_X, mean_Y
    found[2], found[3] = math.log(square_X / n + 1), math.log(square_Y / n + 1)
    found[4], found[5] = lag_X * scale_X, second_X * scale_X
    found[6], found[7] = lag_Y * scale_Y, second_Y * scale_Y
    found[8] = 0.0 if constant_X or constant_Y else product / math.sqrt(square_X * square_Y)


@_compiled
@no_type_check
def _fill_summaries(paths, found):
    for i in range(len(paths)):
        _summarise(paths[i], found[i])


@_compiled
@no_type_check
def _fill_paths(log_theta, seeds, X, Y, interval, max_reactions, states, reactions):
    for i in range(len(seeds)):
        reactions[i] = _run(log_theta[i], seeds[i], X, Y, interval, max_reactions, states[i])


@_compiled
@no_type_check
def _fill_statistics(log_theta, seeds, X, Y, interval, max_reactions, path, found, reactions):
    for i in range(len(seeds)):
        reactions[i] = _run(log_theta[i], seeds[i], X, Y, interval, max_reactions, path)
        if reactions[i] < max_reactions:
            _summarise(path, found[i])
        else:
            found[i] = np.nan

import inspect
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from ctdl_lib.dynamics import integrate
from ctdl_lib.metrics import observed_orders
from experiments.simulation_based_inference import campaigns, lotka_volterra
from experiments.simulation_based_inference.lotka_volterra import (
    STATISTICS,
    THETA,
    StochasticLotkaVolterra,
    rate_equations,
    statistics,
)

NEVER = -1e4  # the logarithm of a rate that is 0 in double precision
WORD = 2**64
seeds = partial(campaigns.seeds, seed=0)


def log(theta, n=1):
    return torch.tensor(theta).log().expand(n, 4)


@pytest.fixture(scope="module")
def prior_draws():
    problem = StochasticLotkaVolterra()
    generator = torch.Generator().manual_seed(1)
    x = problem.prior.sample(2000, generator, dtype=torch.float64)
    return problem, x, problem.simulate(x, seeds(2000)), problem.paths(x, seeds(2000))


class PlainStream:
    """SplitMix64 and xoshiro256++ in whole numbers of any size."""

    def __init__(self, seed):
        self.state = []
        for _ in range(4):
            seed = (seed + 0x9E3779B97F4A7C15) % WORD
            z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % WORD
            z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
            self.state.append(z ^ z >> 31)

    def bits(self):
        s = self.state
        found = (rotated((s[0] + s[3]) % WORD, 23) + s[0]) % WORD
        shifted = s[1] << 17 & WORD - 1
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= shifted
        s[3] = rotated(s[3], 45)
        return found

    def uniform(self):
        """In [0, 1), a multiple of 2⁻⁵³."""
        return (self.bits() >> 11) / 2**53


def rotated(word, k):
    return (word << k | word >> 64 - k) % WORD


def plain_path(problem, x, seed):
    """The same reactions by branches: the state is recorded before the one that passes a time."""
    theta, stream = [math.exp(value) for value in x], PlainStream(seed)
    (X, Y), t, states, reactions = problem.start, 0.0, [], 0
    times = problem.times.tolist()
    while reactions < problem.max_reactions:
        rates = [theta[0] * (X * Y), theta[1] * X, theta[2] * Y, theta[3] * (X * Y)]
        total = (rates[0] + rates[1]) + (rates[2] + rates[3])
        waiting = -math.log(stream.uniform() + 2**-53) / total if total else math.inf
        t += waiting
        while len(states) < len(times) and times[len(states)] < t:
            states.append([X, Y])
        if len(states) == len(times):
            return states, reactions
        level = stream.uniform() * total
        if level < rates[0]:
            X += 1
        elif level < rates[0] + rates[1]:
            X -= 1
        elif level < rates[0] + rates[1] + rates[2]:
            Y += 1
        else:
            Y -= 1
        reactions += 1
    return states + [[math.nan, math.nan]] * (len(times) - len(states)), reactions


def test_paths_are_those_of_a_plain_loop_to_the_last_bit(prior_draws):
    problem, x, _, paths = prior_draws
    for i in range(40):
        states, reactions = plain_path(problem, x[i].tolist(), int(seeds(2000)[i]))
        assert torch.equal(paths.states[i].nan_to_num(-1), torch.tensor(states).nan_to_num(-1))
        assert int(paths.reactions[i]) == reactions
    assert not paths.completed[:40].all()
    assert paths.reactions[:40].float().std() > 100


def test_a_simulation_depends_on_its_own_row_and_seed_alone(prior_draws):
    problem, x, whole, paths = prior_draws
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    shuffled = problem.simulate(x[order], seeds(2000)[order.numpy()])
    assert same(shuffled.y, whole.y[order])
    parts = [problem.simulate(*part) for part in zip(x[:300].split(7), chunks(7), strict=True)]
    assert same(torch.cat([part.y for part in parts]), whole.y[:300])
    assert torch.equal(torch.cat([part.completed for part in parts]), whole.completed[:300])
    assert same(problem.paths(x[order], seeds(2000)[order.numpy()]).states, paths.states[order])
    other = problem.simulate(x[:300], seeds(300, seed=9))
    assert not (other.y == whole.y[:300]).all(1).any()


def chunks(size, n=300):
    return np.array_split(seeds(2000)[:n], range(size, n, size))


def same(a, b):
    """Bits alike, and NaN where the other is."""
    return torch.equal(a.nan_to_num(-1e300), b.nan_to_num(-1e300))


def test_threads_do_not_disturb_one_another(prior_draws):
    problem, x, whole, _ = prior_draws
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(problem.simulate, x[:300].split(7), chunks(7)))
    assert same(torch.cat([part.y for part in parts]), whole.y[:300])


def test_the_statistics_of_the_paths_are_those_simulated(prior_draws):
    _, _, simulated, paths = prior_draws
    assert same(statistics(paths.states), simulated.y)
    assert torch.equal(paths.completed, simulated.completed)


def test_single_precision_is_that_of_the_result_alone(prior_draws):
    problem, x, _, _ = prior_draws
    single = problem.simulate(x[:50].float(), seeds(50))
    double = problem.simulate(x[:50].float().double(), seeds(50))
    assert single.y.dtype == torch.float32
    assert same(single.y, double.y.float())


def test_a_simulation_is_given_up_at_its_last_reaction_allowed(prior_draws):
    problem, x, simulated, paths = prior_draws
    patient = StochasticLotkaVolterra(max_reactions=20_000)
    longer = patient.paths(x, seeds(2000))
    cap = problem.max_reactions
    assert torch.equal(simulated.completed, longer.reactions < cap)
    assert torch.equal(paths.reactions, longer.reactions.clamp(max=cap))
    assert same(paths.states[paths.completed], longer.states[paths.completed])
    # the reaction that is one too many is the last one allowed
    i = int(paths.reactions.where(paths.completed, 0).argmax())
    made = int(paths.reactions[i])
    for allowed, completed in ((made, False), (made + 1, True)):
        tight = StochasticLotkaVolterra(max_reactions=allowed)
        found = tight.simulate(x[i : i + 1], seeds(2000)[i : i + 1])
        assert found.completed.tolist() == [completed]


def test_rows_given_up_are_nan_and_all_others_finite(prior_draws):
    problem, _, (y, completed), paths = prior_draws
    assert torch.equal(completed, paths.reactions < problem.max_reactions)
    assert y[completed].isfinite().all()
    assert y[~completed].isnan().all()
    assert paths.states[completed].isfinite().all()
    assert paths.states[~completed][:, -1].isnan().all()
    assert (paths.states[:, 0] == torch.tensor([50.0, 100.0])).all()
    # what is recorded before is kept: a path is numbers first, and nothing afterwards
    given_up = paths.states.isnan().any(2).int()
    assert (given_up.diff(dim=1) >= 0).all()


def test_the_share_given_up_at_the_prior():
    """Published code gave up 48 of 400 draws in an independent run."""
    problem = StochasticLotkaVolterra()
    x = problem.prior.sample(5000, torch.Generator().manual_seed(3), dtype=torch.float64)
    share = 1 - float(problem.simulate(x, seeds(5000)).completed.double().mean())
    error = math.sqrt(0.12 * 0.88 * (1 / 400 + 1 / 5000))
    assert abs(share - 48 / 400) < 3 * error


def test_times_are_those_before_the_horizon():
    times = StochasticLotkaVolterra().times
    assert len(times) == 150
    assert torch.allclose(times, torch.linspace(0, 29.8, 150))
    assert StochasticLotkaVolterra(horizon=1.0, interval=0.3).times.tolist() == pytest.approx(
        [0, 0.3, 0.6, 0.9]
    )
    for count in range(3, 400):
        assert len(StochasticLotkaVolterra(horizon=0.1 * count, interval=0.1).times) == count


def test_counts_change_by_whole_numbers_and_stay_dead(prior_draws):
    _, _, _, paths = prior_draws
    states = paths.states[paths.completed]
    assert torch.equal(states, states.round())
    assert (states >= 0).all()
    dead = states == 0
    assert (dead[:, 1:] | ~dead[:, :-1]).all()
    assert dead[:, -1].any(0).all()


ONE_CHANNEL = {
    # births of a law with n at the start are negative binomial, those left are binomial
    "predators are born": (0, 0, 100, lambda p: stats.nbinom(50, p, loc=50)),
    "predators die": (1, 0, 1, lambda p: stats.binom(50, p)),
    "prey are born": (2, 1, 1, lambda p: stats.nbinom(100, p, loc=100)),
    "prey are eaten": (3, 1, 50, lambda p: stats.binom(100, p)),
}


@pytest.mark.parametrize("name", ONE_CHANNEL)
def test_one_reaction_alone_has_the_law_of_births_or_deaths(name):
    """Where only one reaction happens, at the rate r per head, p = e^{−rt}."""
    channel, which, others, law = ONE_CHANNEL[name]
    n, rate = 20_000, 0.7
    x = torch.full((n, 4), NEVER)
    x[:, channel] = math.log(rate / others)
    problem = StochasticLotkaVolterra(horizon=2.0, interval=0.5)
    states = problem.paths(x, seeds(n, seed=channel)).states
    assert (states[:, :, 1 - which] == problem.start[1 - which]).all()
    for k in range(1, 4):
        known = law(math.exp(-rate * float(problem.times[k])))
        counts = states[:, k, which].numpy()
        mean, variance, kurtosis = (float(known.stats(moments=kind)) for kind in "mvk")
        assert abs(counts.mean() - mean) < 4 * math.sqrt(variance / n)
        error = variance * math.sqrt((kurtosis + 2) / n)
        assert abs(counts.var() - variance) < 4 * error
        values = np.arange(counts.min(), counts.max() + 1)
        found = np.searchsorted(np.sort(counts), values, side="right") / n
        # the bound of Dvoretzky, Kiefer and Wolfowitz, which one law in 1000 passes
        assert np.abs(found - known.cdf(values)).max() < math.sqrt(math.log(2000) / (2 * n))


def test_births_have_the_moments_of_yule():
    """Mean 100e^{θt} and variance 100e^{θt}(e^{θt} − 1), with predators that die meanwhile."""
    n, theta3, theta2 = 20_000, 0.9, 0.4
    x = torch.tensor([NEVER, math.log(theta2), math.log(theta3), NEVER]).expand(n, 4)
    problem = StochasticLotkaVolterra(horizon=2.0, interval=0.5)
    X, Y = problem.paths(x, seeds(n)).states[:, -1].unbind(1)
    grown, left = math.exp(1.5 * theta3), math.exp(-1.5 * theta2)
    assert abs(Y.mean() - 100 * grown) < 4 * Y.std() / math.sqrt(n)
    assert abs(X.mean() - 50 * left) < 4 * X.std() / math.sqrt(n)
    assert float(Y.var()) == pytest.approx(100 * grown * (grown - 1), rel=4 * math.sqrt(2 / n))
    assert float(X.var()) == pytest.approx(50 * left * (1 - left), rel=4 * math.sqrt(2 / n))
    assert abs(np.corrcoef(X, Y)[0, 1]) < 4 / math.sqrt(n)


def test_large_populations_obey_the_rate_equations():
    """The distance to the limit falls like Ω^(−1/2)."""
    x = log(THETA[0])[0]
    start = torch.tensor([[50.0, 100.0]])
    sizes = [4, 16, 64, 256]
    errors = []
    for omega in sizes:
        problem = StochasticLotkaVolterra((50 * omega, 100 * omega), 5.0, 0.5, 10**7)
        scaled = x - torch.tensor([1.0, 0.0, 0.0, 1.0]) * math.log(omega)
        paths = problem.paths(scaled.expand(60, 4), seeds(60))
        assert paths.completed.all()
        limit = integrate(
            rate_equations(x), start, 0.0, 4.5, tol=1e-10, save_at=problem.times
        ).squeeze(1)
        errors.append(float((paths.states / omega - limit).square().mean().sqrt()))
    assert observed_orders(errors, sizes) == pytest.approx([-0.5] * 3, abs=0.08)


def test_the_rate_equations_are_written_for_many_parameters_at_once():
    x, state = torch.randn(6, 4), 1 + torch.rand(6, 2)
    found = rate_equations(x)(0.0, state)
    for theta, (X, Y), wanted in zip(x.exp(), state, found, strict=True):
        dX = theta[0] * X * Y - theta[1] * X
        dY = theta[2] * Y - theta[3] * X * Y
        assert torch.allclose(torch.stack([dX, dY]), wanted)
    assert torch.allclose(rate_equations(x[0])(0.0, state[:1]), found[:1])


def test_the_rate_equations_keep_their_first_integral():
    """θ₄X − θ₃ log X + θ₁Y − θ₂ log Y does not change along a solution."""
    a, b, c, d = THETA[0]
    start = torch.tensor([[50.0, 100.0], [30.0, 20.0]])
    end = integrate(rate_equations(log(THETA[0])[0]), start, 0.0, 3.0, tol=1e-11)

    def energy(state):
        X, Y = state.unbind(1)
        return d * X - c * X.log() + a * Y - b * Y.log()

    assert torch.allclose(energy(start), energy(end), atol=1e-8)
    assert (start - end).abs().min() > 1


def leaps(theta, n, times, tau, rng):
    """Paths by the midpoint rule with Poisson numbers of reactions, all at once."""
    a, b, c, d = theta
    changes = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])

    def rates(state):
        X, Y = np.maximum(state, 0).T
        return np.stack([a * X * Y, b * X, c * Y, d * X * Y], 1)

    state, found = np.tile([50.0, 100.0], (n, 1)), []
    for step in range(round(times[-1] / tau) + 1):
        if np.isclose(times, step * tau).any():
            found.append(state)
        middle = state + 0.5 * tau * rates(state) @ changes
        state = np.maximum(state + rng.poisson(tau * rates(middle)) @ changes, 0)
    return np.stack(found, 1)


@pytest.mark.parametrize("theta", THETA)
def test_moments_are_those_of_tau_leaping(theta):
    n, problem = 4000, StochasticLotkaVolterra(horizon=3.0, interval=0.5)
    exact = problem.paths(log(theta, n), seeds(n)).states.numpy()[:, 1:]
    other = leaps(theta, n, problem.times.numpy()[1:], 0.005, np.random.default_rng(0))
    assert exact.shape == other.shape == (n, 5, 2)

    def moments(states):
        squares = (states - states.mean(0)) ** 2
        cross = (states - states.mean(0)).prod(2, keepdims=True)
        return np.concatenate([states, squares, cross], 2)

    ours, theirs = moments(exact), moments(other)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / n)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all()
    assert (np.abs(moments(exact[:, 2:3]).mean(0) - theirs[:, 0:1].mean(0)) > 4 * error[0]).any()


def by_numpy(path):
    X, Y = path.T
    n = len(X)

    def correlation(x, lag):
        z = (x - np.mean(x)) / np.std(x)
        return np.dot(z[:-lag], z[lag:]) / (n - 1)

    return [
        np.mean(X),
        np.mean(Y),
        np.log(np.var(X) + 1),
        np.log(np.var(Y) + 1),
        *(correlation(x, lag) for x in (X, Y) for lag in (1, 2)),
        np.corrcoef(X, Y)[0, 1],
    ]


def test_statistics_are_those_of_numpy():
    paths = 40 + 10 * torch.randn(20, 31, 2).cumsum(1)
    wanted = torch.tensor(np.array([by_numpy(path) for path in paths.numpy()]))
    assert torch.allclose(statistics(paths), wanted, rtol=1e-12, atol=1e-13)
    assert statistics(paths.float()).dtype == torch.float32
    assert len(STATISTICS) == statistics(paths).shape[1] == 9


@pytest.mark.parametrize("level", [0.0, 7.0, 0.1])
def test_a_series_that_never_changes_has_no_correlation(level):
    """Not even where rounding makes its mean another number, as of 0.1."""
    paths = torch.full((1, 150, 2), level)
    paths[:, :, 1] = torch.arange(150) % 7
    found = statistics(paths)[0]
    assert found[[2, 4, 5, 8]].abs().max() < 1e-25
    assert found[0] == pytest.approx(level)
    wanted = torch.tensor(by_numpy(torch.stack(2 * [paths[0, :, 1]], 1).numpy()))
    assert torch.allclose(found[[1, 3, 6, 7]], wanted[[1, 3, 6, 7]])
    still = statistics(torch.full((1, 150, 2), level))[0]
    assert still[2:].abs().max() < 1e-25


def test_without_rates_the_state_is_frozen():
    problem = StochasticLotkaVolterra()
    frozen = problem.paths(torch.full((2, 4), NEVER), seeds(2))
    assert (frozen.states == torch.tensor([50.0, 100.0])).all()
    assert frozen.reactions.tolist() == [0, 0]
    assert frozen.completed.all()
    y = problem.simulate(torch.full((2, 4), NEVER), seeds(2)).y
    assert torch.equal(y, torch.tensor([50.0, 100.0, 0, 0, 0, 0, 0, 0, 0]).expand(2, 9))
    # predators eat until the last of them has died, and prey have no young
    dead = problem.paths(torch.tensor([[NEVER, 2.0, NEVER, -1.0]]), seeds(1))
    X, Y = dead.states[0, -1].tolist()
    assert X == 0 < Y < 100
    assert dead.reactions.tolist() == [50 + 100 - Y]
    empty = StochasticLotkaVolterra(start=(0, 0)).paths(log(THETA[0]), seeds(1))
    assert (empty.states == 0).all()
    extinct = StochasticLotkaVolterra(start=(50, 0)).paths(torch.full((1, 4), 2.0), seeds(1))
    assert extinct.reactions.tolist() == [50]
    assert extinct.states[0, -1].tolist() == [0, 0]


PUBLISHED = (
    [28.887, 9.14, 8.203, 6.873, 0.9988, 0.9790, 0.9668, 0.8959, 0.5278],
    [115.693, 2.347, 5.650, 4.944, 0.9331, 0.8653, 0.7366, 0.5061, -0.3860],
)


@pytest.mark.parametrize("index", [0, 1])
def test_published_observations_are_among_ours(index):
    """Each statistic lies in the central 99.8 % of simulations with the same parameters."""
    n = 10_000
    y, completed = StochasticLotkaVolterra().simulate(log(THETA[index], n), seeds(n))
    ours, published = y[completed], torch.tensor(PUBLISHED[index])
    below = (ours < published).double().mean(0)
    assert (below > 0.001).all()
    assert (below < 0.999).all()
    swapped = (ours < torch.tensor(PUBLISHED[1 - index])).double().mean(0)
    assert ((swapped < 0.001) | (swapped > 0.999)).any()


@pytest.mark.parametrize("index", [0, 1])
def test_an_observation_is_one_simulation(index):
    problem = StochasticLotkaVolterra()
    x, y = problem.observed(index)
    assert torch.allclose(x.exp(), torch.tensor(THETA[index]))
    known = problem.simulate(x[None], np.zeros(1, np.uint64))
    assert torch.equal(y, known.y[0])
    assert not torch.equal(y, problem.observed(index, seed=1).y)


def test_the_prior_is_uniform_in_the_box():
    prior = StochasticLotkaVolterra().prior
    x = torch.tensor([[-5.0, 2.0, 0.0, 1.0], [0.0, 0.0, 2.1, 0.0]])
    assert prior.log_prob(x).tolist() == pytest.approx([-4 * math.log(7), -math.inf])


def test_the_generators_give_published_numbers():
    """Of SplitMix64 after the seed 1234567 and of xoshiro256++ after the state 1, 2, 3, 4."""
    state, found = np.uint64(1234567), []
    for _ in range(3):
        state, bits = lotka_volterra._split_mix(state)
        state = np.uint64(state)
        found.append(bits)
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    state, found = tuple(np.arange(1, 5, dtype=np.uint64)), []
    for _ in range(4):
        state, bits = lotka_volterra._next(state)
        state = tuple(np.array(state, np.uint64))
        found.append(bits)
    assert found == [41943041, 58720359, 3588806011781223, 3591011842654386]


def words(seed, n):
    state, found = lotka_volterra._seeded(np.uint64(seed)), np.empty(n, np.uint64)
    for i in range(n):
        state, found[i] = lotka_volterra._next(tuple(np.array(state, np.uint64)))
    return found


def test_random_bits_are_uniform_and_those_of_neighbouring_seeds_independent():
    n, many = 10_000, 10
    u = np.array([words(seed, n) for seed in range(many)]) / 2.0**64
    first = np.array([words(seed, 2) for seed in range(n)])
    for sample in (u[0], u[-1], first[:, 0] / 2.0**64, first[:, 1] / 2.0**64):
        assert stats.kstest(sample, "uniform").pvalue > 1e-3
    # all pairs of streams, and each stream with itself one later
    z = math.sqrt(12) * (u - 0.5)
    between = (z @ z.T / n)[np.triu_indices(many, 1)]
    assert np.abs(between).max() < 4 / math.sqrt(n)
    assert np.abs((z[:, 1:] * z[:, :-1]).mean(1)).max() < 4 / math.sqrt(n)
    # every one of 64 bits is set in half of the seeds, and flips in half of the neighbours
    bits = (first[:, 0, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    for share in (bits.mean(0), (bits[1:] != bits[:-1]).mean(0)):
        assert np.abs(share - 0.5).max() < 4 * 0.5 / math.sqrt(n)
    squares = np.histogram2d(u[0], u[1], bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(squares.ravel()).pvalue > 1e-3


def test_seeds_that_agree_in_their_lower_half_differ():
    """A generator seeded by 32 bits could not tell them apart."""
    pair = np.array([5, 5 + 2**32], np.uint64)
    y = StochasticLotkaVolterra().simulate(log(THETA[1], 2), pair).y
    assert not torch.equal(y[0], y[1])


def test_code_is_compiled_even_where_no_cache_can_be_written():
    """A function that comes from no file is one whose code numba refuses to keep."""
    scope = {}
    exec("def double(x):\n    return 2 * x", scope)
    assert lotka_volterra._compiled(scope["double"])(21) == 42


def untyped(function):
    """The method without the types that the tests add to it."""
    return lambda *args: inspect.unwrap(function)(StochasticLotkaVolterra(), *args)


def refused(**settings):
    problem = object.__new__(StochasticLotkaVolterra)
    for name, value in {**vars(StochasticLotkaVolterra()), **settings}.items():
        object.__setattr__(problem, name, value)
    inspect.unwrap(StochasticLotkaVolterra.__post_init__)(problem)


simulate, paths_of = (
    untyped(StochasticLotkaVolterra.simulate),
    untyped(StochasticLotkaVolterra.paths),
)
plain_statistics = inspect.unwrap(statistics)
X0 = torch.zeros(2, 4)

BAD = {
    "three parameters": (lambda: simulate(torch.zeros(2, 3), seeds(2)), r"\(n, 4\).*\(2, 3\)"),
    "one row": (lambda: simulate(torch.zeros(4), seeds(4)), r"\(n, 4\).*\(4,\)"),
    "whole numbers": (lambda: simulate(X0.long(), seeds(2)), "real.*int64"),
    "NaN": (lambda: simulate(X0 * math.nan, seeds(2)), "2 rows of x.*drop or clip"),
    "no rate": (lambda: paths_of(X0 - math.inf, seeds(2)), "2 rows"),
    "overflow": (lambda: paths_of(X0 + 301, seeds(2)), "above 300"),
    "few seeds": (lambda: simulate(X0, seeds(1)), r"\(2,\).*\(1,\)"),
    "a table of seeds": (lambda: paths_of(X0, seeds(2)[:, None]), r"\(2,\).*\(2, 1\)"),
    "negative start": (lambda: refused(start=(50, -1)), "none negative"),
    "three species": (lambda: refused(start=(1, 2, 3)), r"two counts"),
    "two times": (lambda: refused(horizon=0.4), "three times"),
    "no interval": (lambda: refused(interval=0.0), "must be positive"),
    "for ever": (lambda: refused(horizon=math.inf), "must be positive"),
    "no reaction": (lambda: refused(max_reactions=0), "at least 1"),
    "a given up observation": (
        lambda: StochasticLotkaVolterra(max_reactions=10).observed(0),
        "another one",
    ),
    "short paths": (lambda: plain_statistics(torch.zeros(4, 2, 2)), r"times ≥ 3.*\(4, 2, 2\)"),
    "one path": (lambda: plain_statistics(torch.zeros(150, 2)), r"\(150, 2\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("bad", [seeds(2).astype(np.int64), [1, 2], torch.zeros(2).long()])
def test_seeds_of_another_kind_are_a_type_error(bad):
    got = getattr(bad, "dtype", "list")
    for call in (simulate, paths_of):
        with pytest.raises(TypeError, match=f"seeds must be .* uint64, got {got}: use astype"):
            call(X0, bad)


def test_nothing_is_simulated_for_no_parameters():
    y, completed = StochasticLotkaVolterra().simulate(torch.zeros(0, 4), seeds(0))
    assert y.shape == (0, 9)
    assert completed.shape == (0,)

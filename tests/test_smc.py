import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from ctdl_lib.learning import storage
from experiments.simulation_based_inference import campaigns, smc
from experiments.simulation_based_inference.campaigns import Simulated
from experiments.simulation_based_inference.smc import (
    AcceptanceError,
    Population,
    geometric,
    smc_abc,
)


class Box:
    """The uniform distribution on (0, 1)ᵈ."""

    def __init__(self, d):
        self.d = d

    def sample(self, n, generator):
        return torch.rand(n, self.d, generator=generator)

    def log_prob(self, x):
        return torch.where(((x >= 0) & (x <= 1)).all(1), 0.0, -math.inf)


class Gauss:
    """The standard normal distribution."""

    def __init__(self, d):
        self.d = d

    def sample(self, n, generator):
        return torch.randn(n, self.d, generator=generator)

    def log_prob(self, x):
        return -0.5 * x.square().sum(1)


class Edge:
    """y = θ + noise, θ ∈ (0, 1), observed close to the edge; large θ abort more often.

    The posterior that the distance is within the tolerance is known up to a constant.
    """

    sigma, observed, prior = 0.3, 0.1, Box(1)

    def __init__(self):
        self.simulations = self.aborted = self.outside = 0

    def simulate(self, x, seed):
        rng = np.random.default_rng(seed)
        y = x + self.sigma * torch.from_numpy(rng.standard_normal(x.shape))
        completed = torch.from_numpy(rng.random(len(x))) > 0.5 * x[:, 0]
        self.simulations += len(x)
        self.aborted += int((~completed).sum())
        self.outside += int((self.prior.log_prob(x) == -math.inf).sum())
        return Simulated(y.masked_fill(~completed[:, None], math.nan), completed)

    def distance(self, y):
        return (y[:, 0] - self.observed).abs()

    def grid(self, tolerance, n=20_001):
        """The midpoints of a grid, and the probabilities of its cells."""
        theta = (torch.arange(n) + 0.5) / n
        noise = Normal(theta, self.sigma)
        within = noise.cdf(torch.tensor(self.observed + tolerance))
        within -= noise.cdf(torch.tensor(self.observed - tolerance))
        p = (1 - 0.5 * theta) * within
        return theta, p / p.sum()

    def run(self, **settings):
        defaults = {"particles": 1000, "tolerances": (1.0, 0.5, 0.2, 0.05), "seed": 0}
        return smc_abc(self.simulate, self.prior, self.distance, **defaults | settings)


def same(a, b):
    return all(
        torch.equal(p, q) if isinstance(p, torch.Tensor) else p == q
        for p, q in ((getattr(a, f.name), getattr(b, f.name)) for f in fields(Population))
    )


def standard_errors(values, exact):
    """The distance of the mean of independent values from what is exact, in standard errors."""
    values = torch.stack(values)
    return (values.mean(0) - exact).abs() / (values.std(0) / math.sqrt(len(values)))


def largest_gap(x, weights, theta, p):
    """The Kolmogorov–Smirnov distance of weighted particles from a density on a grid."""
    x, order = x.sort()
    upper = weights[order].cumsum(0)
    exact = p.cumsum(0)[(torch.searchsorted(theta, x) - 1).clamp(min=0)]
    return float(torch.maximum(upper - exact, exact - upper + weights[order]).max())


def test_each_population_has_the_distribution_of_its_tolerance():
    """Weighted particles pass a Kolmogorov–Smirnov test at 0.1 %; without weights they fail it."""
    problem = Edge()
    for population in problem.run(particles=4000):
        theta, p = problem.grid(population.tolerance)
        x, weights = population.x[:, 0], population.log_weights.exp()
        bound = 1.95 / math.sqrt(population.ess)
        assert largest_gap(x, weights, theta, p) < bound
        assert population.distances.max() <= population.tolerance
    assert largest_gap(x, torch.full_like(weights, 1 / 4000), theta, p) > 1.5 * bound


def test_moments_are_unbiased_over_independent_runs():
    """Means over runs are within 4 standard errors; those without weights are not within 10."""
    problem, moments, unweighted = Edge(), [], []
    for seed in range(16):
        *_, last = problem.run(seed=seed)
        powers = torch.stack([last.x[:, 0], last.x[:, 0] ** 2, last.x[:, 0] ** 3])
        moments.append(powers @ last.log_weights.exp())
        unweighted.append(powers.mean(1))
    theta, p = problem.grid(last.tolerance)
    exact = torch.stack([theta, theta**2, theta**3]) @ p
    assert (standard_errors(moments, exact) < 4).all()
    assert (standard_errors(unweighted, exact) > 10).all()


def test_the_gaussian_posterior_is_reached_as_the_tolerance_falls():
    A, sigma = torch.tensor([[1.0, 0.5], [-0.3, 1.2], [0.4, 0.4]]), 0.5
    observed = torch.tensor([0.6, -0.9, 0.2])
    covariance = torch.linalg.inv(torch.eye(2) + A.T @ A / sigma**2)
    mean = covariance @ A.T @ observed / sigma**2

    def simulate(x, seed):
        noise = np.random.default_rng(seed).standard_normal((len(x), 3))
        return Simulated(x @ A.T + sigma * torch.from_numpy(noise), torch.ones(len(x)) > 0)

    means, covariances = [], []
    tolerances = geometric(3.0, 0.2, 0.4)
    for seed in range(8):
        populations = smc_abc(
            simulate,
            Gauss(2),
            lambda y: (y - observed).norm(dim=1),
            particles=1000,
            tolerances=tolerances,
            seed=seed,
        )
        populations = list(populations)
        means.append(torch.stack([p.mean() for p in populations]))
        covariances.append(torch.stack([p.covariance() for p in populations]))
    errors = (torch.stack(means).mean(0) - mean).norm(dim=1)
    assert errors[0] > 3 * errors[1] > 9 * errors[-1]
    # a ball of radius ε in R³ adds variance ε²/5 to that of the noise
    widened = torch.linalg.inv(torch.eye(2) + A.T @ A / (sigma**2 + tolerances[-1] ** 2 / 5))
    assert torch.allclose(widened, covariance, rtol=0.05)
    assert (standard_errors([m[-1] for m in means], mean) < 4).all()
    assert (standard_errors([c[-1] for c in covariances], widened) < 4).all()


def test_weights_are_the_prior_over_the_mixture_of_kernels(monkeypatch):
    """The second route: densities of torch.distributions, in linear space, without blocks."""
    monkeypatch.setattr(smc, "BLOCK", 1000)  # 300 particles: three at a time

    def simulate(x, seed):
        return Simulated(x, torch.ones(len(x)) > 0)

    first, *later = smc_abc(
        simulate,
        Gauss(3),
        lambda y: y.norm(dim=1),
        particles=300,
        tolerances=(2.0, 1.0, 0.7),
        seed=3,
    )
    assert torch.allclose(first.log_weights.exp(), torch.tensor(1 / 300))
    for before, after in pairwise([first, *later]):
        w = before.log_weights.exp()
        mean = (w[:, None] * before.x).sum(0)
        covariance = torch.einsum("n,ni,nj->ij", w, before.x - mean, before.x - mean)
        assert torch.allclose(before.mean(), mean)
        assert torch.allclose(before.covariance(), covariance)
        kernels = MultivariateNormal(before.x, 2 * covariance).log_prob(after.x[:, None]).exp()
        prior = Normal(0.0, 1.0).log_prob(after.x).sum(1).exp()
        weights = prior / (kernels @ w)
        assert torch.allclose(after.log_weights.exp(), weights / weights.sum(), rtol=1e-10)
        assert after.ess == pytest.approx(float(weights.sum() ** 2 / weights.square().sum()))
        assert 1 < after.ess < 300


def test_proposals_spread_as_particles_and_twice_their_covariance():
    """Mean μ and covariance (1 + 2) cov, for a population along a diagonal."""
    proposed = {}

    def simulate(x, seed):
        proposed.setdefault(seed[1], []).append(x)
        return Simulated(x, torch.ones(len(x)) > 0)

    first, _ = smc_abc(
        simulate,
        Gauss(2),
        lambda y: (y[:, 0] - 0.5 * y[:, 1]).abs(),
        particles=2000,
        tolerances=(0.3, 0.03),
        seed=0,
    )
    x = torch.cat(proposed[1])
    assert len(x) > 20_000
    # whitened by what is expected, within 5 standard errors of the mean and of the covariance
    scale = torch.linalg.cholesky(3 * first.covariance())
    z = torch.linalg.solve_triangular(scale, (x - first.mean()).T, upper=False)
    assert z.mean(1).abs().max() < 5 / math.sqrt(len(x))
    assert (z.cov() - torch.eye(2)).abs().max() < 5 * math.sqrt(2 / len(x))


def test_every_simulation_is_counted_once():
    problem = Edge()
    populations = list(problem.run())
    assert [p.total_simulations for p in populations] == list(
        itertools.accumulate(p.simulations for p in populations)
    )
    assert populations[-1].total_simulations == problem.simulations
    assert sum(p.aborted for p in populations) == problem.aborted > 0
    assert all(p.aborted < p.simulations for p in populations)


def test_what_the_prior_excludes_is_never_simulated():
    problem = Edge()
    populations = list(problem.run())
    assert problem.outside == 0
    assert populations[0].rejected_by_prior == 0
    assert all(p.rejected_by_prior > 0 for p in populations[1:])
    assert all((problem.prior.log_prob(p.x) == 0).all() for p in populations)


def test_few_simulations_are_beyond_the_number_of_particles_wanted():
    """With batches sized by the rate, hardly more than one proposal at a time would need."""
    problem, accepted = Edge(), 0

    def distance(y):
        nonlocal accepted
        distances = problem.distance(y)
        accepted += int((distances <= 0.5).sum())
        return distances

    list(
        smc_abc(
            problem.simulate, problem.prior, distance, particles=2000, tolerances=(0.5,), seed=1
        )
    )
    assert 2000 <= accepted < 2100


def test_the_first_acceptances_are_kept_in_the_order_of_proposal():
    problem, proposed = Edge(), []

    def simulate(x, seed):
        simulated = problem.simulate(x, seed)
        kept = simulated.completed & (problem.distance(simulated.y) <= 0.4)
        proposed.append(x[kept])
        return simulated

    (population,) = smc_abc(
        simulate,
        problem.prior,
        problem.distance,
        particles=155,
        tolerances=(0.4,),
        seed=0,
        batch=100,
    )
    assert len(proposed) > 2
    assert torch.equal(population.x, torch.cat(proposed)[:155])


@pytest.mark.parametrize("chunk", [17, 400])
def test_the_executor_does_not_change_a_bit(chunk):
    def simulator(x, seeds):
        noise = [np.random.default_rng(seed).standard_normal(1) for seed in seeds]
        return Simulated(x + 0.3 * torch.tensor(np.array(noise)), x[:, 0] < 0.9)

    def run(**options):
        def simulate(x, seed):
            return campaigns.simulate(simulator, x, seed=seed, **options)

        settings = {"particles": 100, "tolerances": (1.0, 0.5), "seed": (4, 5)}
        return list(smc_abc(simulate, Box(1), Edge().distance, **settings))

    with ThreadPoolExecutor(3) as executor:
        parallel = run(executor=executor, chunk=chunk)
    assert all(map(same, run(), parallel))


def test_seeds_and_rounds_have_their_own_random_numbers():
    a, b = (list(Edge().run(seed=seed, particles=50)) for seed in (1, 2))
    assert not torch.equal(a[0].x, b[0].x)
    seen = []

    def simulate(x, seed):
        seen.append(seed)
        return Simulated(x, torch.ones(len(x)) > 0)

    tolerances = (0.5, 0.2, 0.1)
    list(smc_abc(simulate, Box(2), lambda y: y[:, 0], particles=20, tolerances=tolerances, seed=7))
    states = [tuple(np.random.SeedSequence(seed).generate_state(2)) for seed in seen]
    assert len(set(states)) == len(states) > 3


@pytest.mark.parametrize("until", [1, 2, 3])
def test_a_run_that_stops_goes_on_bit_identical(tmp_path, until):
    whole, path = list(Edge().run()), tmp_path / "abc"
    list(itertools.islice(Edge().run(checkpoint=path), until))
    problem = Edge()
    resumed = list(problem.run(checkpoint=path))
    assert all(map(same, whole, resumed))
    # only the rounds that were missing have been simulated
    assert problem.simulations == whole[-1].total_simulations - whole[until - 1].total_simulations
    assert all(map(same, whole, Edge().run(checkpoint=path)))


def test_further_tolerances_may_be_appended_to_a_checkpoint(tmp_path):
    path = tmp_path / "abc"
    list(Edge().run(checkpoint=path, tolerances=(1.0, 0.5)))
    longer = list(Edge().run(checkpoint=path))
    assert all(map(same, longer, Edge().run()))
    assert len(list(Edge().run(checkpoint=path, tolerances=(1.0, 0.5)))) == 2


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "abc"
    next(Edge().run(checkpoint=path))
    for changed, differing in [
        ({"seed": 1}, r"seed \[0\] there, \[1\] here"),
        ({"particles": 10}, "particles 1000 there, 10 here"),
        ({"batch": 10}, "batch 10000 there, 10 here"),
        ({"tolerances": (0.9, 0.5)}, r"tolerances \(1.0,\) there, \(0.9,\) here"),
    ]:
        with pytest.raises(ValueError, match=f"another run .{differing}"):
            next(Edge().run(checkpoint=path, **changed))


@pytest.mark.parametrize("foreign", [[1], {"a": 1}, {"populations": [{"a": 1}]}, 1.0, "text"])
def test_a_checkpoint_of_another_program_is_refused(tmp_path, foreign):
    storage.save(tmp_path / "run", foreign)
    with pytest.raises(ValueError, match="run belongs to another program: delete it"):
        next(Edge().run(checkpoint=tmp_path / "run"))


def test_a_checkpoint_of_another_observation_is_refused(tmp_path):
    path, settings = tmp_path / "abc", {"particles": 50, "tolerances": (1.0, 0.5)}
    told = {"observed": [0.1, math.nan], "simulator": "edge", "box": {"low": (0, 1)}}
    whole = list(Edge().run(**settings))
    next(Edge().run(checkpoint=path, identity=told, **settings))
    for other, differing in [
        (
            told | {"observed": [0.2, math.nan]},
            r"identity 'observed' \[0.1, nan\] there, \[0.2, nan",
        ),
        (told | {"simulator": "cliff"}, "identity 'simulator' edge there, cliff here"),
        (told | {"noise": 0.3}, "identity 'noise' absent there, 0.3 here"),
        (None, r"identity 'observed' .* there, absent here; .*'simulator'.*'box'"),
    ]:
        with pytest.raises(ValueError, match=f"another run .{differing}"):
            next(Edge().run(checkpoint=path, identity=other, **settings))
    again = told | {"box": {"low": [0, 1]}}
    assert all(map(same, whole, Edge().run(checkpoint=path, identity=again, **settings)))


def test_a_checkpoint_without_identity_is_not_that_of_an_observation(tmp_path):
    path, settings = tmp_path / "abc", {"particles": 50, "tolerances": (1.0,)}
    (population,) = Edge().run(checkpoint=path, **settings)
    assert same(population, next(Edge().run(checkpoint=path, **settings)))
    with pytest.raises(ValueError, match=r"identity 'observed' absent there, 0\.1 here"):
        next(Edge().run(checkpoint=path, identity={"observed": 0.1}, **settings))


@pytest.mark.parametrize("what", [torch.ones(2), np.ones(2), {1, 2}])
def test_an_identity_of_other_things_is_refused(what):
    with pytest.raises(TypeError, match=r"numbers, strings and lists .*use .tolist\(\)"):
        next(Edge().run(identity={"observed": what}))


def test_resampled_particles_follow_the_weights(generator):
    population = Population(
        torch.tensor([[0.0], [1.0], [5.0]]),
        torch.tensor([0.2, 0.5, 0.3]).log(),
        torch.zeros(3),
        1.0,
        3,
        3,
        0,
        0,
    )
    assert population.mean() == pytest.approx(2.0)
    assert population.covariance() == pytest.approx(0.5 + 7.5 - 4)
    assert population.ess == pytest.approx(1 / (0.04 + 0.25 + 0.09))
    drawn = population.resample(20_000, generator)
    for x, w in ((0.0, 0.2), (1.0, 0.5), (5.0, 0.3)):
        assert float((drawn == x).double().mean()) == pytest.approx(w, abs=4 * 0.5 / 20_000**0.5)


def test_geometric_tolerances():
    assert geometric(8.0, 1.0, 0.5) == (8.0, 4.0, 2.0, 1.0)
    assert geometric(8.0, 3.0, 0.5) == (8.0, 4.0, 3.0)
    many = geometric(10.0, 0.1, 0.85)
    assert len(many) == 30
    assert many[-2] == pytest.approx(10 * 0.85**28)
    assert many[-1] == 0.1
    for bad in ((1.0, 2.0, 0.5), (1.0, 0.0, 0.5), (1.0, 0.5, 1.0), (math.inf, 1.0, 0.5)):
        with pytest.raises(ValueError, match="tolerances fall from start to stop"):
            geometric(*bad)


def test_too_few_acceptances_end_with_a_clear_error():
    problem = Edge()
    populations = problem.run(tolerances=(1.0, 0.0), max_simulations=3000)
    assert next(populations).tolerance == 1.0
    with pytest.raises(AcceptanceError, match=r"0 of 1000 .* tolerance 0 .*ions=3000 were used up"):
        next(populations)
    # all that were allowed: what the prior excludes is not simulated, and does not count
    assert problem.simulations == 3000


def test_a_prior_that_accepts_no_proposal_ends_with_a_clear_error():
    class Sieve(Box):
        """Tenths alone, which no kernel meets."""

        def sample(self, n, generator):
            return super().sample(n, generator).mul(10).round() / 10

        def log_prob(self, x):
            return super().log_prob(x).where((x == (10 * x).round() / 10).all(1), -math.inf)

    problem = Edge()
    problem.prior = Sieve(1)
    populations = problem.run(particles=100, max_simulations=5000)
    used = next(populations).simulations
    with pytest.raises(AcceptanceError, match=r"0 of 100 .* proposals .* outside .*ions=5000: al"):
        next(populations)
    assert problem.simulations == used < 5000


def everything_aborts(x, seed):
    return Simulated(torch.full((len(x), 1), math.nan), torch.zeros(len(x)) > 0)


def test_a_simulator_that_always_aborts_ends_with_a_clear_error():
    populations = smc_abc(
        everything_aborts,
        Box(1),
        Edge().distance,
        particles=5,
        tolerances=(math.inf,),
        seed=0,
        max_simulations=100,
    )
    with pytest.raises(AcceptanceError, match="0 of 5 particles"):
        next(populations)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"particles": 1}, "particles ≥ 2"),
        ({"batch": 0}, "batch=0"),
        ({"tolerances": ()}, "tolerances must fall"),
        ({"tolerances": (1.0, 1.0)}, "tolerances must fall"),
        ({"tolerances": (1.0, 2.0)}, "tolerances must fall"),
        ({"tolerances": (1.0, -1.0)}, "not below 0"),
        ({"tolerances": (math.nan,)}, "tolerances must fall"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        next(Edge().run(**changed))


def test_distances_that_are_no_distances_are_refused():
    problem = Edge()
    problem.observed = math.nan
    with pytest.raises(ValueError, match=r"\d+ NaN: is what was observed finite"):
        next(problem.run())
    problem.distance = lambda y: y
    with pytest.raises(ValueError, match=r"distance must give one number .*\(\d+, 1\)"):
        next(problem.run())


def test_a_prior_that_contradicts_itself_is_refused():
    problem = Edge()
    for value in (-math.inf, math.nan):
        problem.prior = Box(1)
        problem.prior.log_prob = lambda x, value=value: torch.full((len(x),), value)
        with pytest.raises(ValueError, match=r"prior.log_prob must be finite where prior.sample"):
            next(problem.run())


def test_a_population_of_one_point_is_refused():
    class Point(Box):
        def sample(self, n, generator):
            return torch.full((n, self.d), 0.5)

    problem = Edge()
    problem.prior = Point(1)
    with pytest.raises(ValueError, match="no positive definite covariance"):
        list(problem.run())


def test_the_kind_of_numbers_is_kept():
    def simulate(x, seed):
        return Simulated(x, torch.ones(len(x)) > 0)

    class Single(Box):
        def sample(self, n, generator):
            return torch.rand(n, self.d, generator=generator, dtype=torch.float32)

        def log_prob(self, x):
            return super().log_prob(x).to(x)

    for population in smc_abc(
        simulate, Single(2), lambda y: y.norm(dim=1), particles=30, tolerances=(0.9, 0.5), seed=0
    ):
        assert population.x.dtype == population.log_weights.dtype == torch.float32

import inspect
import itertools
import math
import pickle
import sys
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Independent, MultivariateNormal, Uniform

from ctdl_lib.dynamics import integrate
from ctdl_lib.metrics import c2st
from experiments.simulation_based_inference import campaigns
from experiments.simulation_based_inference.campaigns import simulate
from experiments.simulation_based_inference.problems import (
    SLCP,
    BoxUniform,
    GaussianMixture,
    LinearGaussian,
    TwoMoons,
    gaussian_kl,
    hilbert,
    normals,
    uniforms,
)

TASKS = [TwoMoons(), GaussianMixture(), SLCP()]
LINEAR = hilbert(3, 4, noise=0.3)
seeds = partial(campaigns.seeds, seed=0)


def name(task):
    return type(task).__name__


# --- the box


def test_a_box_is_the_uniform_law_of_torch(generator):
    box = BoxUniform((-5.0, 0.0), (2.0, 0.5))
    law = Independent(Uniform(torch.tensor(box.low), torch.tensor(box.high)), 1)
    x = box.sample(1000, generator)
    assert box.d == 2
    assert torch.allclose(box.log_prob(x), law.log_prob(x))
    assert box.inside(x).all()
    for i in range(2):
        law_i = stats.uniform(box.low[i], box.high[i] - box.low[i])
        assert stats.kstest(x[:, i].numpy(), law_i.cdf).pvalue > 1e-3
    assert box.entropy(1, generator).value == pytest.approx(float(law.entropy()))


def test_outside_of_a_box_there_is_no_density():
    box = BoxUniform((0.0, 0.0), (1.0, 2.0))
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.01, 1.0], [0.5, -0.1], [math.nan, 1.0]])
    assert box.inside(x).tolist() == [True, True, False, False, False]
    assert box.log_prob(x).exp().tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_box_keeps_dtypes_and_never_leaves_itself(dtype, generator):
    box = BoxUniform((0.1,), (0.1 + 2**-24,))  # where single precision has hardly any number
    x = box.sample(1000, generator, dtype=dtype)
    assert x.dtype == box.log_prob(x).dtype == dtype
    assert box.inside(x).all()


@pytest.mark.parametrize(
    ("low", "high"), [((), ()), ((0.0,), (0.0,)), ((0.0, 0.0), (1.0,)), ((0.0,), (math.nan,))]
)
def test_an_empty_box_is_refused(low, high):
    with pytest.raises(ValueError, match="low"):
        BoxUniform(low, high)


# --- random numbers by seed


def splitmix64(state, n):
    """The numbers of the published generator, one after the other, in Python's integers."""
    mask, out = 2**64 - 1, []
    for _ in range(n):
        state = state + 0x9E3779B97F4A7C15 & mask
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        out.append(z ^ z >> 31)
    return out


def test_numbers_of_a_seed_are_those_of_splitmix64():
    """Of the state 1234567 the published outputs are known; a seed is hashed to a state first."""
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]
    found = uniforms(seeds(5), 7)
    for seed, row in zip(seeds(5).tolist(), found, strict=True):
        state = splitmix64(seed - 0x9E3779B97F4A7C15 & 2**64 - 1, 1)[0]  # the hash of the seed
        wanted = [z / 2**64 for z in splitmix64(state, 7)]
        assert np.abs(row - wanted).max() <= 2.0**-52


@pytest.mark.parametrize("kind", ["of a sequence", "0, 1, 2, …", "multiples of the counter"])
def test_uniforms_are_uniform_and_independent(kind):
    n, k = 100_000, 4
    step = np.uint64(0x9E3779B97F4A7C15)
    given = {
        "of a sequence": seeds(n),
        "0, 1, 2, …": np.arange(n, dtype=np.uint64),
        "multiples of the counter": np.arange(n, dtype=np.uint64) * step,
    }[kind]
    u = uniforms(given, k)
    assert u.min() > 0
    assert u.max() < 1
    assert min(stats.kstest(column, "uniform").pvalue for column in u.T) > 1e-3 / k
    # two numbers of a seed, and the same number of two neighbouring seeds: each on a 16 x 16 board
    pairs = [u[:, [i, j]] for i, j in itertools.combinations(range(k), 2)]
    pairs += [np.stack([u[:-1:2, i], u[1::2, i]], 1) for i in range(k)]
    for pair in pairs:
        board = np.histogram2d(*pair.T, bins=16, range=[[0, 1]] * 2)[0]
        assert stats.chisquare(board.ravel()).pvalue > 1e-3 / len(pairs)
    assert len(np.unique(u)) == u.size


def test_normals_are_normal_and_uncorrelated():
    z = normals(seeds(100_000), 4)
    assert min(stats.kstest(column, "norm").pvalue for column in z.T) > 1e-3 / 4
    assert np.abs(np.corrcoef(z.T) - np.eye(4)).max() < 4 / math.sqrt(len(z))
    assert np.allclose(z, stats.norm.ppf(uniforms(seeds(100_000), 4)), rtol=1e-12, atol=1e-12)


def test_more_numbers_of_more_seeds_begin_as_fewer():
    few, many = uniforms(seeds(10), 3), uniforms(seeds(100), 8)
    assert np.array_equal(few, many[:10, :3])


def test_seeds_are_numbers_of_64_bits_without_sign():
    for bad in (np.arange(3), np.arange(3.0), [1, 2]):
        with pytest.raises(TypeError, match="uint64"):
            inspect.unwrap(uniforms)(bad, 2)


# --- what all simulators promise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("task", [hilbert(9, 7, noise=0.3), *TASKS], ids=name)
def test_a_simulation_depends_on_its_row_and_seed_alone(task, dtype, generator):
    """To the last bit, in any order and any parts."""
    x = task.prior.sample(300, generator, dtype=dtype)
    whole = task.simulate(x, seeds(300))
    order = torch.randperm(300, generator=generator)
    assert torch.equal(task.simulate(x[order], seeds(300)[order]).y, whole.y[order])
    for chunk in (1, 3, 64):
        assert torch.equal(simulate(task.simulate, x, seed=0, chunk=chunk).y, whole.y)
    assert whole.completed.all()
    assert not torch.equal(task.simulate(x, seeds(300, seed=1)).y, whole.y)


@pytest.mark.parametrize("task", [LINEAR, *TASKS], ids=name)
def test_a_simulator_keeps_the_dtype_and_can_be_sent_to_workers(task, generator):
    x = task.prior.sample(20, generator, dtype=torch.float32)
    y = pickle.loads(pickle.dumps(task)).simulate(x, seeds(20)).y
    assert y.dtype == task.log_likelihood(x, y).dtype == torch.float32
    assert torch.allclose(y.double(), task.simulate(x.double(), seeds(20)).y, atol=1e-4)


@pytest.mark.parametrize("task", [LINEAR, *TASKS], ids=name)
def test_what_is_not_finite_was_not_completed(task, generator):
    x = task.prior.sample(3, generator)
    x[1] = 1.5e308  # too large for a sum or a square
    y, completed = task.simulate(x, seeds(3))
    sums = not isinstance(task, GaussianMixture)
    assert completed.tolist() == [True, not sums, True]
    assert y.isnan().all(1).tolist() == [False, sums, False]


@pytest.mark.parametrize("task", [LINEAR, *TASKS], ids=name)
def test_bad_runs_are_refused_with_a_reason(task, generator):
    x, check = task.prior.sample(3, generator), inspect.unwrap(task.simulate.__func__)
    with pytest.raises(ValueError, match="one seed"):
        check(task, x, seeds(2))
    with pytest.raises(ValueError, match=r"x must be \(n, \d\) .*got \(3, 1\)"):
        check(task, x[:, :1], seeds(3))
    for bad in (math.nan, math.inf):
        x[1, 0] = bad
        with pytest.raises(ValueError, match=r"and finite, got \(3, \d\), finite: False"):
            check(task, x, seeds(3))


def grid(low, high, n):
    """The midpoints of n x n cells of a rectangle, and the area of a cell."""
    sides = [low[i] + (torch.arange(n) + 0.5) * (high[i] - low[i]) / n for i in range(2)]
    area = (high[0] - low[0]) * (high[1] - low[1]) / n**2
    return torch.cartesian_prod(*sides), area


MIDDLE = [0.25 - 0.3 / math.sqrt(2), -0.9 / math.sqrt(2)]  # of the ring of (0.3, -0.6)


@pytest.mark.parametrize(
    ("task", "x", "centre", "half"),
    [
        (TwoMoons(), [0.3, -0.6], MIDDLE, 0.2),  # the edge of half a ring is that of a cell
        (GaussianMixture(), [2.0, -7.0], [2.0, -7.0], 7.0),
    ],
    ids=["moons", "mixture"],
)
def test_simulations_fill_the_plane_as_the_likelihood_says(task, x, centre, half):
    """The likelihood integrates to 1, and over each cell of a board to the share of samples."""
    n, fine, coarse = 40_000, 1500, 15
    x = torch.tensor([x])
    y = task.simulate(x.expand(n, 2), seeds(n)).y
    low, high = [c - half for c in centre], [c + half for c in centre]
    points, area = grid(low, high, fine)
    mass = (task.log_likelihood(x.expand(len(points), 2), points).exp() * area).reshape(fine, fine)
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
    blocks = mass.reshape(coarse, fine // coarse, coarse, fine // coarse).sum((1, 3)).numpy()
    counts = np.histogram2d(*y.T.numpy(), bins=coarse, range=list(zip(low, high, strict=True)))[0]
    often = blocks * n >= 10
    expected = np.append(blocks[often], 1 - blocks[often].sum())
    observed = np.append(counts[often], n - counts[often].sum())
    assert stats.chisquare(observed, n * expected).pvalue > 1e-3


@pytest.mark.parametrize("task", [LINEAR, GaussianMixture(), SLCP()], ids=name)
def test_the_score_of_a_smooth_likelihood_has_mean_zero(task):
    """∫∇ₓp(y | x) dy = 0, so simulations at x give ∇ₓ log p(y | x) the mean 0, for any x."""
    x = torch.linspace(0.4, 0.9, task.prior.d if task is not LINEAR else 4)
    n = 20_000
    y = task.simulate(x.expand(n, -1), seeds(n)).y
    points = x.expand(n, -1).clone().requires_grad_()
    score = torch.autograd.grad(task.log_likelihood(points, y).sum(), points)[0]
    assert (score.mean(0).abs() < 4 * score.std(0) / math.sqrt(n)).all()


def test_slcp_is_four_normal_points(generator):
    x = SLCP.prior.sample(6, generator)
    y = SLCP().simulate(x, seeds(6)).y
    for row, data in zip(x, y, strict=True):
        s1, s2, rho = row[2] ** 2, row[3] ** 2, torch.tanh(row[4])
        S = torch.stack([s1**2 + 1e-6, rho * s1 * s2, rho * s1 * s2, s2**2 + 1e-6]).reshape(2, 2)
        by_torch = MultivariateNormal(row[:2], S).log_prob(data.reshape(4, 2)).sum()
        assert torch.allclose(SLCP().log_likelihood(row[None], data[None])[0], by_torch)


def test_points_of_slcp_have_their_mean_and_covariance():
    x, n = torch.tensor([0.5, -1.0, 1.2, -0.9, 0.7]), 50_000
    y = SLCP().simulate(x.expand(n, 5), seeds(n)).y
    s1, s2 = 1.44, 0.81
    covariance = math.tanh(0.7) * s1 * s2 * torch.ones(2, 2)
    covariance.diagonal().copy_(torch.tensor([s1**2, s2**2]))
    wanted = torch.block_diag(*[covariance] * 4)
    error = y.T.cov() - wanted
    deviation = (wanted**2 + torch.outer(wanted.diag(), wanted.diag())).sqrt() / math.sqrt(n)
    assert (error.abs() < 4.5 * deviation + 2e-6).all()
    assert ((y.mean(0) - x[:2].repeat(4)).abs() < 4 * (wanted.diag() / n).sqrt()).all()


def test_the_likelihood_of_the_moons_has_a_side_behind_the_ring():
    """r < 0 has probability 1e-23, so the density there is positive, if hardly so."""
    x, y = torch.zeros(1, 2), torch.tensor([[0.25 - 0.02, 0.0]])
    r = -0.02
    by_hand = stats.norm(0.1, 0.01).logpdf(r) - math.log(math.pi * abs(r))
    assert float(TwoMoons().log_likelihood(x, y)) == pytest.approx(by_hand)


# --- posteriors that ship with sbibm


def exact_posterior(task, y, draws, generator):
    """Samples of the posterior of each y: parameters that end there with some noise, if allowed.

    Noise is what the simulator adds at x = 0. Of x = y − noise all that lie in the box are taken;
    for the moons the same in rotated coordinates, of which the first has lost its sign.
    """
    rows = y.repeat_interleave(draws, 0)
    x, left = torch.empty(len(rows), 2), torch.arange(len(rows))
    while len(left):
        entropy = int(torch.randint(2**62, (), generator=generator))
        noise = task.simulate(torch.zeros(len(left), 2), seeds(len(left), seed=entropy)).y
        step = rows[left] - noise
        possible = torch.ones_like(left).bool()
        if isinstance(task, TwoMoons):
            side = torch.randint(2, left.shape, generator=generator) * 2 - 1
            total, across, possible = side * step[:, 0], step[:, 1], step[:, 0] <= 0
            step = torch.stack([total - across, total + across], 1) / math.sqrt(2)
        accepted = possible & task.prior.inside(step)
        x[left[accepted]] = step[accepted]
        left = left[~accepted]
    return x.reshape(len(y), draws, 2)


def grid_posterior(task, y, low, high, n):
    """Means, covariances and marginal distribution functions of the posterior in a rectangle."""
    points, _ = grid(low, high, n)
    density = (task.log_likelihood(points, y[None]) + task.prior.log_prob(points)).exp()
    return points, density / density.sum()


def compare_marginals(points, weight, samples):
    """The p-values of Kolmogorov and Smirnov for samples against a weighted grid."""
    found = []
    for direction in (points.new_tensor(v) for v in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))):
        place, group = (points @ direction).unique(return_inverse=True)
        mass = torch.zeros_like(place).index_add(0, group, weight)
        below = mass.cumsum(0) - mass / 2  # at the middle of cells

        def cdf(s, place=place, below=below):
            return np.interp(s, place.numpy(), below.numpy())

        found.append(stats.kstest((samples @ direction).numpy(), cdf).pvalue)
    return found


@pytest.mark.parametrize("task", [TwoMoons(), GaussianMixture()], ids=name)
@pytest.mark.parametrize("observation", [1, 5, 10])
def test_shipped_and_own_posteriors_are_those_of_a_grid(task, observation, generator):
    """Observations 5 and 10 of the moons and 1, 5, 10 of the mixture are cut by the box."""
    y, shipped, _ = task.reference(observation)
    own = exact_posterior(task, y[None], 10_000, generator)[0]
    low = [max(a, float(s) - 0.2) for a, s in zip(task.prior.low, shipped.amin(0), strict=True)]
    high = [min(b, float(s) + 0.2) for b, s in zip(task.prior.high, shipped.amax(0), strict=True)]
    points, weight = grid_posterior(task, y, low, high, 1200)
    for samples in (shipped, own):
        assert task.prior.inside(samples).all()
        assert min(compare_marginals(points, weight, samples)) > 1e-3
        mean = weight @ points
        covariance = (points - mean).T @ ((points - mean) * weight[:, None])
        error = (samples.mean(0) - mean) / (covariance.diag() / len(samples)).sqrt()
        assert error.abs().max() < 4
        assert torch.allclose(samples.T.cov(), covariance, rtol=0.08, atol=0.005)
    assert abs(c2st(shipped[:1000], own[:1000], seed=0) - 0.5) < 4 * 0.5 / math.sqrt(2000)


@pytest.mark.parametrize("observation", range(1, 11))
def test_shipped_posteriors_of_the_mixture_have_the_right_shares_and_shape(observation, generator):
    """Half of the noise is ten times narrower, and the box takes more of the wider half."""
    y, shipped, _ = GaussianMixture().reference(observation)
    own = exact_posterior(GaussianMixture(), y[None], 40_000, generator)[0]
    far, own_far = ((s - y).norm(dim=1) for s in (shipped, own))
    mass = [
        float(np.prod(stats.norm.cdf(10 - y, scale=s) - stats.norm.cdf(-10 - y, scale=s)))
        for s in (1, 0.1)
    ]
    near = [stats.chi2(2).cdf((0.3 / s) ** 2) for s in (1, 0.1)]
    assert (10 - y.abs()).min() > 0.3  # so that the box contains this disc
    share = sum(near) / sum(mass)
    error = 4 * math.sqrt(share * (1 - share) / len(far))
    assert float((far < 0.3).double().mean()) == pytest.approx(share, abs=error)
    assert stats.ks_2samp(far, own_far).pvalue > 1e-3
    angle, own_angle = (torch.atan2(*(s - y).T) for s in (shipped, own))
    assert stats.ks_2samp(angle, own_angle).pvalue > 1e-3


@pytest.mark.parametrize("observation", range(1, 11))
def test_shipped_posteriors_of_the_moons_are_those_of_own_samples(observation, generator):
    y, shipped, _ = TwoMoons().reference(observation)
    own = exact_posterior(TwoMoons(), y[None], 40_000, generator)[0]
    for direction in torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]]):
        assert stats.ks_2samp(shipped @ direction, own @ direction).pvalue > 2e-4


def slcp_weights(y, scales, log_density, generator):
    """Parameters with these x₃, x₄, x₅ of some density, and the logarithms of their weights.

    Given them, (x₁, x₂) is normal about the mean of the four points, cut by the box: here x₁ is cut
    first, and then x₂ given x₁.
    """
    x = torch.cat([torch.zeros(len(scales), 2), scales], 1)
    a, b, c = SLCP._cholesky(x)
    mean, log_proposal, shift = y.reshape(4, 2).mean(0), log_density, torch.zeros_like(a)
    for i, deviation in enumerate((a / 2, c / 2)):
        edges = [(edge - mean[i] - shift) / deviation for edge in (-3, 3)]
        low, high = (torch.special.ndtr(edge) for edge in edges)
        u = low + (high - low) * torch.rand(len(x), generator=generator)
        z = torch.special.ndtri(u)
        x[:, i] = mean[i] + shift + deviation * z
        log_proposal = log_proposal - z**2 / 2 - deviation.log() - (high - low).log()
        shift = b / 2 * z
    log_weight = SLCP().log_likelihood(x, y[None]) - log_proposal
    used = SLCP.prior.inside(x) & (scales[:, :2] > 0).all(1) & log_weight.isfinite()
    return x[used], log_weight[used]


def slcp_posterior(y, generator):
    """Weighted samples of the posterior with x₃, x₄ > 0, by importance sampling, three times."""
    scales = torch.rand(100_000, 3, generator=generator) * torch.tensor([3.0, 3.0, 6.0])
    scales[:, 2] -= 3
    x, log_weight = slcp_weights(y, scales, torch.zeros(len(scales)), generator)
    for n, kernels in ((5000, 100), (20_000, 200)):
        chosen = log_weight.softmax(0).multinomial(kernels, replacement=True, generator=generator)
        centres = x[chosen, 2:]
        # kernels shaped as the cloud, some of them wide for the sake of its tails
        L = 0.4 * torch.linalg.cholesky(centres.T.cov() + 1e-6 * torch.eye(3))
        wide = torch.where(torch.rand(n, 1, generator=generator) < 0.2, 3.0, 1.0)
        step = wide * torch.randn(n, 3, generator=generator) @ L.T
        scales = centres[torch.randint(kernels, (n,), generator=generator)] + step
        apart = torch.cdist(scales @ L.inverse().T, centres @ L.inverse().T).square()
        density = 0.8 * (-apart / 2).exp() + 0.2 / 27 * (-apart / 18).exp()
        x, log_weight = slcp_weights(y, scales, density.sum(1).log(), generator)
    return x, log_weight.softmax(0)


@pytest.mark.parametrize("observation", range(1, 11))
def test_shipped_posteriors_of_slcp_are_those_of_importance_sampling(observation, generator):
    y, shipped, _ = SLCP().reference(observation)
    signs = 2 * (shipped[:, 2] > 0) + (shipped[:, 3] > 0).long()
    assert stats.chisquare(signs.bincount(minlength=4).numpy()).pvalue > 1e-3
    theirs = torch.cat([shipped[:, :2], shipped[:, 2:4].abs(), shipped[:, 4:]], 1)
    x, weight = slcp_posterior(y, generator)
    assert 1 / float(weight.square().sum()) > 3000
    for statistic in (lambda x: x, lambda x: x * x, lambda x: x * x.roll(1, 1)):
        mean = weight @ statistic(x)
        variance = weight.square() @ (statistic(x) - mean).square()
        error = (variance + statistic(theirs).var(0) / len(theirs)).sqrt()
        assert ((statistic(theirs).mean(0) - mean).abs() < 4.5 * error).all()
    own = x[weight.multinomial(500, replacement=True, generator=generator)]
    for column, other in zip(theirs.T, own.T, strict=True):
        assert stats.ks_2samp(column, other).pvalue > 1e-3


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_a_reference_is_read_without_the_package(task):
    for observation in range(1, 11):
        y, posterior, truth = task.reference(observation)
        assert posterior.shape == (10_000, task.prior.d)
        assert truth.shape == (task.prior.d,)
        assert task.prior.inside(posterior).all()
        # the parameters that caused y are no outlier of its likelihood
        at_truth = task.log_likelihood(truth[None], y[None])
        assert at_truth > task.log_likelihood(posterior, y[None]).quantile(1e-3)
    assert "sbibm" not in sys.modules


def test_a_missing_package_or_observation_is_named(monkeypatch):
    for observation in (0, 11):
        with pytest.raises(ValueError, match="observation"):
            TwoMoons().reference(observation)
    monkeypatch.setitem(sys.modules, "sbibm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps sbibm==1\.1\.0"):
        TwoMoons().reference(1)


@pytest.mark.parametrize("task", [TwoMoons(), GaussianMixture()], ids=name)
def test_own_posteriors_are_those_of_simulations(task, generator):
    """x from the prior and x from the posterior of its y have one joint law with y."""
    x = task.prior.sample(20_000, generator)
    y = task.simulate(x, seeds(20_000)).y
    again = exact_posterior(task, y, 1, generator)[:, 0]

    def statistics(x):
        likely = task.log_likelihood(x, y)[:, None]
        return torch.cat([x, x - y, x * x.flip(1), y * x.flip(1), likely], 1)

    for one, other in zip(statistics(x)[::2].T, statistics(again)[1::2].T, strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-3


# --- the linear problem


def joint_law(problem):
    """Mean zero, and the covariance of (x, y)."""
    A = problem.matrix
    m, d = A.shape
    return torch.cat(
        [
            torch.cat([torch.eye(d), A.T], 1),
            torch.cat([A, A @ A.T + problem.noise**2 * torch.eye(m)], 1),
        ]
    )


@pytest.mark.parametrize("problem", [LINEAR, hilbert(9, 4, noise=1.0), hilbert(1, 2, noise=0.05)])
def test_the_posterior_is_that_of_the_joint_law(problem, generator):
    m, d = problem.matrix.shape
    joint = joint_law(problem)
    y = torch.randn(5, m, generator=generator)
    gain = torch.linalg.solve(joint[d:, d:], joint[d:, :d]).T
    mean, covariance = problem.posterior(y)
    assert torch.allclose(mean, y @ gain.T, atol=1e-10)
    assert torch.allclose(covariance, joint[:d, :d] - gain @ joint[d:, :d], atol=1e-10)
    # Bayes' rule: posterior x evidence = likelihood x prior
    x = problem.prior.sample(5, generator)
    evidence = MultivariateNormal(torch.zeros(m), joint[d:, d:]).log_prob(y)
    left = problem.posterior_log_prob(x, y) + evidence
    assert torch.allclose(left, problem.log_likelihood(x, y) + problem.prior.log_prob(x))


def test_simulations_of_the_linear_problem_have_the_joint_law(generator):
    n = 100_000
    x = LINEAR.prior.sample(n, generator)
    pairs = torch.cat([x, LINEAR.simulate(x, seeds(n)).y], 1)
    wanted = joint_law(LINEAR)
    deviation = (wanted**2 + torch.outer(wanted.diag(), wanted.diag())).sqrt() / math.sqrt(n)
    assert ((pairs.T.cov() - wanted).abs() < 4.5 * deviation).all()


def test_samples_of_the_posterior_have_its_mean_covariance_and_entropy(generator):
    y, draws = torch.randn(3, 3, generator=generator), 50_000
    samples = LINEAR.posterior_sample(y, draws, generator)
    mean, covariance = LINEAR.posterior(y)
    found = samples.mean(1), torch.stack([s.T.cov() for s in samples])
    assert ((found[0] - mean).abs() < 4.5 * (covariance.diag() / draws).sqrt()).all()
    product = torch.outer(covariance.diag(), covariance.diag())
    deviation = (covariance**2 + product).sqrt() / math.sqrt(draws)
    assert ((found[1] - covariance).abs() < 4.5 * deviation).all()
    values = -LINEAR.posterior_log_prob(samples[0], y[:1].expand(draws, 3))
    error = 4 * float(values.std()) / math.sqrt(draws)
    assert float(values.mean()) == pytest.approx(LINEAR.posterior_entropy(), abs=error)


def test_the_prior_is_recovered_on_average(generator):
    """E over y of the posterior covariance plus the covariance of its mean is I."""
    covariance = joint_law(LINEAR)[4:, 4:]
    mean_of_unit = LINEAR.posterior(torch.eye(3)).mean  # linear in y
    total = LINEAR.posterior(torch.eye(3)).covariance + mean_of_unit.T @ covariance @ mean_of_unit
    assert torch.allclose(total, torch.eye(4))


def test_the_exact_potential_obeys_hamilton_jacobi(generator):
    x, y = torch.randn(2, 20, 4, generator=generator)[0], torch.randn(20, 3, generator=generator)
    phi = LINEAR.potential().given(y)
    for t in (0.0, 0.3, torch.rand(20), 1.0):
        value = phi.derivatives(t, x)
        scale = value.dx.square().sum(1)
        assert torch.allclose(value.dt - 0.5 * scale, torch.zeros(20), atol=1e-10)


def test_the_exact_potential_moves_the_posterior_to_the_standard_normal_law(generator):
    """And its Laplacian gives the density along the way: log p(x | y) = log N(z) − ∫ΔΦ dt."""
    y = torch.randn(6, 3, generator=generator)
    x = LINEAR.posterior_sample(y, 1, generator)[:, 0]
    phi = LINEAR.potential().given(y)
    # one step is exact: along a straight path the velocity is constant
    z = integrate(lambda t, x: -phi.gradient(t, x).dx, x, 0.0, 1.0, steps=1)
    mean, covariance = LINEAR.posterior(y)
    root = torch.linalg.inv(torch.linalg.cholesky(covariance))
    white = (x - mean) @ root.T
    assert torch.allclose(z.norm(dim=1), white.norm(dim=1), atol=1e-7)  # equal up to a rotation
    jacobian = torch.autograd.functional.jacobian(
        lambda x: x - phi.gradient(0.0, x).dx, x, strict=False
    )
    symmetric = torch.stack([jacobian[i, :, i] for i in range(6)])
    assert torch.allclose(symmetric, symmetric.mT, atol=1e-10)  # the gradient of a convex function
    assert (torch.linalg.eigvalsh(symmetric) > 0).all()
    laplacian = integrate(
        lambda t, s: torch.cat([-phi.gradient(t, s[:, :4]).dx, laplace(phi, t, s[:, :4])], 1),
        torch.cat([x, torch.zeros(6, 1)], 1), 0.0, 1.0, steps=50,
    )  # fmt: skip
    log_normal = -0.5 * z.square().sum(1) - 2 * math.log(2 * math.pi)
    exact = LINEAR.posterior_log_prob(x, y)
    assert torch.allclose(log_normal - laplacian[:, 4], exact, atol=1e-7)


def laplace(phi, t, x):
    return phi.derivatives(t, x).laplacian[:, None]


def test_the_divergence_of_normal_laws_is_that_of_the_formula_and_of_sampling(generator):
    factors = torch.randn(2, 3, 3, generator=generator)
    S0, S1 = factors @ factors.mT + torch.eye(3)
    m0, m1 = torch.randn(2, 3, generator=generator)
    inverse, shift = S1.inverse(), m1 - m0
    by_hand = (inverse @ S0).trace() + shift @ inverse @ shift - 3 + S1.logdet() - S0.logdet()
    found = gaussian_kl(m0, S0, m1, S1)
    assert torch.allclose(found, by_hand / 2)
    x = m0 + torch.randn(100_000, 3, generator=generator) @ torch.linalg.cholesky(S0).T
    laws = MultivariateNormal(m0, S0), MultivariateNormal(m1, S1)
    ratio = laws[0].log_prob(x) - laws[1].log_prob(x)
    assert abs(ratio.mean() - found) < 4 * ratio.std() / math.sqrt(len(x))
    assert gaussian_kl(m0, S0, m0, S0).abs() < 1e-12
    many = gaussian_kl(m0.expand(4, 3), S0, torch.stack([m1, m0, m1, m0]), S1[None])
    assert torch.allclose(many[[0, 2]], found)


def test_bad_linear_problems_are_refused():
    for matrix, noise in ((torch.ones(2, 2), 0.0), (torch.full((2, 2), math.nan), 1.0)):
        with pytest.raises(ValueError, match="must be"):
            LinearGaussian(matrix, noise)
    with pytest.raises(ValueError, match="at least 1"):
        hilbert(0, 2, noise=1.0)
    with pytest.raises(ValueError, match="covariance"):
        gaussian_kl(torch.zeros(2), -torch.eye(2), torch.zeros(2), torch.eye(2))

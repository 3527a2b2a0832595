import inspect
import itertools
import math
import warnings

import pytest
import torch
from scipy import stats

from experiments.simulation_based_inference.calibration import (
    _probability,
    holm,
    leakage,
    rank_band,
    rank_coverage,
    sbc_ranks,
    tarp,
    tarp_ranks,
    uniformity_pvalues,
)
from experiments.simulation_based_inference.problems import BoxUniform, hilbert

LINEAR = hilbert(3, 2, noise=0.5)


def exact(n, draws, generator, *, widened=1.0, shifted=0.0):
    """True parameters, their data, and samples of the posterior, possibly made wrong."""
    x = LINEAR.prior.sample(n, generator)
    noise = LINEAR.noise * torch.randn(n, 3, generator=generator)
    y = x @ LINEAR.matrix.T + noise
    mean, covariance = LINEAR.posterior(y)
    samples = LINEAR.posterior_sample(y, draws, generator)
    deviation = covariance.diag().sqrt()
    samples = mean[:, None] + widened * (samples - mean[:, None]) + shifted * deviation
    return x, y, samples


# --- ranks


def test_ranks_are_counted():
    samples, x = torch.randn(4, 9, 2), torch.randn(4, 2)
    found = sbc_ranks(samples, x)
    for i, j in itertools.product(range(4), range(2)):
        assert found[i, j] == sum(float(s) < float(x[i, j]) for s in samples[i, :, j])


def test_ranks_of_exact_posteriors_are_uniform(generator):
    """At every one of the 20 values, and jointly by the test."""
    x, _, samples = exact(20_000, 19, generator)
    ranks = sbc_ranks(samples, x)
    for column in ranks.T:
        assert stats.chisquare(column.bincount(minlength=20).numpy()).pvalue > 1e-3
    assert (uniformity_pvalues(ranks, 19) > 1e-3).all()


@pytest.mark.parametrize(("n", "draws", "bins"), [(200, 99, 20), (100, 19, 10), (1000, 99, 20)])
def test_pvalues_of_exact_posteriors_are_uniform(n, draws, bins, generator):
    """The error of the first kind, over 4000 repetitions of the whole test."""
    repetitions = 4000
    ranks = torch.randint(draws + 1, (n, repetitions), generator=generator)
    p = uniformity_pvalues(ranks, draws, bins=bins)
    for level in (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        error = 4 * math.sqrt(level * (1 - level) / repetitions)
        assert float((p < level).double().mean()) == pytest.approx(level, abs=error)


def test_pvalues_of_exact_posteriors_are_uniform_with_the_posterior_itself(generator):
    p = []
    for _ in range(200):
        x, _, samples = exact(200, 99, generator)
        p.append(uniformity_pvalues(sbc_ranks(samples, x), 99))
    p = torch.stack(p)
    assert stats.kstest(p[:, 0].numpy(), "uniform").pvalue > 1e-3
    error = 4 * math.sqrt(0.05 * 0.95 / 200)
    assert float((p[:, 1] < 0.05).double().mean()) == pytest.approx(0.05, abs=error)


WRONG = {
    "too narrow": {"widened": 0.7},
    "too wide": {"widened": 1.5},
    "shifted": {"shifted": 0.4},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_posteriors_are_rejected(name, generator):
    x, _, samples = exact(1000, 99, generator, **WRONG[name])
    ranks = sbc_ranks(samples, x)
    assert (holm(uniformity_pvalues(ranks, 99)) < 1e-6).all()
    share = ranks.double() / 99
    if "shifted" in name:
        assert (share.mean(0) < 0.45).all()
    else:  # the variance of a uniform law is 1/12
        assert ((share.var(0) > 1 / 12) == (name == "too narrow")).all()


def test_a_pvalue_is_that_of_scipy(generator):
    ranks = torch.randint(100, (500, 3), generator=generator)
    found = uniformity_pvalues(ranks, 99, bins=10)
    for column, p in zip(ranks.T, found, strict=True):
        counts = (column // 10).bincount(minlength=10).numpy()
        assert float(p) == pytest.approx(stats.chisquare(counts).pvalue, rel=1e-9)


def test_bins_divide_what_ranks_can_be(generator):
    ranks = torch.randint(101, (500, 1), generator=generator)
    with pytest.raises(ValueError, match="take 99 samples"):
        uniformity_pvalues(ranks, 100)  # 101 is prime
    with pytest.raises(ValueError, match="divide"):
        uniformity_pvalues(ranks, 100, bins=10)
    assert uniformity_pvalues(ranks, 100, bins=101).shape == (1,)
    # bins that do not divide hold 11, 10, ..., 10 of 101 values: uniform ranks do not fill them so
    many = torch.arange(101).repeat(10_000)
    counts = torch.histogram(many.double(), 10, range=(0.0, 100.0)).hist.numpy()
    assert stats.chisquare(counts).pvalue < 1e-6
    assert stats.kstest(many.double().numpy(), stats.uniform(0, 100).cdf).pvalue < 1e-6


def test_bins_are_chosen_by_the_number_of_ranks(generator):
    for n, bins in ((1000, 20), (150, 10), (40, 4), (20, 2)):
        ranks = torch.randint(100, (n, 1), generator=generator)
        chosen = uniformity_pvalues(ranks, 99)
        assert torch.equal(chosen, uniformity_pvalues(ranks, 99, bins=bins))
    with pytest.raises(ValueError, match="bins"):
        uniformity_pvalues(ranks[:19], 99)


def test_ties_are_broken_at_random_or_refused(generator):
    """Parameters that live on a lattice: without it, ranks are too low."""
    x = torch.randint(3, (5000, 1), generator=generator).double()
    samples = torch.randint(3, (5000, 19, 1), generator=generator).double()
    with pytest.raises(ValueError, match="generator"):
        sbc_ranks(samples, x)
    ranks = sbc_ranks(samples, x, generator=generator)
    assert uniformity_pvalues(ranks, 19) > 1e-3
    low = (samples < x[:, None]).sum(1)
    assert uniformity_pvalues(low, 19) < 1e-6
    # all samples equal: any rank
    ranks = sbc_ranks(torch.zeros(5000, 19, 1), torch.zeros(5000, 1), generator=generator)
    assert uniformity_pvalues(ranks, 19) > 1e-3
    # one tie among many rows counts as above, silently
    x, samples = torch.rand(1000, 1), torch.rand(1000, 19, 1)
    samples[0, 3] = x[0]
    assert sbc_ranks(samples, x)[0] == (samples[0] < x[0]).sum()


# --- many tests at once


def test_holm_is_the_closed_test_of_bonferroni():
    """Adjusted: the largest of |S| min over S of p, over all sets S of hypotheses with i in S."""
    for p in (torch.tensor([0.01, 0.04, 0.03, 0.005]), torch.rand(5), torch.tensor([0.3])):
        d = len(p)
        for i in range(d):
            sets = [
                s for k in range(1, d + 1) for s in itertools.combinations(range(d), k) if i in s
            ]
            by_hand = max(min(1.0, len(s) * min(float(p[j]) for j in s)) for s in sets)
            assert float(holm(p)[i]) == pytest.approx(by_hand)


def test_holm_rejects_the_right_at_most_as_often_as_it_says(generator):
    """Also where all tests are the same one."""
    p = torch.rand(20_000, 4, generator=generator)
    least = torch.stack([holm(row).min() for row in p])
    exact_rate = 1 - (1 - 0.05 / 4) ** 4
    error = 4 * math.sqrt(0.05 * 0.95 / 20_000)
    assert float((least < 0.05).double().mean()) == pytest.approx(exact_rate, abs=error)
    assert float(holm(p[0, :1].expand(4)).min()) == pytest.approx(min(1.0, 4 * float(p[0, 0])))


# --- bands


@pytest.mark.parametrize(("n", "levels"), [(50, 9), (400, 99)])
def test_a_band_holds_as_often_as_it_says(n, levels, generator):
    alpha = torch.arange(1, levels + 1) / (levels + 1)
    low, high = rank_band(n, alpha, level=0.9)
    repetitions = 5000
    ranks = torch.randint(levels + 1, (repetitions, n), generator=generator)
    counts = torch.zeros(repetitions, levels + 1).scatter_add(1, ranks, torch.ones(repetitions, n))
    share = counts.cumsum(1)[:, :-1] / n
    inside = ((share >= low - 1e-12) & (share <= high + 1e-12)).all(1).double().mean()
    held = _probability(n, alpha, (low * n).round().long(), (high * n).round().long())
    error = 4 * math.sqrt(0.9 * 0.1 / repetitions)
    assert float(inside) == pytest.approx(held, abs=error)
    assert 0.9 <= held < 0.93  # counts are whole: one more at some level is all that could be less
    # narrower at the ends than the band of one width, of Dvoretzky, Kiefer, Wolfowitz and Massart
    width = 2 * math.sqrt(math.log(2 / 0.1) / (2 * n))
    assert max(high[0] - low[0], high[-1] - low[-1]) < 0.75 * width


def test_a_band_at_one_level_is_an_interval_of_the_binomial_law():
    low, high = rank_band(100, torch.tensor([0.3]), level=0.95)
    interval = stats.binom(100, 0.3).interval(0.95)
    assert (float(low) * 100, float(high) * 100) == pytest.approx(interval)


def test_a_band_knows_the_ends_of_the_curve():
    low, high = rank_band(30, torch.tensor([0.0, 0.5, 1.0]), level=0.9)
    assert (float(low[0]), float(high[0])) == (0.0, 0.0)
    assert (float(low[2]), float(high[2])) == (1.0, 1.0)


def test_the_probability_of_a_band_is_that_of_counting():
    """Of four numbers and two levels all 81 cases are at hand."""
    alpha, low, high = torch.tensor([0.2, 0.5]), torch.tensor([0, 1]), torch.tensor([1, 3])
    p, total = (0.2, 0.3, 0.5), 0.0
    for case in itertools.product(range(3), repeat=4):
        first, second = case.count(0), case.count(0) + case.count(1)
        if first <= 1 and 1 <= second <= 3:
            total += math.prod(p[i] for i in case)
    assert _probability(4, alpha, low, high) == pytest.approx(total, rel=1e-12)


# --- TARP


def corners(x, generator):
    return 3 * (2 * torch.rand(x.shape, generator=generator) - 1)


def inside_band(curve, n, level=0.999):
    low, high = rank_band(n, curve.alpha[1:-1], level=level)
    inner = curve.coverage[1:-1]
    return bool(((inner >= low - 1e-12) & (inner <= high + 1e-12)).all())


def test_the_coverage_of_exact_posteriors_is_on_the_diagonal(generator):
    x, _, samples = exact(1000, 49, generator)
    references = corners(x, generator)
    curve = tarp(samples, x, references=references)
    assert (curve.coverage[0], curve.coverage[-1]) == (0, 1)
    assert inside_band(curve, 1000)
    assert inside_band(tarp(samples, x, references=references, scale=torch.ones(2)), 1000)


@pytest.mark.parametrize("name", WRONG)
def test_the_coverage_of_wrong_posteriors_is_off_the_diagonal(name, generator):
    x, _, samples = exact(1000, 49, generator, **WRONG[name])
    assert not inside_band(tarp(samples, x, references=corners(x, generator)), 1000)


def test_curves_of_ranks_are_on_or_off_the_diagonal_too(generator):
    x, _, samples = exact(1000, 49, generator)
    assert inside_band(rank_coverage(sbc_ranks(samples, x)[:, 0], 49), 1000)
    x, _, samples = exact(1000, 49, generator, shifted=0.4)
    assert not inside_band(rank_coverage(sbc_ranks(samples, x)[:, 0], 49), 1000)


def test_the_prior_passes_unless_references_depend_on_the_data(generator):
    """Coverage with references that are independent of y is as blind to it as ranks are."""
    x, y, _ = exact(2000, 1, generator)
    prior = torch.randn(2000, 49, 2, generator=generator)
    assert inside_band(tarp(prior, x, references=corners(x, generator)), 2000)
    assert (uniformity_pvalues(sbc_ranks(prior, x), 49) > 1e-3).all()
    near = LINEAR.posterior(y).mean  # a reference that knows y and not x
    assert not inside_band(tarp(prior, x, references=near), 2000)
    samples = LINEAR.posterior_sample(y, 49, generator)
    assert inside_band(tarp(samples, x, references=near), 2000)


def test_distances_are_counted_in_units_of_the_scale(generator):
    x, _, samples = exact(50, 9, generator)
    references, scale = corners(x, generator), torch.tensor([0.1, 10.0])
    ranks = tarp_ranks(samples, x, references=references, scale=scale)
    for i in range(50):
        radius = math.dist((x[i] / scale).tolist(), (references[i] / scale).tolist())
        far = [
            math.dist((s / scale).tolist(), (references[i] / scale).tolist()) for s in samples[i]
        ]
        assert ranks[i] == sum(f < radius for f in far)
    # units of x do not matter where the scale is that of x
    units = torch.tensor([1000.0, 0.01])
    a = tarp_ranks(samples, x, references=references)
    b = tarp_ranks(samples * units, x * units, references=references * units)
    assert torch.equal(a, b)


def test_a_coverage_is_the_distribution_function_of_ranks(generator):
    ranks = torch.randint(10, (200,), generator=generator)
    alpha, coverage = rank_coverage(ranks, 9)
    assert torch.allclose(alpha, torch.arange(11) / 10)
    for k in range(11):
        assert float(coverage[k]) == pytest.approx(float((ranks < k).double().mean()))


# --- the same by the package sbi


@pytest.fixture(scope="module")
def sbi():
    """Its functions for samples at hand; what they call is public only with a trained posterior."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("sbi")
        from sbi.diagnostics import sbc, tarp
    return sbc, tarp


def test_ranks_are_those_of_sbi(sbi, generator):
    x, y, samples = exact(200, 99, generator)
    theirs = sbi[0]._run_sbc(x, y, samples.transpose(0, 1), "marginals", False)
    assert torch.equal(sbc_ranks(samples, x), theirs.long())


@pytest.mark.parametrize("name", ["right", *WRONG])
def test_pvalues_agree_in_kind_with_those_of_sbi(sbi, name, generator):
    """Theirs are by Kolmogorov and Smirnov, which is nearly right for many draws and few x."""
    x, _, samples = exact(300, 999, generator, **WRONG.get(name, {}))
    ranks = sbc_ranks(samples, x)
    theirs = sbi[0].check_uniformity_frequentist(ranks, 999)
    ours = uniformity_pvalues(ranks, 999)
    if name == "right":
        assert min(ours.min(), theirs.min()) > 1e-2
    else:
        assert max(ours.max(), theirs.max()) < 1e-2


def test_coverage_is_that_of_sbi(sbi, generator):
    """On their grid of credibilities, which goes from the least to the greatest share of draws."""
    x, _, samples = exact(500, 99, generator, widened=1.3)
    references = corners(x, generator)
    ranks = tarp_ranks(samples, x, references=references, scale=torch.ones(2))
    theirs, grid = sbi[1]._run_tarp(samples.transpose(0, 1), x, references, num_bins=50)
    share = ranks.double() / 99
    assert torch.allclose(grid[[0, -1]], torch.stack([share.min(), share.max()]))
    by_hand = torch.stack([(share < edge - 1e-9).double().mean() for edge in grid[1:-1]])
    assert torch.allclose(theirs[1:-1], by_hand, atol=1e-12)
    curve = tarp(samples, x, references=references, scale=torch.ones(2))
    near = torch.stack([(curve.alpha - edge).abs().argmin() for edge in grid])
    assert (curve.coverage[near] - theirs).abs().max() < 0.05


# --- leakage


def test_leakage_is_the_share_outside_of_the_prior(generator):
    prior = BoxUniform((0.0, -1.0), (1.0, 1.0))
    samples = torch.tensor([[[0.5, 0.0], [2.0, 0.0]], [[0.1, 0.9], [1.0, -1.0]]])
    assert leakage(samples, prior).tolist() == [0.5, 0.0]
    normal = torch.randn(3, 40_000, 2, generator=generator)
    law = stats.norm
    inside = (law.cdf(1) - law.cdf(0)) * (law.cdf(1) - law.cdf(-1))
    found = leakage(normal, prior)
    assert (found - (1 - inside)).abs().max() < 4 * math.sqrt(inside * (1 - inside) / 40_000)
    assert leakage(torch.full((1, 2, 2), math.nan), prior).tolist() == [1.0]


# --- what is refused

ONES, CUBE = torch.ones(5, 2), torch.ones(5, 3, 2)


def bare(function, *args, **kwargs):
    return lambda: inspect.unwrap(function)(*args, **kwargs)


BAD = {
    "no draws": (bare(sbc_ranks, torch.ones(5, 0, 2), ONES), "none of them 0"),
    "no x": (bare(sbc_ranks, torch.ones(0, 3, 2), torch.ones(0, 2)), "none of them 0"),
    "draws first": (bare(sbc_ranks, torch.ones(3, 5, 2), ONES), r"\(n, draws, d\)"),
    "a matrix": (bare(sbc_ranks, ONES, ONES), r"\(n, draws, d\)"),
    "nan in x": (bare(sbc_ranks, CUBE, torch.full((5, 2), math.nan)), "10 entries of x"),
    "nan in samples": (bare(sbc_ranks, CUBE * math.inf, ONES), "30 entries of samples"),
    "references": (bare(tarp_ranks, CUBE, ONES, references=ONES[:2]), "references"),
    "scale": (bare(tarp_ranks, CUBE, ONES, references=ONES), "scale must be positive"),
    "one x": (
        bare(tarp_ranks, torch.rand(1, 3, 2), torch.rand(1, 2), references=torch.rand(1, 2),
             scale=torch.zeros(2)),
        "scale must be positive",
    ),
    "ranks": (bare(uniformity_pvalues, torch.tensor([[5]]), 4), "0, …, draws"),
    "negative": (bare(rank_coverage, torch.tensor([-1]), 4), "0, …, draws"),
    "no ranks": (bare(rank_coverage, torch.ones(0).long(), 4), "some x"),
    "draws": (bare(rank_coverage, torch.tensor([0]), 0), "draws ≥ 1"),
    "one bin": (bare(uniformity_pvalues, torch.ones(50, 1).long(), 9, bins=1), "at least 2"),
    "p": (bare(holm, torch.tensor([0.1, 1.2])), "in \\[0, 1\\]"),
    "nan p": (bare(holm, torch.tensor([math.nan])), "in \\[0, 1\\]"),
    "level": (bare(rank_band, 10, torch.tensor([0.5]), level=1.0), "level"),
    "alpha": (bare(rank_band, 10, torch.tensor([0.5, 0.2]), level=0.9), "increasing"),
    "no n": (bare(rank_band, 0, torch.tensor([0.5]), level=0.9), "n must be"),
    "no samples": (
        bare(leakage, torch.ones(2, 0, 1), BoxUniform((0.0,), (1.0,))),
        "draws ≥ 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()

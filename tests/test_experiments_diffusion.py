"""The experiments of chapter 10: laws, samplers, controls, interpolants, trainings and rows."""

import dataclasses
import math
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from scipy import stats

from ctdl_lib.generative import Schedule, sample_sde
from ctdl_lib.metrics import observed_orders
from ctdl_lib.problems.densities import TOYS, Mixture
from experiments.diffusion import (
    control,
    evidence,
    family,
    laws,
    learned,
    lecture,
    race,
    samplers,
    training,
)
from machinery import claims
from machinery.seeds import seeded
from machinery.store import Store

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


pytestmark = pytest.mark.usefixtures("as_the_book_computes")


@pytest.fixture
def smoke(tmp_path):
    return Store(training.CHAPTER, "smoke", folder=tmp_path)


def one_point(x=0.7):
    return Mixture(
        torch.ones(1, **DOUBLE), torch.tensor([[x]], **DOUBLE), torch.full((1, 1), 1e-9, **DOUBLE)
    )


def gaussian(std):
    return Mixture(
        torch.ones(1, **DOUBLE), torch.zeros(1, 1, **DOUBLE), torch.full((1, 1), std, **DOUBLE)
    )


# --- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 3])
def test_random_mixtures_are_standardized_and_differ_by_seed(d):
    p = laws.random_mixture(3, d=d)
    mean, cov = laws.moments(p)
    assert mean.abs().max() < 1e-12
    assert (cov.diagonal() - 1).abs().max() < 1e-12
    x = p.sample(200_000, seeded(0, 0), **DOUBLE)
    assert (x.T.cov() - cov).abs().max() < 0.02
    assert not torch.equal(laws.random_mixture(4, d=d).means, p.means)


def test_the_score_for_many_times_is_the_score_at_each_and_the_slope_of_the_surprise():
    p, t = laws.random_mixture(1, d=2), torch.tensor([0.1, 0.4, 0.9], **DOUBLE)
    x = torch.randn(3, 2, generator=seeded(0, 0), **DOUBLE).requires_grad_()
    score = laws.MixtureScore(p)
    together = score(t, x)
    apart = torch.cat([score(float(u), y[None]) for u, y in zip(t, x, strict=True)])
    torch.testing.assert_close(together, apart)
    (slope,) = torch.autograd.grad(laws.Surprise(p)(t, x).sum(), x)
    torch.testing.assert_close(together, -slope)


def test_the_gaussian_score_is_that_of_a_mixture_with_one_part():
    p = Mixture(
        torch.ones(1, **DOUBLE),
        torch.tensor([[0.3, -1.0]], **DOUBLE),
        torch.tensor([[0.5, 0.2]], **DOUBLE),
    )
    x = torch.randn(4, 2, generator=seeded(0, 0), **DOUBLE)
    ours = laws.GaussianScore(*laws.moments(p))(0.3, x)
    torch.testing.assert_close(ours, laws.MixtureScore(p)(0.3, x))


def test_quantiles_are_scipys_and_the_distance_is_scipys():
    p, q = laws.random_mixture(2), gaussian(0.4)
    x = laws.quantiles(q, 101)[:, 0] if laws.quantiles(q, 101).dim() > 1 else laws.quantiles(q, 101)
    wanted = stats.norm(0, 0.4).ppf((torch.arange(101) + 0.5) / 101)
    assert torch.allclose(x, torch.as_tensor(wanted), atol=1e-9)
    sample = p.sample(101, seeded(0, 0), **DOUBLE)
    ours = laws.distance(sample, x)
    assert ours == pytest.approx(stats.wasserstein_distance(sample.flatten(), x), rel=1e-9)


def test_the_distance_of_a_shifted_law_is_its_shift():
    x = laws.quantiles(laws.random_mixture(0), 500)
    assert laws.distance(x + 0.01, x) == pytest.approx(0.01)


# --- samplers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", samplers.GRIDS)
def test_a_grid_goes_down_from_one_to_its_last_level_in_even_steps(kind):
    times = torch.tensor(samplers.grid(kind, 12, 0.02), **DOUBLE)
    assert times[0] == 1
    assert len(times) == 13
    sigma = torch.tensor([samplers.level(t).sigma for t in times.tolist()], **DOUBLE)
    assert sigma[-1] == pytest.approx(0.02, rel=1e-9)
    even = {"t": times, "√t": times.sqrt(), "log σ": sigma.log(), "σ^(1/7)": sigma ** (1 / 7)}[kind]
    assert torch.allclose(even.diff(), even.diff().mean().expand(12), rtol=1e-6)


def test_an_unknown_grid_is_refused():
    with pytest.raises(ValueError, match="kind must be one of t, √t"):
        samplers.grid("s", 3, 0.1)


@pytest.mark.parametrize(
    ("name", "method"), [(samplers.EULER, "euler-maruyama"), (samplers.SUM, "exponential")]
)
def test_two_samplers_are_those_of_the_library(name, method):
    score, steps = laws.MixtureScore(laws.random_mixture(0)), 20
    generator = seeded(1, 0)
    noise = lambda *x: torch.randn(6, 1, generator=generator, **DOUBLE)  # noqa: E731
    theirs = sample_sde(score, noise, Schedule(), steps=steps, method=method)
    generator = seeded(1, 0)
    times = [1 - k / steps for k in range(steps)]  # the last step of the library is the mean
    ours = samplers.sample(name, score, noise(), times, noise)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", [samplers.MEAN, samplers.FLOW, samplers.LINE])
def test_freezing_the_mean_is_exact_for_one_point(name):
    """On the way: the state is a x₀ + s η at every level, with η of variance one."""
    score = laws.MixtureScore(one_point())
    noise = samplers.Stratified(seeded(0, 0))
    for t, x in samplers.states(name, score, noise.start(4096), samplers.grid("t", 4, 0.1), noise):
        if 0 < t < 1:
            at = samplers.level(t)
            eta = (x - at.a * 0.7) / at.s
            # the start has no mean a(1) x₀, which a step keeps in part
            assert eta.mean().abs() < 0.01
            assert eta.std() == pytest.approx(1, abs=0.01)


def test_freezing_the_sum_keeps_the_normal_law_and_euler_maruyama_widens_it():
    score, times = laws.MixtureScore(gaussian(1.0)), samplers.grid("t", 10, 0.1)
    spread = {}
    for name in (samplers.SUM, samplers.EULER):
        noise = samplers.Stratified(seeded(0, 0))
        found = list(samplers.states(name, score, noise.start(4096), times, noise))
        spread[name] = found[-2][1].var().item()
    assert spread[samplers.SUM] == pytest.approx(1, abs=0.02)
    assert spread[samplers.EULER] > 1.05


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_evaluations_are_counted_and_stay_within_the_budget(name):
    calls = []

    def score(t, x):
        calls.append(t)
        return -x

    steps = samplers.SAMPLERS[name].steps(17)
    samplers.sample(name, score, torch.zeros(2, 1, **DOUBLE), samplers.grid("√t", steps, 0.1))
    assert 15 < len(calls) <= 17
    assert len(calls) == samplers.SAMPLERS[name].evaluations * steps + 1


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_orders_on_a_gaussian_whose_samplers_are_linear_maps(name):
    """With a linear score a law stays normal, and its deviation tells the error without noise."""
    p, target = gaussian(0.5), 0.5
    score = laws.MixtureScore(p)

    def deviation(steps):
        """By three runs: the map of the state, and the variance that noise adds step by step."""
        times = samplers.grid("√t", steps, 0.003)
        one = torch.ones(1, 1, **DOUBLE)
        sampler = samplers.SAMPLERS[name]
        kept = samplers.sample(name, score, one, times, torch.zeros_like).item() ** 2
        for k in range(steps if sampler.noisy else 0):
            count = iter(range(steps))
            noise = lambda x, k=k: torch.full_like(x, float(next(count) == k))  # noqa: B023, E731
            kept += samplers.sample(name, score, 0 * one, times, noise).item() ** 2
        return math.sqrt(kept)

    sizes = (16, 32) if samplers.SAMPLERS[name].noisy else (40, 80)
    errors = [abs(deviation(n) - target) for n in sizes]
    (order,) = observed_orders(errors, [1 / n for n in sizes])
    wanted = samplers.SAMPLERS[name].order
    assert order == pytest.approx(wanted, abs=0.35)


def test_evenly_spread_noise_gives_the_law_of_drawn_noise():
    p = laws.random_mixture(0)
    score, times = laws.MixtureScore(p), samplers.grid("√t", 31, 0.03)
    noise = samplers.Stratified(seeded(0, 0))
    even = samplers.sample(samplers.EULER, score, noise.start(4096), times, noise)
    generator = seeded(1, 0)
    draw = lambda x: torch.randn(x.shape, generator=generator, **DOUBLE)  # noqa: E731
    drawn = samplers.sample(samplers.EULER, score, draw(torch.empty(65_536, 1)), times, draw)
    exact = laws.quantiles(p, 4096)
    thinned = drawn.flatten().sort().values[8::16]
    draws = (p.sample(65_536, seeded(k, 0), **DOUBLE).sort(0).values[8::16] for k in (2, 3, 4))
    floor = sum(laws.distance(x, exact) for x in draws) / 3
    assert laws.distance(even, thinned) < 2 * floor
    ours, theirs = (laws.distance(x, exact) for x in (even, thinned))
    assert ours == pytest.approx(theirs, abs=floor)
    assert ours > 3 * floor  # the error of the sampler is what both see


def test_van_der_corputs_terms_are_the_middles_of_cells():
    found = samplers.van_der_corput(8)
    assert found[:3].tolist() == [0.0625, 0.5625, 0.3125]
    assert torch.allclose(found.sort().values, (torch.arange(8) + 0.5).double() / 8)


# --- the race -----------------------------------------------------------------------------------


def some_race(errors):
    """A race of two budgets in which all samplers have the given errors, by budget."""
    names, kinds = list(samplers.SAMPLERS), samplers.GRIDS
    each = {n: {k: {8: [errors[0]], 16: [errors[1]]} for k in kinds} for n in names}
    last = {n: {k: {8: 0.1, 16: 0.1} for k in kinds} for n in names}
    chosen = {n: {8: "t", 16: "t"} for n in names}
    return race.Race(last, chosen, each, [0.01])


def test_needed_is_the_first_budget_below_the_floor_or_twice_the_last():
    assert some_race((0.1, 0.005)).needed(samplers.HEUN) == [4]
    assert some_race((0.1, 0.05)).needed(samplers.HEUN) == [5]


def test_a_slope_is_fitted():
    assert race.fitted_slope([0, 1, 2], [1, 3, 5]) == pytest.approx(2)


# --- the control --------------------------------------------------------------------------------


def test_the_hjb_residual_vanishes_only_with_noise():
    full, without = control.residuals(laws.random_mixture(5, d=2), 5)
    assert full <= 1e-12
    assert without > 1e-3


def test_the_cost_of_the_best_control_is_the_value_and_that_of_others_is_more_by_their_error():
    """For Gaussian data the excess of a scaled control has a closed form by its variances."""
    p, x = gaussian(0.5), torch.full((500, 1), 0.7, **DOUBLE)
    best = control.controlled(p, control.scaled(p, 1.0), x, seeded(0, 0), 1600)
    assert best.excess.mean().abs() < 0.03
    c = 1.3
    found = control.controlled(p, control.scaled(p, c), x, seeded(0, 0), 1600).excess.mean()
    # ½∫β(c − 1)² E S² dτ, where Y has the drift β(½ − c/v)Y and S = −Y/v
    square, total, n = 0.49, 0.0, 4000
    end = samplers.grid("√t", 1, control.LAST)[-1]
    h = (1 - end) / n
    for k in range(n):
        at = samplers.level(1 - (k + 0.5) * h)
        v = at.a**2 * 0.25 + at.s**2
        total += 0.5 * h * at.beta * (c - 1) ** 2 * square / v**2
        square += h * at.beta * ((1 - 2 * c / v) * square + 1)
    assert found.item() == pytest.approx(total, abs=0.04)
    assert total > 0.1


# --- the family ---------------------------------------------------------------------------------


def test_velocities_of_the_family_are_the_library_s_and_flow_matching_s():
    p, x = laws.random_mixture(0, d=2), torch.randn(5, 2, generator=seeded(0, 0), **DOUBLE)
    score = laws.MixtureScore(p)
    from ctdl_lib.generative import ProbabilityFlow

    ours = family.Velocity(family.PATHS[family.DIFFUSION], score)(0.4, x)
    torch.testing.assert_close(ours, ProbabilityFlow(score, Schedule())(0.4, x))
    # the mean of z − x₀ given (1 − t)x₀ + t z, by weights over many x₀
    t, x0 = 0.6, p.sample(400_000, seeded(1, 0), **DOUBLE)
    at = x[:1]
    z = (at - (1 - t) * x0) / t
    weight = torch.softmax(-0.5 * z.square().sum(1), 0)
    wanted = weight @ (z - x0)
    found = family.Velocity(family.PATHS[family.LINEAR], score)(t, at)[0]
    assert torch.allclose(found, wanted, atol=0.03)


def test_all_interpolants_carry_noise_to_the_same_data():
    score = laws.MixtureScore(laws.random_mixture(1, d=2))
    eta = torch.randn(5, 2, generator=seeded(0, 0), **DOUBLE)
    ends = [family.solved(name, score, eta, tol=1e-8)[0] for name in family.PATHS]
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=0, atol=1e-5)
    assert (family.mirrored(score, eta, tol=1e-6) - ends[0]).abs().max() > 0.5


# --- learned scores -----------------------------------------------------------------------------


def test_relative_errors_are_zero_for_the_truth_and_one_for_no_score():
    p = laws.random_mixture(0, d=2)
    truth = lambda t, x: laws.MixtureScore(p)(t, x.double())  # noqa: E731
    assert max(learned.relative_errors(p, truth, 50)) < 1e-8
    assert learned.relative_errors(p, lambda t, x: 0 * x, 50) == pytest.approx([1.0] * 25)


def test_the_metric_notices_spoiled_data():
    real, more = (TOYS["moons"].sample(10_000, seeded(k, 0)) for k in range(2))
    floor = learned.sliced(more, real)
    for how in learned.SPOILED.values():
        bad = learned.spoiled(more, *how)
        assert learned.sliced(bad, real) > floor
    moved = learned.spoiled(more, 0.05, 1.0)
    assert (moved.mean(0) - more.mean(0)).tolist() == pytest.approx(
        (0.05 * more.std(0)).tolist(), rel=1e-3
    )


@pytest.mark.parametrize("name", training.CLASSES)
def test_classes_are_the_parts_of_a_density(name):
    parts, x = training.parts(name), TOYS[name].sample(50, seeded(0, 0))
    each = torch.stack([p.log_prob(x) for p in parts], 1)
    whole = each.logsumexp(1) - math.log(len(parts))
    torch.testing.assert_close(whole, TOYS[name].log_prob(x), rtol=0, atol=1e-4)


def test_a_labelled_training_tells_its_classes_apart():
    key = training.LABELLED | {"width": 32, "hidden": 2, "batch": 128, "steps": 300}
    parts = training.parts("moons")
    model = training.untrained_labelled(parts, key, 0)
    z = torch.randn(200, 2, generator=seeded(1, 0))

    def share(label):
        x = samplers.sample(samplers.HEUN, model.score(label), z, samplers.grid("√t", 15, 0.03))
        each = [p.log_prob(x * model.std + model.mean) for p in parts]
        return torch.stack(each, 1).softmax(1)[:, label].mean().item()

    assert min(share(0), share(1)) < 0.6
    list(training.labelled_steps(model, parts, key, 0, 300))
    assert min(share(0), share(1)) > 0.7


# --- the rows -----------------------------------------------------------------------------------


@pytest.fixture
def found():
    return evidence.gather("saved")


def judged_rows(found):
    return {row.id: row for row in evidence.rows(found) if isinstance(row, claims.Claim)}


@pytest.fixture
def judged(found):
    return judged_rows(found)


def test_a_planted_result_turns_the_verdict_of_its_row(found, judged):
    assert judged["sbdm.copies"].verdict == "supported"
    swapped = found.copies | {"points": [0.1, 0.11, 0.12]}
    rows = judged_rows(dataclasses.replace(found, copies=swapped))
    assert rows["sbdm.copies"].verdict == "refuted"
    worse = {w: list(row) for w, row in found.guided.items()}
    worse[1.0], worse[2.0] = worse[2.0], worse[1.0]
    rows = judged_rows(dataclasses.replace(found, guided=worse))
    assert rows["sbdm.class.guidance"].verdict == "refuted"
    flipped = {"exact": found.likelihood["Gaussian"], "Gaussian": found.likelihood["exact"]}
    rows = judged_rows(dataclasses.replace(found, likelihood=flipped))
    assert rows["sbdm.likelihood"].verdict == "refuted"


def test_every_row_can_be_refuted(judged):
    assert all(claims.turns(row) for row in judged.values())


def test_the_lecture_quotes_rows_that_exist(judged):
    assert set(lecture.SENTENCES) <= set(judged)


def test_the_grids_were_chosen_on_other_mixtures_than_those_reported():
    assert not set(race.CHOSEN_ON) & set(race.SEEDS)


def test_tables_have_a_row_for_each_rival(found):
    assert evidence.race_table(found).count("\n") == 1 + len(samplers.SAMPLERS)
    assert evidence.kinds_table(found).count("\n") == 1 + 3 * len(samplers.GRIDS)
    assert evidence.gap_table(found).count("\n") == 1 + len(TOYS)


@pytest.mark.parametrize("draw", [lecture.draw_strip, lecture.draw_control, lecture.draw_family])
def test_pictures_that_need_no_results_are_drawn(draw):
    draw()
    assert len(plt.gcf().axes) >= 3
    plt.close("all")

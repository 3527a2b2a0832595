"""The experiments of chapter 9: maps of posteriors, references for them, and what is stored."""

import copy
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import multivariate_normal
from torch.distributions import MultivariateNormal

from ctdl_lib.generative import Flow, ot_flow
from experiments.simulation_based_inference import (
    benchmark,
    checks,
    evidence,
    gaussian,
    lecture,
    maps,
    predators,
    references,
)
from experiments.simulation_based_inference.campaigns import seeds as spawned
from experiments.simulation_based_inference.maps import COT, COT_READS, FMPE, METHODS, NPE, PCP
from experiments.simulation_based_inference.predators import OBSERVED, Campaign, features
from experiments.simulation_based_inference.problems import LinearGaussian
from machinery.seeds import seeded
from machinery.store import Store

double = torch.float64
KEY = {"width": 8, "rk4": 4, "alpha": 30.0, "beta": 1.0, "batch": 64, "lr": 0.01, "steps": 2}
READS = predators.READS | {"encoder": {"features": 3, "width": 5}}


def key_of(method):
    """Settings of a method, or of one with an encoder."""
    return KEY | {"method": maps.base_of(method)} | (READS if method in maps.READERS else {})


pytestmark = pytest.mark.usefixtures("as_the_book_computes")


@pytest.fixture(scope="module")
def saved():
    torch.set_default_dtype(torch.float32)
    return Store(maps.CHAPTER, "saved")


@pytest.fixture(scope="module")
def found():
    torch.set_default_dtype(torch.float32)
    return evidence.gather("saved")


def some_map(method, d=2, m=3, box=None):
    """An untrained map that knows the scale of some data."""
    x, y = torch.rand(50, d, generator=seeded(0, 0)), torch.randn(50, m, generator=seeded(1, 0))
    model = maps.model_of(key_of(method), d, m, 0, box)
    return model.standardize(x, y).requires_grad_(False), x, y


# --- maps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, *maps.READERS])
def test_a_map_goes_back_and_its_samples_have_the_density_that_it_says(method):
    model, x, y = some_map(method)
    bound = model.given(y[:20])
    torch.testing.assert_close(bound.inverse(bound(x[:20])), x[:20], rtol=1e-3, atol=1e-3)
    drawn = model.given(y[0]).sample_with_log_prob(20, seeded(2, 0))
    ours = model.given(y[0]).log_prob(drawn.x)
    torch.testing.assert_close(drawn.log_prob, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", [COT, PCP, NPE])
def test_the_density_of_one_observation_has_mass_one(method):
    model, _, y = some_map(method, d=1)
    grid = torch.linspace(-8, 8, 4001)[:, None]
    density = model.given(y[0]).log_prob(grid).exp()
    assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("method", [COT, PCP])
def test_in_a_box_no_sample_leaves_it(method):
    model, _, y = some_map(method, box=((0.0, 0.0), (1.0, 1.0)))
    x = model.given(y[0]).sample(500, seeded(3, 0))
    assert (x >= 0).all()
    assert (x <= 1).all()


@pytest.mark.parametrize("method", maps.READERS)
def test_scaling_and_encoder_are_saved_with_the_weights(method, tmp_path):
    model, x, y = some_map(method)
    save_file(model.state_dict(), tmp_path / "map.safetensors")
    other = maps.model_of(key_of(method), 2, 3, 1)
    assert not torch.equal(other.encoder(y), model.encoder(y))
    other.load_state_dict(load_file(tmp_path / "map.safetensors"))
    assert torch.equal(other.given(y).log_prob(x), model.given(y).log_prob(x))


@pytest.mark.parametrize("method", [COT, NPE])
def test_an_encoder_changes_no_weight_of_the_plain_map(method):
    """The stored maps without one are still those of their settings."""
    plain, reads = (some_map(name)[0] for name in (method, f"{method}+encoder"))
    assert not [name for name in plain.state_dict() if "encoder" in name]
    assert plain.encoder is None
    assert reads.encoder.context_dim == 3 + 3


def test_the_objective_of_cot_flow_is_that_of_ot_flow_with_the_context_bound():
    model, x, y = some_map(COT)
    ours = maps.objective(KEY | {"method": COT}, model, x, y)
    phi = copy.deepcopy(model.velocity)
    phi.standardized = False
    how = {"steps": 4, "likelihood": 30.0, "hjb": 1.0}
    theirs = ot_flow(phi.given(model.conditions(y)), model.data(x), **how)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_the_likelihood_term_is_the_density_by_the_same_steps():
    model, x, y = some_map(COT)
    term = maps.objective(KEY | {"method": COT}, model, x, y)["likelihood"] / 30.0
    nll = maps.mean_nll(maps.by_steps(model, 4), x, y)
    scale = model.data.std.log().sum()
    assert nll == pytest.approx(float(term + scale), abs=1e-4)


def test_the_density_of_npe_is_that_of_sbi():
    model, x, y = some_map(NPE)
    scaled = model.data.transform(x)
    theirs = scaled.log_det - model.net.loss(scaled.z, model.conditions(y))
    torch.testing.assert_close(model.given(y).log_prob(x), theirs, rtol=1e-4, atol=1e-4)


def test_other_steps_leave_the_flow_as_it_was():
    model, x, y = some_map(COT)
    fine = maps.by_steps(model, 64)
    assert (model.solver["steps"], fine.solver["steps"]) == (maps.SOLVED, 64)
    assert maps.by_steps(some_map(NPE)[0], 64).__class__ is maps.Spline
    near, far = (maps.by_steps(model, k).given(y)(x) for k in (16, 1))
    z = fine.given(y)(x)
    assert (near - z).norm() < 0.1 * (far - z).norm()


@pytest.mark.parametrize("method", [*METHODS, *maps.READERS[:3]])
def test_a_training_lowers_the_nll(method):
    linear = LinearGaussian(torch.ones(1, 2, dtype=double), noise=0.3)
    x = linear.prior.sample(1000, seeded(0, 0), dtype=torch.float32)
    y, _ = linear.simulate(x, spawned(1000, 0))
    key = key_of(method) | {"steps": 30, "lr": 0.03}
    key |= {"average": 0.5} if "average" in key else {}  # that of long trainings lags
    model = maps.model_of(key, 2, 1, 0)
    before = maps.mean_nll(model.standardize(x, y), x, y)
    list(maps.steps_of(model, key, x, y, 0, 30))
    assert maps.mean_nll(model, x, y) < before - 0.1


@pytest.mark.parametrize("method", maps.READERS)
def test_each_objective_trains_the_encoder(method):
    model, x, y = some_map(method)
    for k, p in enumerate(model.parameters()):  # the last layer of FMPE is zero before training
        p.add_(0.1 * torch.randn(p.shape, generator=seeded(k, 0)))
    loss = maps.objective(key_of(method), model.requires_grad_(True), x, y)
    (sum(loss.values()) if isinstance(loss, dict) else loss).backward()
    assert all(p.grad.abs().max() > 0 for p in model.encoder.parameters())


# --- the linear problem -------------------------------------------------------------------------


def test_the_optimal_map_is_that_of_the_potential_of_the_problem():
    x, y = gaussian.new_pairs(40)
    phi = gaussian.problem().potential()
    flow = Flow(phi, 3, solver={"steps": 64}, context_dim=6, standardize=False).double()
    torch.testing.assert_close(flow.given(y)(x), gaussian.optimal(x, y), rtol=1e-5, atol=1e-5)


def test_the_exact_flow_has_no_divergence_no_residual_and_the_optimal_map():
    x, y = gaussian.new_pairs(10)

    phi = gaussian.problem().potential()
    flow = Flow(phi, 3, solver={"steps": 32}, context_dim=6, standardize=False).double()
    assert gaussian.hjb_residual(flow, x, y) < 0.01
    assert gaussian.divergence(flow, x, y) == pytest.approx(0, abs=1e-3)
    assert gaussian.map_error(flow, x, y) < 0.01


def test_the_product_of_the_margins_misses_the_correlations():
    x, y = gaussian.new_pairs(20_000)
    _, covariance = gaussian.problem().posterior(y)
    exact = MultivariateNormal(torch.zeros(3, dtype=double), covariance)
    product = MultivariateNormal(torch.zeros(3, dtype=double), covariance.diag().diag())
    wanted = torch.distributions.kl_divergence(exact, product)
    assert gaussian.margins(x, y) == pytest.approx(float(wanted), rel=0.02)


# --- references ---------------------------------------------------------------------------------


def test_a_gap_counts_means_in_deviations_and_deviations_in_percent():
    ref = {"mean": [0.0, 1.0], "std": [1.0, 2.0]}
    gap = references.gap({"mean": [0.5, 2.0], "std": [0.8, 3.0]}, ref)
    assert gap.mean == pytest.approx(0.5)
    assert (gap.narrow, gap.wide) == pytest.approx((-20, 50))
    assert gap.std == pytest.approx(50)
    assert references.gap(ref, ref) == (0, 0, 0)


def test_a_counter_that_is_never_reset_counts_simulations_many_times(saved):
    run = references.record(saved, "theta1")
    once, many = references.completed(run), references.summed(run)
    rounds = run.numbers["rounds"]
    own = np.diff([0, *(row["simulations"] for row in rounds)])  # of each round
    assert once == sum(own) - sum(row["aborted"] for row in rounds)
    weights = np.arange(len(own), 0, -1)  # a round is contained in all later counters
    given_up = np.array([row["aborted"] for row in rounds])
    assert many == (weights * (own - given_up)).sum()
    assert many > 3 * once


def test_thinned_particles_have_the_moments_of_the_weighted_ones(saved):
    run = references.record(saved, "theta2-adapted")
    last = references.last(run)
    many = torch.cat([references.thinned(run, k) for k in range(20)])
    assert references.gap(references.moments(many), last).mean < 0.1
    assert references.gap(references.moments(many), last).std < 8
    one = references.thinned(run)
    assert len(one.unique(dim=0)) == len(one) > 50
    x, weights = references.particles(run)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0, dtype=double), rtol=0, atol=1e-3)
    root = references.covariance(run).diagonal().sqrt().tolist()
    assert root == pytest.approx(last["std"], rel=1e-3)
    assert len(x) == predators_kept()


def predators_kept():
    return references.ADAPTED["particles"]


def test_the_classifier_tells_what_differs_and_not_what_is_equal():
    x, y = (torch.randn(400, 4, generator=seeded(k, 0), dtype=double) for k in (0, 1))
    assert references.told_apart(x, y) == pytest.approx(50, abs=6)
    assert references.told_apart(x, y + 4) > 95
    assert references.told_apart(x, 3 * y) > 65
    twice = torch.cat([x, x])  # a particle in training and in test would be recognised
    assert references.told_apart(twice, torch.cat([y, y])) > references.told_apart(x, y)


def test_regression_makes_rejection_exact_where_all_is_linear():
    """In the coordinates of the regression: u = logit x, y = u + noise, posterior of y = 0.5."""
    n, generator = 40_000, seeded(0, 0)
    u = torch.randn(n, 1, generator=generator, dtype=double)
    y = u + 0.5 * torch.randn(n, 1, generator=generator, dtype=double)
    low, high = predators.PROBLEM.low, predators.PROBLEM.high
    x = low + (high - low) * u.sigmoid()
    found = references.rejected(x, y, torch.tensor([[0.5]], dtype=double), 4000)
    moved = references.adjusted(*found)
    back = ((moved - low) / (high - low)).logit()
    weights = found[2] / found[2].sum()
    mean = float(weights @ back[:, 0])
    std = float(weights @ (back[:, 0] - mean) ** 2) ** 0.5
    assert mean == pytest.approx(0.5 / 1.25, abs=0.03)
    assert std == pytest.approx(math.sqrt(0.25 / 1.25), rel=0.05)
    raw = ((found[0] - low) / (high - low)).logit()
    assert raw.std() > std  # what the regression removes


def test_the_synthetic_likelihood_is_that_of_a_fitted_normal_law():
    f = torch.randn(2, 400, 3, generator=seeded(0, 0), dtype=double)
    completed = torch.ones(2, 400, dtype=torch.bool)
    completed[0, 100:] = False
    completed[1, 5:] = False  # too few for a covariance
    target = torch.tensor([0.3, -0.2, 0.1], dtype=double)
    found = references.gaussian_log_likelihood(f, completed, target)
    rows = f[0, :100].numpy()
    expected = multivariate_normal(rows.mean(0), np.cov(rows.T)).logpdf(target.numpy())
    assert float(found[0]) == pytest.approx(expected + math.log(0.25))
    assert float(found[1]) == -math.inf
    f[0, :, 2] = 0.1  # all runs share a feature, which may be that of the target or not
    equal, other = (
        float(references.gaussian_log_likelihood(f[:1], completed[:1], point)[0])
        for point in (target, target + torch.tensor([0, 0, 0.1]))
    )
    assert math.isfinite(equal)
    assert other < equal - 1000


class LinearSimulator:
    """Features Ax + e of a parameter in a wide box, and a posterior in closed form."""

    prior = predators.PROBLEM.prior
    low, high = predators.PROBLEM.low, predators.PROBLEM.high
    A = torch.tensor([[1.0, 0.5, 0, 0], [0, 1, 0, 0.3], [0, 0, 1, 0], [0.2, 0, 0, 1]]).double()
    noise, x = 0.2, torch.full((4,), -1.5, dtype=double)

    def simulate(self, x, words):
        e = torch.randn(len(x), 4, generator=seeded(len(x), 0), dtype=double)
        return x @ self.A.T + self.noise * e, torch.ones(len(x), dtype=torch.bool)

    @property
    def posterior(self):
        covariance = self.noise**2 * (self.A.T @ self.A).inverse()
        return covariance @ self.A.T @ (self.A @ self.x) / self.noise**2, covariance


def test_other_references_are_exact_where_all_is_linear(monkeypatch):
    problem = LinearSimulator()
    monkeypatch.setattr(references, "PROBLEM", problem)
    monkeypatch.setattr(references, "features", lambda y: y)
    monkeypatch.setattr(references, "OBSERVED", (problem.A @ problem.x)[None])
    mean, covariance = problem.posterior
    off, key = mean + 0.5 * covariance.diagonal().sqrt(), {"index": 0, "seed": 0, "kept": 1500}
    stage = {"draws": 800, "repeats": 100}
    exact = {"mean": mean.tolist(), "std": covariance.diagonal().sqrt().tolist()}
    for row in (
        references._by_synthetic_likelihood(key, stage, off, covariance),
        references._by_regression(key, 20_000, off, covariance),
    ):
        row |= {"std": row["covariance"].diagonal().sqrt()}
        found = references.gap({k: row[k].tolist() for k in ("mean", "std")}, exact)
        assert found.mean < 0.15
        assert found.std < 12
        assert row["ess"] > 100
    start = references.gap({"mean": off.tolist(), "std": exact["std"]}, exact)
    assert start.mean == pytest.approx(0.5)


def test_simulations_needed_are_those_of_the_first_round_that_is_near_enough(saved):
    runs = [references.record(saved, "theta2"), references.record(saved, "theta2-half")]
    ref = references.last(references.record(saved, "theta2-adapted"))
    loose, tight = references.Gap(50.0, -1e4, 1e4), references.Gap(0.0, 0.0, 0.0)
    first = min(run.numbers["rounds"][0]["simulations"] for run in runs)
    assert references.needed(runs, ref, loose) == (first, True)
    most = max(references.last(run)["simulations"] for run in runs)
    assert references.needed(runs, ref, tight) == (most, False)


# --- predators and prey -------------------------------------------------------------------------


def test_features_can_be_inverted():
    seen = features(OBSERVED).double()
    back = torch.cat([seen[:, :2].expm1(), seen[:, 2:4], seen[:, 4:].tanh() / 0.99], 1)
    torch.testing.assert_close(back, OBSERVED, rtol=1e-4, atol=1e-4)


def test_a_loop_in_numpy_simulates_what_the_compiled_one_does():
    problem, rng = predators.PROBLEM, np.random.default_rng(0)
    theta = predators.TRUE[1].exp().numpy()
    slow = np.stack([checks.gillespie(theta, rng).mean(0) for _ in range(60)])
    fast = problem.paths(predators.TRUE[[1]].expand(2000, 4), spawned(2000, 0)).states.mean(1)
    error = slow.std(0) / math.sqrt(len(slow))
    assert (abs(slow.mean(0) - fast.mean(0).numpy()) < 4 * error).all()


def test_a_box_around_samples_leaves_out_tails_and_stays_inside_of_the_prior():
    x = torch.randn(5000, 4, generator=seeded(0, 0)) * 0.1 + torch.tensor([0.0, 1.0, -4.9, 1.9])
    box = predators.around(x)
    assert box.low[0] == pytest.approx(-0.31 - 0.155, abs=0.05)
    assert box.high[0] == pytest.approx(0.31 + 0.155, abs=0.05)
    assert box.low[2] == predators.PROBLEM.low
    assert box.high[3] == predators.PROBLEM.high


def test_settings_of_cot_flow_are_those_of_the_best_pilot_run(saved):
    campaign = Campaign(saved)
    scores = [row["nll"] for row in campaign.pilots]
    assert scores == sorted(scores)
    assert len(scores) == predators.TRIALS
    assert campaign.methods[COT].items() <= campaign.pilots[0].items()
    for name in (*maps.READERS, *maps.LONG, maps.COT_WIDE):
        ours, plain = campaign.methods[name], campaign.methods[maps.base_of(name)]
        assert predators.AVERAGE.items() <= ours.items()
        assert ("encoder" in ours) == (name in maps.READERS)
        own = ("clip", "lr", *(["width"] if name == maps.COT_WIDE else []))
        assert all(ours[part] == plain[part] for part in plain if part not in own)
        assert "clip" not in ours


def test_the_wide_potential_has_as_many_weights_as_one_with_an_encoder(saved):
    methods = Campaign(saved).methods
    wide, reads, plain = (
        sum(p.numel() for p in maps.model_of(methods[name] | {"method": COT}, 4, 9, 0).parameters())
        for name in (maps.COT_WIDE, maps.COT_READS, maps.COT_LONG)
    )
    assert wide == pytest.approx(reads, rel=0.01)
    assert wide > 3 * plain


# --- what is asked of the posteriors -------------------------------------------------------------


def test_few_pairs_are_calibrated_and_narrow_ones_are_not():
    """By exact posteriors N(y, I), so that the test itself is tested."""

    class Exact:
        def given(self, y):
            self.y = y
            return self

        def sample(self, n, generator):
            return self.y + torch.randn(n, 4, generator=generator)

    y = torch.randn(500, 4, generator=seeded(5, 0))
    x = y + torch.randn(500, 4, generator=seeded(6, 0))
    right, wrong = (
        checks._as_ranks([checks.ranked(Exact(), x, y, 0, factor)]) for factor in (1.0, 0.8)
    )
    assert right.sbc_pvalue > 0.01
    assert right.tarp_pvalue > 0.01
    assert wrong.sbc_pvalue < 1e-4
    assert wrong.tarp_pvalue < 1e-4


def test_the_benchmarks_control_has_the_moments_of_the_reference_and_stays_in_the_box():
    task = benchmark.TASKS[1]
    root = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    inner = torch.randn(20_000, 2, generator=seeded(1, 0)) @ root.T
    x = benchmark.fitted(inner, task, 8000, seeded(0, 0))
    torch.testing.assert_close(x.mean(0), inner.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(x.T.cov(), inner.T.cov(), rtol=0.1, atol=0.1)
    assert task.prior.inside(benchmark.fitted(inner + 9, task, 500, seeded(0, 0))).all()


def test_the_stored_flow_of_the_two_moons_finds_both_of_them(saved):
    flow, reference = benchmark.two_moons(saved).model, benchmark.TASKS[0].reference(1)
    x = flow.given(reference.y).sample(500, seeded(0))
    far = torch.cdist(x, reference.posterior[:2000]).amin(1)
    assert (far < 0.03).float().mean() > 0.9
    assert 0.4 < (x.sum(1) > 0).float().mean() < 0.6


# --- what is stored -----------------------------------------------------------------------------


def test_a_stored_nll_is_that_of_the_stored_weights(found):
    campaign = found.campaign
    model = campaign.fits(PCP, 50_000)[0].model
    again = maps.mean_nll(model, *campaign.held_out)
    assert again == pytest.approx(found.nll[PCP, 50_000][str(maps.SOLVED)][0], abs=1e-4)


def test_a_stored_divergence_is_that_of_the_stored_weights(found):
    model = gaussian.fit(found.store, PCP, 10).model
    again = gaussian.divergence(model, *gaussian.new_pairs())
    assert again == pytest.approx(found.errors.kl[PCP][0], abs=1e-4)


def test_rows_follow_from_the_stored_results(found):
    rows = {row.id: row for row in evidence.rows(found)}
    assert len(rows) == len(evidence.rows(found))
    assert set(lecture.SENTENCES) <= set(rows)
    gaps = [gap.mean for gap in found.gaps(found.matches[COT_READS, 50_000], 0)]
    assert rows["lv.cot50k.theta1.mean_gap"].ours == pytest.approx(gaps, rel=1e-3)
    ref = found.reference(0)
    mean = found.matches[COT_READS, 50_000][0][0]["mean"]
    by_hand = max(abs(m - r) / s for m, r, s in zip(mean, ref["mean"], ref["std"], strict=True))
    assert gaps[0] == pytest.approx(by_hand)


def test_tables_have_as_many_cells_in_each_line(found):
    for make in (
        *(evidence.pilot_table, evidence.match_table, evidence.power_table, evidence.smc_table),
        *(evidence.settling_table, evidence.saving_table, evidence.likelihood_table),
        *(evidence.calibration_table, evidence.solver_table, evidence.benchmark_table),
        *(evidence.clock_table, evidence.reference_table),
    ):
        for table in make(found).split("\n\n"):
            assert len({line.count("|") for line in table.splitlines()}) == 1, make


def test_an_ellipse_holds_its_share():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=double)
    curve = lecture.ellipse(torch.zeros(2, dtype=double), covariance)
    radius = torch.einsum("ni,ij,nj->n", curve, covariance.inverse(), curve)
    x = torch.randn(20_000, 2, generator=seeded(0, 0), dtype=double)
    assert float((x.square().sum(1) < radius.mean()).double().mean()) == pytest.approx(
        lecture.SHARE, abs=0.01
    )
    assert radius.std() < 1e-6


def test_the_density_on_a_line_is_the_posterior():
    points = torch.linspace(-5, 5, 2001)
    density = lecture.on_line(lambda x, y: -((y - x) ** 2) / 0.18, 1.0, points)
    variance = 1 / (1 + 1 / 0.09)
    mean = float(torch.trapezoid(points * density, points))
    assert mean == pytest.approx(variance / 0.09, abs=1e-3)


def test_smoke_leaves_no_file(tmp_path):
    store = Store(maps.CHAPTER, "smoke", folder=tmp_path)
    campaign = Campaign(store)
    assert len(checks.match(campaign, FMPE, 50_000)[0]) == 1
    assert set(checks.likelihoods(campaign, COT, 50_000)) == {"2", "4", "8", "32"}
    assert references.record(store, "theta2").numbers["x"]
    assert len(gaussian.errors(store).kl[NPE]) == 1
    lecture.draw_paths()
    plt.close("all")
    assert not list(tmp_path.rglob("*"))

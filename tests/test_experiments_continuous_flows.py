"""The experiments of chapter 6: trainings, estimates of the divergence, checks of densities."""

import math

import pytest
import torch
from torch import nn

from ctdl_lib.dynamics import integrate
from ctdl_lib.generative import Flow
from ctdl_lib.problems.densities import TOYS, Mixture
from experiments.continuous_flows import checks, costs, lecture, peers, trace, training
from machinery.seeds import seeded
from machinery.store import Store

pytestmark = pytest.mark.usefixtures("as_the_book_computes")


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    monkeypatch.setattr(training, "WATCHED", 50)  # points during a training, 1,000 in the book


def smoke(tmp_path):
    return Store("06_continuous_normalizing_flows", "smoke", folder=tmp_path)


class Linear(nn.Module):
    """The velocity Ax."""

    def __init__(self, A):
        super().__init__()
        self.A = nn.Parameter(A)

    def forward(self, t, x):
        return x @ self.A.T


def linear_flow(d=2, **solver):
    A = 0.5 * torch.randn(d, d, generator=seeded(3, 0), dtype=torch.float64)
    return Flow(Linear(A), d, solver=solver or {"tol": 1e-9}, standardize=False)


# --- trainings ----------------------------------------------------------------------------------


def test_no_kind_of_training_sees_more_points_than_the_published_one():
    keys = [training.Settings("8gaussians", **kind) for kind in training.KINDS.values()]
    published, *others = [key.steps * key.batch for key in keys]
    assert published == 1_000_000
    assert set(others) == {150_000}
    assert all((key.tol is None) != (key.rk4 is None) for key in keys)
    assert all(key.steps % training.RECORDS == 0 for key in keys)


@pytest.mark.parametrize("kind", [training.PUBLISHED, training.FIXED])
def test_the_first_step_has_the_rate_of_the_settings(kind):
    key = training.Settings("8gaussians", **(training.KINDS[kind] | {"batch": 8}))
    flow = training.untrained(key, 0)
    before = [W.detach().clone() for W in flow.velocity.parameters()]
    list(training.steps_of(flow, key, 0, 1))
    # the first step of Adam moves each weight by the rate, in the direction of its gradient
    moved = [(a - b).abs().max() for a, b in zip(before, flow.velocity.parameters(), strict=True)]
    assert max(moved).item() == pytest.approx(key.lr, rel=1e-3)


def test_a_learned_time_moves_for_that_time():
    v = training.untrained(training.Settings("moons", rk4=8), 0).velocity.double()
    timed = training.LearnedTime(v).double()
    x = torch.randn(5, 2, generator=seeded(1, 0), dtype=torch.float64)
    ours = integrate(timed, x, 0.0, 1.0, tol=1e-9)
    theirs = integrate(v, x, 0.0, timed.root.square().item(), tol=1e-9)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    assert not torch.allclose(ours, integrate(v, x, 0.0, 1.0, tol=1e-9), atol=1e-3)


def test_the_loss_is_the_negative_mean_of_the_log_density_or_of_the_density():
    x = TOYS["8gaussians"].sample(64, seeded(0, 0))
    keys = {k: training.Settings("8gaussians", **training.KINDS[k]) for k in training.KINDS}
    flow = training.untrained(keys[training.FIXED], 0)
    log_prob = flow.log_prob(x)
    loss = {kind: training.objective(keys[kind], flow, x) for kind in training.KINDS}
    torch.testing.assert_close(loss[training.FIXED], -log_prob.mean())
    means = loss[training.MEAN_DENSITY]
    torch.testing.assert_close(means["goal"], -log_prob.exp().mean().log())
    terms = loss[training.REGULARIZED]
    torch.testing.assert_close(terms["goal"], -log_prob.mean())
    assert terms["kinetic"] > 0
    assert terms["jacobian"] > 0


def test_a_training_keeps_what_it_has_looked_at_with_its_weights():
    key = training.Settings("moons", rk4=2, steps=40, batch=8)
    flow = training.untrained(key, 0)
    first = flow.velocity.W[0].detach().clone()
    list(training.steps_of(flow, key, 0, 40))
    assert (flow.evaluations > 0).all()
    assert flow.gaps[-1] < flow.gaps[0]
    again = training.untrained(key, 0)
    assert again.velocity.W[0].equal(first)
    training.look(again, training.held_out("moons", 50), "moons", 0)
    assert again.gaps[0] == flow.gaps[0]


def test_the_best_rate_has_the_least_gap():
    assert training.best_rate({"0.003": 0.5, "0.01": 0.2, "0.03": 0.3}) == 0.01


@pytest.mark.parametrize("kind", training.KINDS)
def test_a_smoke_run_leaves_no_file(tmp_path, kind):
    (found,) = training.finishes(smoke(tmp_path), kind, [0])
    assert found.gap > 0
    assert found.evaluations > 10
    assert found.inverse_error < 1e-4
    assert not list(tmp_path.rglob("*"))


# --- the divergence -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [trace.NORMAL, trace.SIGNS])
@pytest.mark.parametrize("d", [2, 8])
def test_the_variance_of_an_estimate_is_that_of_the_theory(d, kind):
    found = trace.variance(d, kind, 0)
    # the variance of a sample variance of about normal values is 2/n
    tolerance = 5 * math.sqrt(3 / 2000)
    assert found.measured == pytest.approx(found.theory, rel=tolerance)
    assert trace.slope(found.theory) == pytest.approx(-1)


def test_probes_have_the_identity_as_covariance_and_other_kinds_are_refused():
    for kind in (trace.NORMAL, trace.SIGNS):
        eps = trace.probes(kind, 40_000, 3, seeded(0, 0))
        assert (eps.T @ eps / len(eps) - torch.eye(3)).abs().max() < 0.03
    with pytest.raises(ValueError, match="kind must be 'normal' or 'signs', got 'exact'"):
        trace.probes("exact", 1, 1, seeded(0, 0))


def test_turned_planes_have_the_density_of_their_copies():
    density = trace.Rotated(2)
    x = density.sample(2000, seeded(0, 0))
    torch.testing.assert_close(density.Q @ density.Q.T, torch.eye(4, dtype=density.Q.dtype))
    y = (x @ density.Q).split(2, 1)
    wanted = sum(TOYS["8gaussians"].log_prob(part) for part in y)
    torch.testing.assert_close(density.log_prob(x), wanted)
    entropy = TOYS["8gaussians"].entropy(100_000, seeded(1, 0))
    found = -density.log_prob(x)
    assert found.mean().item() == pytest.approx(
        2 * entropy.value, abs=5 * found.std().item() / math.sqrt(2000)
    )


def test_the_loss_with_probes_is_unbiased():
    key = trace.Settings(trace.SIGNS, planes=1)
    flow = trace.untrained(key, 0)
    with torch.no_grad():
        for W in flow.velocity.W:  # a stronger field, so that the estimate has a variance
            W.mul_(3)
        x = trace.Rotated(1).sample(1, seeded(0, 0)).expand(4000, 2)
        found = flow.log_prob(x, eps=trace.probes(trace.SIGNS, *x.shape, seeded(1, 0)))
        exact = flow.log_prob(x[:1])
    error = found.std() / math.sqrt(len(x))
    assert error > 1e-4
    assert (found.mean() - exact).abs() < 4 * error


@pytest.mark.parametrize("estimate", trace.TRAININGS)
def test_a_smoke_run_of_an_estimate_leaves_no_file(tmp_path, estimate):
    found = trace.outcome(smoke(tmp_path), estimate, [0])
    assert found.gaps[0] > 0
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_has_as_many_parameters_and_learns(tmp_path, name):
    def size(module):
        return sum(p.numel() for p in module.parameters())

    ours = training.untrained(training.Settings("8gaussians", rk4=8), 0)
    peer = peers.Peer(name, 0)
    assert size(peer) == pytest.approx(size(ours), rel=0.05)
    key = peers.Settings(name, "8gaussians", steps=20, batch=64)
    losses = [step.loss for step in peers.steps_of(peer, key, 0, 20)]
    assert losses[-1] < losses[0]
    torch.manual_seed(5)
    twins = [next(iter(peers.Peer(name, 1).parameters())) for _ in range(2)]
    assert twins[0].equal(twins[1])
    found = peers.study(smoke(tmp_path), name, [0])
    assert found.gaps[0] > 0
    assert not list(tmp_path.rglob("*"))


# --- checks -------------------------------------------------------------------------------------


def test_a_linear_flow_has_its_mass_its_determinant_and_its_density():
    flow = linear_flow()
    x = torch.randn(4, 2, generator=seeded(0, 0), dtype=torch.float64)
    assert checks.mass(flow) == pytest.approx(1, abs=1e-3)
    assert checks.jacobian_error(flow, x) < 1e-8
    assert checks.zuko_error(flow, x) < 1e-8
    coarse = linear_flow(steps=1)
    assert checks.zuko_error(coarse, x) > 1e-5


def test_an_exact_flow_is_that_flow_in_double_precision():
    flow = training.untrained(training.Settings("moons", rk4=64), 0)
    x = TOYS["moons"].sample(20, seeded(0, 0))
    before = flow.log_prob(x)
    found = checks.exact(flow, 1e-8).log_prob(x.double())
    torch.testing.assert_close(found.to(before), before, rtol=0, atol=1e-5)
    assert flow.log_prob(x).equal(before)  # the flow itself stays in single precision


def test_fresh_noise_costs_evaluations_and_none_costs_a_flow_whose_divergence_is_known():
    flow = training.untrained(training.Settings("8gaussians", rk4=8), 0)
    flow = checks.exact(flow)
    with torch.no_grad():
        for W in flow.velocity.W:
            W.mul_(2)
    x = torch.randn(8, 2, generator=seeded(0, 0), dtype=torch.float64)
    calm = checks.noisy_evaluations(flow, x, 1e-3, 0, fresh=False)
    assert calm < 200
    assert checks.noisy_evaluations(flow, x, 1e-3, 0, fresh=True) > 5 * calm
    turning = Flow(
        Linear(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)),
        2,
        solver={"tol": 1e-9},
        standardize=False,
    )
    still = checks.noisy_evaluations(turning, x, 1e-3, 0, fresh=False)
    assert checks.noisy_evaluations(turning, x, 1e-3, 0, fresh=True) == still


def test_the_checks_tell_a_flow_from_one_with_a_mistake():
    found = checks.check(linear_flow(), 0, points=3)
    assert found.mass < 1e-3 < found.mass_without
    assert found.log_det < 1e-7 < found.log_det_probe
    assert found.zuko < 1e-7 < found.zuko_coarse


def test_the_costs_are_ratios_of_all_seeds_and_dimensions(tmp_path):
    found = costs.costs(smoke(tmp_path), [0])
    assert len(found.likelihood) == len(found.zuko) == 1
    assert len(found.exact) == len(found.probe) == len(costs.DIMS)
    assert min(*found.likelihood, *found.zuko, *found.exact, *found.probe) > 0
    assert not list(tmp_path.rglob("*"))


def test_the_density_on_the_way_is_that_of_moved_points():
    A = 0.5 * torch.randn(2, 2, generator=seeded(3, 0), dtype=torch.float64)
    flow, x = linear_flow(), torch.randn(5, 2, generator=seeded(0, 0), dtype=torch.float64)
    E = torch.linalg.matrix_exp(0.6 * A)  # from t = 0.4 to 1
    normal = torch.distributions.MultivariateNormal(0 * x[0], precision_matrix=E.T @ E)
    found = lecture.density_at(flow, 0.4, x, steps=64)
    torch.testing.assert_close(found, normal.log_prob(x).exp(), rtol=1e-6, atol=0)
    torch.testing.assert_close(lecture.density_at(flow, 0.0, x, 64), flow.log_prob(x).exp())


def test_the_mean_density_prefers_spots_that_are_too_narrow_and_one_as_much_as_eight():
    truth = TOYS["8gaussians"]
    x = truth.sample(200_000, seeded(0, 0), dtype=torch.float64)

    def mean_density(narrower, spots):
        weights = torch.full((spots,), 1 / spots, dtype=torch.float64)
        model = Mixture(weights, truth.means[:spots], narrower * truth.std[:spots])
        return model.log_prob(x).exp().mean().item()

    half = mean_density(0.5, 8)
    assert half / mean_density(1.0, 8) == pytest.approx(2 / (1 + 0.5**2), rel=0.01)
    assert mean_density(0.5, 1) == pytest.approx(half, rel=0.02)

import inspect
import math

import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from torch import nn

from ctdl_lib.generative import Flow
from ctdl_lib.potentials import AutodiffPotential, ResNetPotential
from experiments.ot_flow import race, rivals
from experiments.ot_flow.rivals import Draw, mmd
from machinery.store import Store


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """The velocity v(t, x) = M x."""

    def __init__(self, M):
        super().__init__()
        self.M = nn.Parameter(M)

    def forward(self, t, x):
        return x @ self.M.T


class Travelling(nn.Module):
    """The value c·x + ½‖c‖² t, which solves ∂ₜΦ = ½‖∇Φ‖² exactly."""

    def __init__(self, c, rate=1.0):
        super().__init__()
        self.c, self.rate = c, rate

    def forward(self, t, x):
        return x @ self.c + 0.5 * self.rate * self.c.square().sum() * t


def test_a_stationary_potential_agrees_with_autodiff_and_forgets_time():
    inner = ResNetPotential(2, width=8, generator=seeded()).double()
    phi = rivals.Stationary(inner)

    class Frozen(nn.Module):
        def forward(self, t, x):
            return inner(0.0, x) + 0.0 * t

    x = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)
    other = AutodiffPotential(Frozen())
    for sigma in (None, 0.3):
        found = phi.derivatives(0.7, x, sigma)
        for a, b in zip(found, other.derivatives(0.2, x, sigma), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(phi.gradient(0.7, x), found[:3], strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(phi(0.1, x), phi(0.9, x))


def test_a_generator_follows_a_solution_of_hjb_without_penalty():
    c = torch.tensor([0.3, -0.7], dtype=torch.float64)
    z = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    end = rivals.generated(AutodiffPotential(Travelling(c)), z, steps=3)
    torch.testing.assert_close(end.x, z + c)  # ẋ = −c, followed from t = 1 back to 0
    torch.testing.assert_close(end.penalty, torch.zeros(6, dtype=torch.float64))
    wrong = rivals.generated(AutodiffPotential(Travelling(c, rate=0.0)), z, steps=3)
    torch.testing.assert_close(wrong.penalty, (0.5 * c.square().sum()).square().expand(6))


def within(values, wanted, errors=4.0):
    """Where the mean of repeated estimates is `wanted` within four standard errors."""
    values = torch.tensor(values)
    return float((values.mean() - wanted).abs()) < errors * float(values.std()) / len(values) ** 0.5


def gaussian_mmd(d, shift, deviation, bandwidth):
    """The squared discrepancy of N(0, I) and N(m, s²I), ‖m‖ = shift, in closed form."""

    def mean_kernel(variance, distance):  # E exp(−‖Z‖²/(2h²)), Z ~ N(distance, variance·I)
        total = bandwidth**2 + variance
        return (bandwidth**2 / total) ** (d / 2) * math.exp(-0.5 * distance**2 / total)

    across = mean_kernel(1 + deviation**2, shift)
    return mean_kernel(2, 0) + mean_kernel(2 * deviation**2, 0) - 2 * across


@pytest.mark.parametrize(("shift", "deviation"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1.5), (1.0, 0.7)])
def test_mmd_of_gaussians_is_unbiased(shift, deviation, generator):
    d, bandwidth, values = 3, 1.2, []
    for _ in range(300):
        x = torch.randn(40, d, generator=generator)
        y = deviation * torch.randn(30, d, generator=generator)
        y[:, 0] += shift
        values.append(mmd(x, y, bandwidth=bandwidth))
    assert within(values, gaussian_mmd(d, shift, deviation, bandwidth))
    assert min(values) < 0 or shift + deviation > 1


def test_mmd_is_that_of_the_formula():
    x, y = torch.randn(7, 2), torch.randn(5, 2)
    k = [torch.exp(-(torch.as_tensor(d) ** 2)) for d in (pdist(x), pdist(y), cdist(x, y))]
    by_hand = k[0].mean() + k[1].mean() - 2 * k[2].mean()
    assert mmd(x, y, bandwidth=math.sqrt(0.5)) == pytest.approx(float(by_hand), rel=1e-12)


def test_mmd_of_many_samples_is_that_of_the_formula():
    x, y = torch.randn(2500, 2), torch.randn(2100, 2) + 0.3
    k = [torch.exp(-(torch.as_tensor(d) ** 2) / 2) for d in (pdist(x), pdist(y), cdist(x, y))]
    at_once = float(k[0].mean() + k[1].mean() - 2 * k[2].mean())
    assert mmd(x, y, bandwidth=1.0) == pytest.approx(at_once, abs=1e-12)


def test_the_bandwidth_of_mmd_is_chosen_never_defaulted():
    parameter = inspect.signature(mmd).parameters["bandwidth"]
    assert parameter.default is inspect.Parameter.empty
    with pytest.raises(ValueError, match="positive"):
        mmd(torch.ones(3, 2), torch.ones(3, 2), bandwidth=0.0)
    with pytest.raises(ValueError, match="at least two"):
        mmd(torch.ones(1, 2), torch.ones(3, 2), bandwidth=1.0)


def test_the_kernel_distance_is_a_sum_of_mmds_and_has_a_gradient():
    x, y = torch.randn(2, 40, 2, generator=seeded(), dtype=torch.float64)
    y = (y + 1).requires_grad_()
    found = rivals.kernel_distance(x, y, (0.5, 2.0))
    one_by_one = [mmd(x, y.detach(), bandwidth=h) for h in (0.5, 2.0)]
    assert found.item() == pytest.approx(sum(one_by_one))
    (slope,) = torch.autograd.grad(found, y)
    assert (slope.mean(0) > 0).all()  # further away, more distance
    small = 1e-6 * torch.ones_like(x)
    change = rivals.kernel_distance(x, y + small, (0.5, 2.0)) - found
    assert change.item() == pytest.approx((slope * small).sum().item(), rel=1e-4)


def test_the_regularisers_of_a_linear_velocity_are_known():
    M = torch.tensor([[0.3, -0.5], [0.2, 0.1]], dtype=torch.float64)
    x = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    end = rivals.regularized(Linear(M), x, steps=50)
    torch.testing.assert_close(end.x, x @ torch.linalg.matrix_exp(M).T)
    torch.testing.assert_close(end.log_det, M.trace().expand(4))
    torch.testing.assert_close(end.jacobian, M.square().sum().expand(4))
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    speeds = (x @ (M @ torch.linalg.matrix_exp(t[:, None, None] * M)).mT).square().sum(2)
    torch.testing.assert_close(end.kinetic, torch.trapezoid(speeds, t, dim=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["RNODE", "Monge–Ampère flow"])
def test_the_likelihood_of_a_rival_is_that_of_its_flow(name):
    flow = race.built(name, 0)
    x, z = torch.randn(2, 8, 2, generator=seeded())
    key = race.ENTRANTS[name]
    loss = race.objective(name, key, flow, Draw(x, z))
    nll = loss["nll"] if name == "RNODE" else loss
    solved = Flow(flow.velocity, 2, solver={"steps": key["rk4"]}, standardize=False)
    torch.testing.assert_close(nll, -solved.log_prob(x).mean())


@pytest.mark.parametrize("name", list(race.ENTRANTS))
def test_every_entrant_learns_and_leaves_no_file_in_smoke(tmp_path, name):
    store = Store("07_ot_flow", "smoke", folder=tmp_path)
    _, record = race.compete(store, name, 0)
    finish = race.finish(store, name, 0)
    assert finish.steps == 3
    assert finish.evaluations % 2 == 0
    assert math.isfinite(finish.gap)
    assert finish.detour >= finish.bend >= 0
    assert not list(tmp_path.rglob("*"))
    assert record.losses[-1] < record.losses[0]


def test_all_entrants_have_the_same_search(tmp_path):
    store = Store("07_ot_flow", "smoke", folder=tmp_path)
    found = race.searched(store, "RNODE").numbers
    assert list(found) == [str(lr) for lr in race.RATES]
    assert all(len(row) == 3 for row in found.values())


@pytest.mark.parametrize("name", list(race.ENTRANTS))
def test_the_rate_of_an_entrant_is_the_best_of_the_search(name):
    found = race.searched(Store("07_ot_flow", "saved"), name).numbers
    at_goal = {lr: s for lr, (_, s, gap) in found.items() if gap <= race.RACE["target"]}
    gaps = {lr: gap for lr, (_, _, gap) in found.items()}
    best = min(at_goal, key=at_goal.__getitem__) if at_goal else min(gaps, key=gaps.__getitem__)
    assert race.ENTRANTS[name]["lr"] == float(best)


@pytest.mark.parametrize("name", ["OT-Flow", "RNODE"])
def test_the_stored_finish_is_that_of_the_stored_weights(name):
    torch.set_default_dtype(torch.float32)  # as the book computes
    store = Store("07_ot_flow", "saved")
    kept = race.race(store)[name][0]
    again = race.finish(store, name, race.SEEDS[0])
    assert (again.steps, again.seconds) == (kept.steps, kept.seconds)
    assert again.gap == pytest.approx(kept.gap, abs=1e-4)
    assert again.bend == pytest.approx(kept.bend, rel=1e-2)
    assert again.evaluations == pytest.approx(kept.evaluations, rel=0.2)

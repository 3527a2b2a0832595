import math

import numpy as np
import pytest
import torch
from scipy.integrate import RK23, solve_ivp
from torch.func import jacrev, vmap

from ctdl_lib.metrics import observed_orders
from ctdl_lib.networks import MLP
from experiments.neural_odes import (
    adaptive,
    augmentation,
    duels,
    evidence,
    flows,
    gradients,
    implicit,
    lecture,
    spiral,
    turbulence,
)
from experiments.neural_odes.problems import spiral_velocity, van_der_pol
from machinery import claims
from machinery.store import Store, results_folder

pytestmark = pytest.mark.usefixtures("as_the_book_computes")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def smoke(tmp_path):
    return Store("03_neural_odes", "smoke", folder=tmp_path)


# --- adaptive steps -----------------------------------------------------------------------------


def test_the_pair_is_that_of_scipy():
    f, x = van_der_pol(2.0), torch.tensor([[1.5, -0.5]], dtype=torch.float64)
    end, estimate = adaptive.pair(f, 0.0, x, 0.1)
    slope = lambda t, y: f(t, torch.as_tensor(y)[None])[0].numpy()  # noqa: E731
    theirs = RK23(slope, 0.0, x[0].numpy(), 1.0, first_step=0.1, rtol=1e3, atol=1e3)
    theirs.step()
    assert theirs.t == pytest.approx(0.1)
    assert np.allclose(end[0].numpy(), theirs.y, atol=1e-14)
    assert np.allclose(estimate[0].numpy(), -0.1 * theirs.K.T @ theirs.E, atol=1e-14)


def test_steps_meet_the_tolerance_and_reach_the_end():
    f, x = van_der_pol(5.0), torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    trials = adaptive.adaptive(f, x, 12.0, 1e-4)
    accepted = [t for t in trials if t.accepted]
    assert sum(t.h for t in accepted) == pytest.approx(12.0)
    assert len(accepted) < len(trials)
    assert max(t.h for t in accepted) > 20 * min(t.h for t in accepted)
    slope = lambda t, y: f(t, torch.as_tensor(y)[None])[0].numpy()  # noqa: E731
    exact = solve_ivp(slope, (0, 12), [2.0, 0.0], rtol=1e-10, atol=1e-12).y[:, -1]
    assert np.abs(accepted[-1].end[0].numpy() - exact).max() < 0.02


def test_equal_steps_have_order_three():
    decay = lambda t, x: -x  # noqa: E731
    one = torch.ones(1, 1, dtype=torch.float64)
    errors = [abs(adaptive.equal(decay, one, 1.0, n).item() - math.exp(-1)) for n in (20, 40)]
    assert observed_orders(errors, [1 / 20, 1 / 40])[-1] == pytest.approx(3, abs=0.05)


def test_on_a_decay_adaptive_steps_gain_little(monkeypatch):
    monkeypatch.setattr(adaptive, "van_der_pol", lambda mu: lambda t, x: -0.1 * x)
    found = adaptive.work(0.0, 0, tol=1e-6, horizon=2.0)
    assert found.equal <= 3 * found.adaptive


# --- the spiral and its gradients ---------------------------------------------------------------


class True_(torch.nn.Module):  # noqa: N801
    def __init__(self):
        super().__init__()
        self.A = torch.nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]))

    def forward(self, t, x):
        return x**3 @ self.A


def test_the_true_velocity_is_at_no_distance():
    x = torch.randn(5, 2, generator=seeded())
    assert torch.allclose(True_()(0.0, x), spiral_velocity(0.0, x))
    found = spiral.distances(True_())
    assert max(found.within, found.beyond) < 1e-3


def test_gradients_of_fixed_steps_are_exact_for_their_loss_and_the_adjoint_is_not():
    net = spiral.Linear(0, power=3).double()  # four weights, so that quotients are cheap
    net.A.data = torch.tensor([[-0.2, 1.5], [-1.5, -0.2]], dtype=torch.float64)
    assert gradients.own_miss(net, gradients.WAYS["recompute, 30 steps"]) < 1e-7
    loose, tight = ({"tol": tol, "backprop": "adjoint"} for tol in (1e-1, 1e-7))
    assert gradients.own_miss(net, tight) < gradients.own_miss(net, loose) / 100
    exact = gradients.spiral_gradient(net, {"steps": 240})
    assert gradients.off(gradients.spiral_gradient(net, tight), exact) < 1e-3


def test_gradients_through_adaptive_steps_miss_how_the_steps_depend_on_the_weights():
    """Second route: on ẋ = ax the derivative of the computed loss is that of a difference."""
    net = spiral.Linear(0, power=3).double()
    net.A.data = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    found = gradients.spiral_gradient(net, {"tol": 1e-2})
    coarse, fine = (gradients.own_gradient(net, {"tol": 1e-2}, h) for h in (1e-5, 1e-6))
    assert gradients.off(coarse, fine) < 1e-3
    assert gradients.off(found, fine) > 1e-2


def test_contraction_loses_the_way_back_and_snapshots_do_not():
    f = gradients.Contracting(10, 3)
    assert gradients.round_trip(f, f.x, 3.0, 1e-6) > 0.9
    still = gradients.Contracting(0, 3)
    assert gradients.round_trip(still, still.x, 3.0, 1e-6) < 1e-3
    errors = [gradients.contracting_error(10, 3, how) for how in gradients.CONTRACTING.values()]
    assert errors[1] > 0.5 > 0.01 > errors[2]


def test_decay_returns_with_the_error_that_growth_makes_of_it():
    """Second route: an error at T grows by exp(5) on the way back."""
    one = torch.ones(1, 1, dtype=torch.float64)
    found = gradients.round_trip(lambda t, x: -5 * x, one, 1.0, 1e-6)
    assert 1e-7 * math.exp(5) < found < 1e-5 * math.exp(5)


def test_times_are_interpolated_at_equal_error():
    error = {"ours, RK4|5": 1e-1, "ours, RK4|10": 1e-3, "ours, RK4|20": 1e-5, "slow|1": 1e-3}
    seconds = [{"ours, RK4|5": 1.0, "ours, RK4|10": 2.0, "ours, RK4|20": 4.0, "slow|1": 6.0}]
    work = {"error": error, "seconds": seconds}
    ratio = lambda at: gradients.equally_exact(work | {"error": error | {"slow|1": at}}, "slow|1")  # noqa: E731
    assert ratio(1e-3) == pytest.approx([3.0])
    assert ratio(1e-4) == pytest.approx([6 / 8**0.5])
    assert ratio(1e-9) == pytest.approx([1.5])


def test_torchdiffeqs_fixed_steps_are_as_many_as_ours_and_nearly_as_exact():
    """They take the 3/8 rule, another method of order four."""
    net, calls = spiral.Network(0).double(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    x = spiral.starts(torch.float64)
    solvers = gradients.contenders(net, x)
    for n in gradients.ON_GRID:
        calls.clear()
        with torch.no_grad():
            theirs = solvers[gradients.THEIR_RK4][1](n)
            assert len(calls) == 4 * n
            assert torch.allclose(theirs, solvers["ours, RK4"][1](n), atol=1e-4)


# --- both orders of two words -------------------------------------------------------------------


def test_without_contraction_both_ways_agree_and_data_can_be_fitted():
    results = {
        way: duels.duel(duels.Settings(0.0, way, lr=0.1), 1, 25)
        for way in (duels.SAME, duels.TIGHT)
    }
    same, tight = (results[way].loss for way in results)
    assert same == pytest.approx(tight, rel=0.1)
    first = duels.duel(duels.Settings(0.0, duels.SAME), 1, 0).loss
    assert same < first / 3
    assert results[duels.TIGHT].evaluations > results[duels.SAME].evaluations


# --- augmentation -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["no zeros", "five zeros"])
def test_a_flow_at_rest_stretches_nothing(kind):
    net = augmentation.network(augmentation.Settings(*augmentation.KINDS[kind]), 0)
    for p in net.velocity.parameters():
        p.data.zero_()
    y = torch.randn(5, 2, generator=seeded())
    assert augmentation.stretch(net, y) == pytest.approx(1.0)


def test_the_wider_network_of_the_plane_has_the_weights_of_the_augmented_one():
    def weights(kind):
        net = augmentation.network(augmentation.Settings(*augmentation.KINDS[kind]), 0)
        return sum(p.numel() for p in net.parameters())

    assert weights("no zeros, wider") == pytest.approx(weights("five zeros"), rel=0.05)
    assert weights("no zeros") < 0.9 * weights("five zeros")


# --- densities ----------------------------------------------------------------------------------


def test_the_density_of_the_moons_has_mass_one_and_fits_their_histogram():
    axis = torch.linspace(-1.5, 2.5, 101, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    density = flows.true_density(plane, nodes=200)
    cell = (4 / 100) ** 2
    assert density.sum().item() * cell == pytest.approx(1, abs=1e-6)
    x = flows.moons(7, 20_000)
    upper = (plane[:, 1] > 0.25).double()
    share = (x[:, 1] > 0.25).double().mean().item()
    assert (density * upper).sum().item() * cell == pytest.approx(share, abs=0.02)


def test_no_density_beats_the_floor():
    assert flows.floor(3) < flows.gaussian(3)


def test_an_untrained_flow_is_a_density(tmp_path):
    net = flows.fit(smoke(tmp_path), 0)
    axis = torch.linspace(-6, 6, 121)
    plane = torch.cartesian_prod(axis, axis)
    assert flows.log_density(net, plane).exp().sum().item() * 0.01 == pytest.approx(1, abs=0.01)


def test_networks_are_inverted_unless_they_are_no_contractions():
    assert flows.network_error(1, 20) < 1e-12
    assert flows.network_error(1, 20, 20.0) > 1e-2


def test_a_mixture_is_a_density_near_the_floor():
    assert flows.floor(2) < flows.mixture(2) < flows.gaussian(2)


def test_cut_series_are_biased_and_roulettes_are_not():
    exact = flows.exact_log_det()
    assert abs(flows.cut_log_det(4) - exact) > 0.1
    assert flows.cut_log_det(200) == pytest.approx(exact, abs=1e-4)
    assert flows.roulette_log_det(0, 2000) == pytest.approx(exact, abs=0.15)


# --- implicit steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_an_implicit_step_of_a_linear_velocity_is_the_rational_function(theta):
    A = torch.nn.Linear(3, 3, bias=False).double()
    velocity = Stationary(A)
    x = torch.randn(4, 3, generator=seeded(), dtype=torch.float64)
    one, h = torch.eye(3, dtype=torch.float64), 0.7
    exact = torch.linalg.solve(one - h * theta * A.weight, (one + h * (1 - theta) * A.weight)) @ x.T
    found = implicit.implicit_step(velocity, x, h, theta=theta)
    assert torch.allclose(found, exact.T, atol=1e-10)
    ours = torch.autograd.grad(found.square().sum(), A.weight)[0]
    theirs = torch.autograd.grad(exact.square().sum(), A.weight)[0]
    assert torch.allclose(ours, theirs, atol=1e-8)


class Stationary(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, t, x):
        return self.inner(x)


def test_derivatives_of_an_implicit_step_are_those_of_difference_quotients():
    net = MLP(3, width=6, time=False, generator=seeded()).double()
    x = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    weight = net.weights[0]

    def value(x):
        return implicit.implicit_step(net, x, 0.4, tol=1e-13).square().sum()

    by_x, by_weight = torch.autograd.grad(value(x), (x, weight))
    with torch.no_grad():
        d = torch.randn(x.shape, generator=seeded(2), dtype=torch.float64)
        slope = (value(x + 1e-6 * d) - value(x - 1e-6 * d)) / 2e-6
        assert slope.item() == pytest.approx((by_x * d).sum().item(), rel=1e-6)
        before = value(x)
        weight.data[0, 0] += 1e-6
        assert ((value(x) - before) / 1e-6).item() == pytest.approx(
            by_weight[0, 0].item(), rel=1e-4
        )


def test_a_step_without_a_solution_is_refused():
    class Square(torch.nn.Module):
        def forward(self, t, x):
            return 1 + x**2

    with pytest.raises(ArithmeticError, match="smaller steps"):
        implicit.implicit_step(Square(), torch.zeros(1, 1, dtype=torch.float64), 10.0)


def system(kappa, t, x):
    """A turn, and a fast way to the slow c = ab."""
    a, b, c = x.unbind(-1)
    return torch.stack([b, -a, -kappa * (c - a * b)], -1)


@pytest.mark.parametrize("kappa", implicit.KAPPA.values())
def test_the_closed_form_solves_the_slow_fast_system(kappa):
    x = implicit.points(1, 4)
    slope = lambda t, y: system(kappa, t, torch.as_tensor(y)[None])[0].numpy()  # noqa: E731
    exact = solve_ivp(slope, (0, 1.3), x[0].numpy(), method="Radau", rtol=1e-9, atol=1e-11).y[:, -1]
    assert np.allclose(implicit.solution(kappa, x, 1.3)[0].numpy(), exact, atol=1e-7)


def test_the_true_equation_predicts_and_resting_does_not():
    class Truth(torch.nn.Module):
        def forward(self, t, x):
            return system(100.0, t, x)

    assert implicit.prediction_error(Truth(), 100.0, 3, 1.0) < 1e-3
    assert implicit.still(100.0, 3) > 0.5


def test_which_rate_the_trapezoidal_rule_finds():
    """The fast part vanishes within an interval of 0.1, as it would with the rate 20."""
    factor = lambda z: (1 - z / 2) / (1 + z / 2)  # noqa: E731
    assert factor(2.0) == 0
    assert abs(factor(0.1 * 100)) > 0.6 > math.exp(-10)


# --- waves --------------------------------------------------------------------------------------


def test_the_truth_solves_the_equation():
    """Second route: SciPy's implicit solver for the same spectral right-hand side."""
    u = turbulence.solutions(0, 1, 0.25)
    k = turbulence.wave_numbers().numpy()

    def slope(t, u):
        v = np.fft.rfft(u)
        return np.fft.irfft((k**2 - k**4) * v - 0.5j * k * np.fft.rfft(u**2), len(u))

    start = u[0, 0].numpy()
    exact = solve_ivp(slope, (0, 0.25), start, method="BDF", rtol=1e-9, atol=1e-10).y[:, -1]
    assert np.abs(u[1, 0].numpy() - exact).max() < 1e-6


def test_small_waves_grow_as_the_dispersion_says():
    x = torch.arange(turbulence.NODES, dtype=torch.float64) / turbulence.NODES
    k = 2 * 2 * math.pi / turbulence.LENGTH
    u = 1e-6 * torch.sin(2 * 2 * math.pi * x)[None]
    grown = turbulence.truth(u, 4)[-1].abs().max() / u.abs().max()
    assert grown.item() == pytest.approx(math.exp(k**2 - k**4), rel=1e-4)


def stencil(radius=2):
    key = turbulence.Settings("implicit", radius=radius)
    u = turbulence.solutions(1, 1, 10.0)[:, 0]
    net = turbulence.Stencil(key, 0)
    net.whitening.copy_(turbulence.whitening_of(u, radius))
    return net, u


def test_windows_are_white_and_the_jacobian_is_that_of_autograd():
    net, u = stencil()
    z = (u[:, net.index] @ net.whitening).flatten(0, 1)
    assert torch.allclose(z.T @ z / len(z), torch.eye(5, dtype=torch.float64), atol=1e-6)
    exact = vmap(jacrev(lambda u: net(0.0, u[None])[0]))(u[:2])
    assert torch.allclose(net.jacobian(u[:2]), exact)


def test_differences_as_a_stencil_have_nearly_the_growth_rates_of_the_equation():
    net, _ = stencil()
    h = turbulence.LENGTH / turbulence.NODES
    second = torch.tensor([0, 1, -2, 1, 0], dtype=torch.float64) / h**2
    fourth = torch.tensor([1, -4, 6, -4, 1], dtype=torch.float64) / h**4
    net.w.data = torch.linalg.solve(net.whitening, -second - fourth)
    for p in net.layers.parameters():
        p.data.zero_()
    assert turbulence.rate_error(net.requires_grad_(False), 1.0) < 0.05


def test_predictions_are_valid_until_they_are_not():
    u = turbulence.solutions(5000, 8, 4.0)
    assert turbulence.lost_at(u, u) == [4.25] * 8
    assert turbulence.lost_at(u[:1], u) == [0.25] * 8
    late = u.clone()
    late[8:] += 10
    assert turbulence.lost_at(late, u) == [2.0] * 8
    assert max(turbulence.still_times(0, 4.0)) <= 4.25


# --- the pages ----------------------------------------------------------------------------------


def test_the_sentences_of_the_lecture_are_claims_that_are_stored():
    rows = claims.read(results_folder() / "claims" / f"{evidence.CHAPTER}.json")
    assert set(lecture.SENTENCES) <= {row.id for row in rows if isinstance(row, claims.Claim)}

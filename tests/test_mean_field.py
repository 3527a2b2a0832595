"""Mean-field games: exact solutions, the two penalties, and the same games on a grid."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from ctdl_lib.dynamics import integrate
from ctdl_lib.generative import MeanFieldGame, mean_field, transport
from ctdl_lib.potentials import AutodiffPotential, ResNetPotential
from ctdl_lib.problems.densities import Mixture
from ctdl_lib.references.grids import Grid
from experiments.mean_field_games import sinkhorn
from experiments.mean_field_games.games import (
    EntropicGame,
    crowd_motion,
    gaussian,
    gaussian_solution,
    on_grid,
    ring_to_gaussian,
)
from experiments.mean_field_games.sinkhorn import scaled_paths


def stretched(d=3, lam=3.0):
    """A game between two normal densities whose deviations differ on every axis."""
    rising = torch.linspace(0.5, 1.5, d)[None]
    initial = Mixture(torch.ones(1), rising, 0.5 * rising)
    return EntropicGame(initial, Mixture(torch.ones(1), -2 * rising, rising.flip(1)), lam)


GAMES = {
    "stretched": stretched(),
    "narrower": EntropicGame(gaussian(torch.ones(2), 1.0), gaussian(-torch.ones(2), 0.1), 0.5),
    "ten dimensions": EntropicGame(
        gaussian(torch.ones(10), 0.3), gaussian(torch.zeros(10), 1.0), 9.0
    ),
}


@pytest.mark.parametrize("name", GAMES)
def test_the_exact_value_function_has_no_residual_and_meets_the_end(name, generator):
    """The HJB equation holds everywhere, the terminal condition with its additive constant."""
    game = GAMES[name]
    exact = gaussian_solution(game)
    x = game.initial.sample(50, generator)
    phi = exact.potential.derivatives(torch.rand(50), x)
    assert torch.allclose(phi.dt, 0.5 * phi.dx.square().sum(1), atol=1e-12)
    wanted = game.terminal(x, exact.end.log_prob(x)).variation
    assert torch.allclose(exact.potential(1.0, x), wanted, atol=1e-12)


def test_the_objective_of_the_exact_solution_has_no_penalties(generator):
    """Up to what RK4 leaves of the log-determinant: the error is of order 4."""
    game = stretched()
    exact, x = gaussian_solution(game), game.initial.sample(50, generator)
    terms = [
        mean_field(exact.potential, x, game, steps=n, hjb=1.0, terminal_condition=1.0)
        for n in (12, 24)
    ]
    assert max(float(found["hjb"]) for found in terms) < 1e-12
    gaps = [float(found["terminal condition"]) for found in terms]
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("name", GAMES)
def test_the_exact_cost_is_that_of_its_paths(name, generator):
    game = GAMES[name]
    exact = gaussian_solution(game)
    x = game.initial.sample(2000, generator)
    end = transport(exact.potential, x, steps=16, game=game)
    terminal = game.terminal(end.x, game.log_initial(x) - end.log_det).value
    for values, known in ((end.transport_cost, exact.transport), (terminal, exact.terminal)):
        assert abs(values.mean() - known) < 4 * values.std() / math.sqrt(len(x))
    assert exact.cost == pytest.approx(exact.transport + exact.terminal)
    assert torch.allclose(game.log_initial(x) - end.log_det, exact.end.log_prob(end.x), atol=1e-4)


def test_no_normal_law_ends_cheaper():
    """The closed form against minimisation of ½W₂² + λ KL over the mean and the deviation."""
    game = EntropicGame(
        gaussian(torch.tensor([2.0]), 0.5), gaussian(torch.tensor([-1.0]), 0.2), 3.0
    )
    m = torch.tensor(0.0, requires_grad=True)
    log_s = torch.tensor(0.0, requires_grad=True)
    search = torch.optim.LBFGS([m, log_s], max_iter=100, tolerance_grad=1e-12)

    def cost():
        search.zero_grad()
        s = log_s.exp()
        moved = 0.5 * ((m - 2) ** 2 + (s - 0.5**0.5) ** 2)
        kl = 0.5 * math.log(0.2) - log_s + (s**2 + (m + 1) ** 2) / 0.4 - 0.5
        total = moved + 3 * kl
        total.backward()
        return total

    search.step(cost)
    exact = gaussian_solution(game)
    assert float(cost().detach()) == pytest.approx(exact.cost, abs=1e-10)
    assert float(m.detach()) == pytest.approx(float(exact.end.means), abs=1e-6)
    assert float(log_s.detach().exp()) == pytest.approx(float(exact.end.std), abs=1e-6)


def test_other_potentials_cost_more_than_the_exact_one(generator):
    game = stretched()
    exact, x = gaussian_solution(game), game.initial.sample(1000, generator)
    other = ResNetPotential(3, width=8, generator=generator).requires_grad_(False)
    for potential in (other, still()):
        terms = mean_field(potential, x, game, steps=16, hjb=0.0, terminal_condition=0.0)
        assert sum(float(term) for term in terms.values()) > exact.cost


class Plane(nn.Module):
    """A potential that depends on the first two coordinates alone."""

    def forward(self, t, x):
        a, b = x[:, 0], x[:, 1]
        return 0.5 * (1 - 0.3 * t) * (a**2 + 0.5 * b**2) + torch.sin(a) * b


class Nothing(nn.Module):
    def forward(self, t, x):
        return 0.0 * x.sum(-1)


def still():
    return AutodiffPotential(Nothing())


def test_a_crowd_that_stands_still_pays_the_divergence_of_two_normal_densities(generator):
    """KL(N(μ₀, a)‖N(μ₁, b)) = ½(log|b/a| + tr(a/b) + (μ₀ − μ₁)²/b − d)."""
    game = stretched(4, lam=2.0)
    x = game.initial.sample(50_000, generator)
    cost = transport(still(), x, steps=1, game=game)
    value = game.terminal(cost.x, game.log_initial(x)).value
    a, b = game.initial.std[0] ** 2, game.target.std[0] ** 2
    apart = (game.initial.means - game.target.means)[0] ** 2
    known = 0.5 * ((b / a).log() + a / b + apart / b - 1).sum()
    assert abs(value.mean() - 2 * known) < 4 * value.std() / math.sqrt(len(x))


@pytest.mark.parametrize("game", [stretched(2), crowd_motion(2), ring_to_gaussian(2)])
def test_variations_are_the_derivatives_of_the_functionals(game):
    """d/dε ∫F(ρ + εφ)(ρ + εφ) at 0 is ∫(δF/δρ) φ, by a central difference on a grid."""
    axis = torch.linspace(-3, 3, 31)
    x = torch.cartesian_prod(axis, axis)
    rho, phi = torch.rand(len(x)) + 0.5, torch.rand(len(x)) - 0.5
    for cost in (
        lambda rho: game.terminal(x, rho.log()),
        lambda r: game.interaction(0.3, x, r.log()),
    ):
        h = 1e-5
        more, less = ((r * cost(r).value).sum() for r in (rho + h * phi, rho - h * phi))
        slope = (more - less) / (2 * h)
        assert torch.allclose(slope, (cost(rho).variation * phi).sum(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("make", [ring_to_gaussian, lambda d: crowd_motion(d, entropy=0.0)])
def test_coordinates_that_agree_cost_nothing(make, generator):
    """What is best in the plane has the same costs and residuals in Rᵈ: the optimum is shared."""
    low, high = make(2), make(6)
    potential = AutodiffPotential(Plane())
    x = high.initial.sample(300, generator)
    weights = {"steps": 3, "hjb": 1.0, "terminal_condition": 1.0}
    inside = mean_field(potential, x[:, :2], low, **weights)
    for name, value in mean_field(potential, x, high, **weights).items():
        assert torch.allclose(value, inside[name], atol=1e-12), name


def test_entropy_of_coordinates_that_rest_is_a_constant(generator):
    x = crowd_motion(5).initial.sample(2000, generator)
    costs = [
        transport(AutodiffPotential(Plane()), x[:, :d], steps=2, game=crowd_motion(d))
        for d in (2, 5)
    ]
    values = costs[1].interaction_cost - costs[0].interaction_cost
    known = -0.01 * 3 * 0.5 * math.log(2 * math.pi * math.e * 0.3)
    assert abs(values.mean() - known) < 4 * values.std() / math.sqrt(len(x))


def test_the_hill_is_that_of_the_paper():
    game = crowd_motion(3)
    top = game.potential_energy(torch.tensor([[0.0, 0.0, 7.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    assert float(top[0]) == pytest.approx(50 / (2 * math.pi * math.sqrt(0.5)), rel=1e-12)
    assert torch.allclose(top[1:] / top[0], torch.tensor([-0.5, -1.0]).exp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_games_keep_the_dtype_of_the_samples(dtype, generator):
    for game in (ring_to_gaussian(3), crowd_motion(3)):
        x = game.initial.sample(5, generator, dtype=dtype)
        for cost in (game.interaction(0.0, x, x[:, 0]), game.terminal(x, x[:, 0])):
            assert cost.value.dtype == cost.variation.dtype == dtype
            assert cost.value.shape == (5,)


def test_the_paths_of_the_exact_solution_are_straight(generator):
    exact = gaussian_solution(stretched())
    x = stretched().initial.sample(20, generator)
    path = integrate(lambda t, x: -exact.potential.gradient(t, x).dx, x, 0.0, 1.0, steps=8,
                     save_at=[0.0, 0.25, 1.0])  # fmt: skip
    assert torch.allclose(path[1], 0.75 * path[0] + 0.25 * path[2], atol=1e-12)


# --- on a grid ----------------------------------------------------------------------------------


LINE = EntropicGame(gaussian(torch.ones(1), 0.5), gaussian(-torch.ones(1), 0.2), 3.0)
AXIS = Grid((-5.0,), (6.0,), 161)


def bridge_cost(s, epsilon, lam=3.0, s0=0.5**0.5, variance=0.2):
    """The debiased entropic cost between N(0, s0²) and N(·, s²), plus λ KL, in closed form.

    The best coupling of variance ε has the covariance c = ½(√(ε² + 4s0²s²) − ε); what is spent is
    ½E|x − y|² + ε KL(P‖R), and the entropies of the ends are subtracted by halves.
    """
    c = 0.5 * (math.sqrt(epsilon**2 + 4 * s0**2 * s**2) - epsilon)
    joint = -0.5 * math.log((2 * math.pi * math.e) ** 2 * (s0**2 * s**2 - c**2))
    relative = (
        joint + 0.5 * (s0**2 + s**2 - 2 * c) / epsilon + 0.5 * math.log(2 * math.pi * epsilon)
    )
    ends = sum(-0.5 * math.log(2 * math.pi * math.e * v) for v in (s0**2, s**2))
    kl = 0.5 * (math.log(variance / s**2) + s**2 / variance - 1)
    return epsilon * (relative - ends / 2) + lam * kl


@pytest.mark.parametrize("steps", [1, 3])
def test_the_grid_solves_the_viscous_game_between_normal_densities(steps):
    """At any ε: the means move as without noise, the deviation is found by one minimisation."""
    epsilon = 0.3
    found = on_grid(LINE, AXIS, epsilon=epsilon, steps=steps, tol=1e-9)
    best = minimize_scalar(bridge_cost, (0.3, 0.5), args=(epsilon,), tol=1e-12)
    stiffness = 1 + 3 / 0.2
    m = (1 - 3 / 0.2) / stiffness
    means = 0.5 * (m - 1) ** 2 + 3 * (m + 1) ** 2 / 0.4
    assert found.cost == pytest.approx(best.fun + means, abs=1e-8)
    cell, x = AXIS.spacing[0], AXIS.points()[:, 0]
    assert float((found.density[-1] * x).sum() * cell) == pytest.approx(m, abs=1e-6)
    spread = float((found.density[-1] * (x - m) ** 2).sum() * cell)
    assert math.sqrt(spread) == pytest.approx(best.x, abs=1e-6)


def test_the_grid_tends_to_the_game_without_noise_by_squares():
    exact = gaussian_solution(LINE).cost
    gaps = [on_grid(LINE, AXIS, epsilon=e, steps=1, tol=1e-8).cost - exact for e in (0.2, 0.1)]
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(2, abs=0.02)
    assert abs((4 * gaps[1] - gaps[0]) / 3) < 5e-5


def test_parts_of_the_grid_cost_tend_to_those_of_the_exact_solution():
    exact = gaussian_solution(LINE)
    found = on_grid(LINE, AXIS, epsilon=0.1, steps=2)
    assert found.transport == pytest.approx(exact.transport, rel=3e-3)
    assert found.terminal == pytest.approx(exact.terminal, rel=3e-3)
    assert found.cost == pytest.approx(found.transport + found.interaction + found.terminal)


def test_masses_stay_one_and_the_start_is_the_given_one():
    game, grid = crowd_motion(2), Grid((-4.0, -5.5), (4.0, 5.5), 37)
    found = on_grid(game, grid, epsilon=0.8, steps=5, tol=1e-5)
    cell = math.prod(grid.spacing)
    assert torch.allclose(found.density.sum((1, 2)) * cell, torch.ones(6), atol=1e-5)
    start = game.initial.log_prob(grid.points()).exp().reshape(grid.shape)
    assert torch.allclose(found.density[0], start / (start.sum() * cell), atol=1e-12)
    assert torch.allclose(found.density, found.density.flip(1), atol=1e-9)  # left and right


def test_the_entropy_of_a_resting_line_is_that_of_the_calculus_of_variations():
    """With ρ₀ = ρ₁ = N(0, s²) and the cost η log ρ the deviation follows Euler's equation."""
    eta, lam, nodes = 0.2, 2.0, 200
    game = EntropicGame(gaussian(torch.zeros(1), 0.3), gaussian(torch.zeros(1), 0.3), lam, eta)
    log_s = torch.zeros(nodes, requires_grad=True)
    search = torch.optim.LBFGS([log_s], max_iter=500, tolerance_grad=1e-10, history_size=50)
    width = math.sqrt(0.3)

    def cost():
        search.zero_grad()
        s = width * torch.cat([torch.zeros(1), log_s]).exp()
        moved = 0.5 * nodes * s.diff().square().sum()
        entropy = -(s.log() + 0.5 * math.log(2 * math.pi * math.e))
        within = eta * (0.5 * (entropy[1:] + entropy[:-1])).mean()
        total = moved + within + lam * ((width / s[-1]).log() + s[-1] ** 2 / 0.6 - 0.5)
        total.backward()
        return total

    search.step(cost)
    known = float(cost().detach())
    grid = Grid((-5.0,), (5.0,), 161)
    found = [on_grid(game, grid, epsilon=e, steps=16, tol=1e-7).cost for e in (0.2, 0.1)]
    assert (4 * found[1] - found[0]) / 3 == pytest.approx(known, abs=2e-4)


def test_products_of_matrices_blur_as_sums_of_exponentials(generator):
    u = 30 * torch.randn(9, 9, generator=generator)
    grid = Grid((0.0, 0.0), (4.0, 2.0), 9)
    kernels = [sinkhorn._kernel(grid, axis, 0.3, u) for axis in range(2)]
    pairs = kernels[0].log()[:, None, :, None] + kernels[1].log()[None, :, None, :]
    assert torch.allclose(sinkhorn._blur(u, kernels), (pairs + u).flatten(2).logsumexp(-1))


# --- bad input ----------------------------------------------------------------------------------


def two(d=2):
    return gaussian(torch.zeros(d), 1.0), gaussian(torch.ones(d), 1.0)


def path(**settings):
    grid = settings.pop("grid", AXIS)
    settings = {"epsilon": 0.3, "steps": 1} | settings
    return on_grid(settings.pop("game", LINE), grid, **settings)


BAD = {
    "dimensions": (lambda: EntropicGame(two(2)[0], two(3)[0], 1.0), r"R\^2, but target in R\^3"),
    "no target": (lambda: EntropicGame(*two(), 0.0), "must be positive"),
    "clumping": (lambda: EntropicGame(*two(), 1.0, -0.1), "entropy=-0.1"),
    "hill": (lambda: EntropicGame(*two(3), 1.0, 0.0, two(3)[0], 1.0), "density in R²"),
    "no hill": (lambda: EntropicGame(*two(), 1.0, height=3.0), "without an obstacle"),
    "a line": (lambda: crowd_motion(1), "at least 2"),
    "ring": (lambda: gaussian_solution(ring_to_gaussian(2)), "one component each"),
    "crowd": (lambda: gaussian_solution(crowd_motion(2)), "no closed form"),
    "no noise": (lambda: path(epsilon=0.0), "must exceed"),
    "much noise": (lambda: path(epsilon=7.0), "must exceed"),
    "narrow": (lambda: path(epsilon=0.001), "more nodes"),
    "short": (lambda: path(max_sweeps=3), "not enough"),
    "no density": (
        lambda: scaled_paths(
            torch.ones(161), torch.ones(161), AXIS, epsilon=0.3, steps=1, relative_entropy=1.0
        ),
        "mass 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_games_are_games():
    assert isinstance(crowd_motion(2), MeanFieldGame)

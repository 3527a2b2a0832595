"""Hamilton–Jacobi equations on a grid against Riccati, Hopf–Cole and Hopf–Lax."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import minimize_scalar

from ctdl_lib.metrics import observed_orders
from ctdl_lib.references.finite_differences import hamilton_jacobi
from ctdl_lib.references.grids import Grid


class Quadratic:
    """w = ½xᵀPx + bᵀx + c with H = −½pᵀMp + pᵀ(Ax + f(t)) + ½xᵀQx + eᵀx cos 3t, by its ODEs."""

    def __init__(self, d, seed=0):
        draw = np.random.default_rng(seed)
        m, q, s, p = (draw.normal(size=(d, d)) for _ in range(4))
        self.M, self.Q = m @ m.T / d + 0.2 * np.eye(d), q @ q.T / d
        self.S, self.P1 = 0.5 * s @ s.T / d, 0.5 * (p + p.T)
        self.P1 += (0.3 - np.linalg.eigvalsh(self.P1)[0]) * np.eye(d)
        self.A, self.e, self.b1 = 0.5 * draw.normal(size=(d, d)), *draw.normal(size=(2, d))
        self.d = d

    def force(self, t):
        return np.sin(2 * t + np.arange(self.d))

    def hamiltonian(self, t, x, p):
        M, A, Q, e, f = (
            torch.from_numpy(a) for a in (self.M, self.A, self.Q, self.e, self.force(t))
        )
        drift = x @ A.T + f
        running = 0.5 * ((x @ Q) * x).sum(-1) + math.cos(3 * t) * x @ e
        return running + (p * drift).sum(-1) - 0.5 * ((p @ M) * p).sum(-1)

    def exact(self, x, t0, t1, *, noise=True):
        """The value w(t₁, x) from w(t₀), t₁ < t₀."""
        d = self.d

        def rates(t, y):
            P, b = y[: d * d].reshape(d, d), y[d * d : -1]
            f = self.force(t)
            dP = P @ self.M @ P - self.A.T @ P - P @ self.A - self.Q
            db = P @ self.M @ b - self.A.T @ b - P @ f - self.e * np.cos(3 * t)
            dc = 0.5 * b @ self.M @ b - b @ f - noise * 0.5 * np.trace(self.S @ P)
            return np.concatenate([dP.ravel(), db, [dc]])

        start = np.concatenate([self.P1.ravel(), self.b1, [0.4]])
        y = solve_ivp(rates, (t0, t1), start, rtol=1e-11, atol=1e-12).y[:, -1]
        P, b = y[: d * d].reshape(d, d), y[d * d : -1]
        x = x.numpy()
        return torch.from_numpy(0.5 * np.einsum("ni,ij,nj->n", x, P, x) + x @ b + y[-1])

    def start(self, grid):
        x = grid.points().numpy()
        w = 0.5 * np.einsum("ni,ij,nj->n", x, self.P1, x) + x @ self.b1 + 0.4
        return torch.from_numpy(w).reshape(grid.shape)


def middle(grid, radius):
    return (grid.points().abs() <= radius + 1e-9).all(1)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("d", [1, 2])
def test_quadratic_solutions_are_exact_up_to_the_steps_of_order_3(d, noise):
    """Cubics pass the differences and the rim unchanged: only the time steps err."""
    problem, grid = Quadratic(d), Grid((-1.0, -0.8)[:d], (1.2, 1.0)[:d], 9)
    S = torch.from_numpy(problem.S) if noise else None
    exact, errors, sizes = problem.exact(grid.points(), 1.1, 0.7, noise=noise), [], []
    for cfl in (0.4, 0.2, 0.1):
        w = hamilton_jacobi(
            problem.hamiltonian, problem.start(grid), grid, [1.1, 0.7], covariance=S, cfl=cfl
        )
        errors.append(float((w[1].flatten() - exact).abs().max()))
        sizes.append(cfl)
    assert errors[-1] < 1e-5
    assert observed_orders(errors, sizes)[-1] == pytest.approx(3, abs=0.35)


def test_cubics_that_drift_and_spread_are_exact():
    """E G(x + cτ + σW) = G(x + cτ) + ½τ tr(S∇²G)(x + cτ): of degree 3 in τ, as are the steps."""
    grid, x = Grid((-1.0, 0.0), (1.0, 1.5), 7), Grid((-1.0, 0.0), (1.0, 1.5), 7).points()
    S, c, tau = torch.tensor([[0.3, -0.2], [-0.2, 0.4]]), torch.tensor([0.7, -0.4]), 0.6
    G = lambda x: x[:, 0] ** 3 - 2 * x[:, 0] ** 2 * x[:, 1] + x[:, 1] ** 3 / 2 + x[:, 0]  # noqa: E731
    y = x + c * tau
    trace = 0.3 * (6 * y[:, 0] - 4 * y[:, 1]) + 2 * 0.2 * 4 * y[:, 0] + 0.4 * 3 * y[:, 1]
    w = hamilton_jacobi(
        lambda t, x, p: p @ c, G(x).reshape(grid.shape), grid, [tau, 0.0], covariance=S, cfl=0.2
    )
    assert torch.allclose(w[1].flatten(), G(y) + 0.5 * tau * trace, atol=1e-10)


def test_values_on_the_way_are_those_of_shorter_runs():
    problem, grid = Quadratic(2, seed=1), Grid((-1.0, -1.0), (1.0, 1.0), 9)
    S, start = torch.from_numpy(problem.S), problem.start(grid)
    times = [1.0, 0.9, 0.6]
    w = hamilton_jacobi(problem.hamiltonian, start, grid, times, covariance=S, cfl=0.1)
    assert w.shape == (3, 9, 9)
    assert torch.equal(w[0], start)
    for t, found in zip(times, w, strict=True):
        exact = problem.exact(grid.points(), 1.0, t) if t < 1 else start.flatten()
        assert torch.allclose(found.flatten(), exact, atol=1e-5), t


def test_a_start_later_in_time_goes_on_where_the_first_run_ended():
    problem, grid = Quadratic(1, seed=2), Grid((-1.0,), (1.0,), 9)
    run = lambda w, times: hamilton_jacobi(problem.hamiltonian, w, grid, times)  # noqa: E731
    both = run(problem.start(grid), [0.5, 0.25, 0.0])
    assert torch.allclose(run(both[1], [0.25, 0.0])[1], both[2], atol=1e-13)


# --- Hopf–Cole: ∂ₜw + ½ tr(S∇²w) − ½ ∇wᵀS∇w = 0 has w = −log E exp(−G(x + S^½ Z)) -----------------


def hopf_cole(G, x, variance):
    """The value in one dimension by Gauss and Hermite."""
    z, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(80))
    values = torch.exp(-G(x[:, None] + math.sqrt(variance) * z)) @ weights
    return -(values / math.sqrt(2 * math.pi)).log()


def test_smooth_solutions_with_noise_are_of_order_3():
    """s²w solves the equation whose H is −½p² and whose noise is s²."""
    s2, T = 0.5, 0.5
    G = lambda x: torch.cos(2 * x) / s2 + x / 4  # noqa: E731
    errors, sizes = [], []
    for nodes in (41, 81, 161):
        grid = Grid((-4.0,), (4.0,), nodes)
        w = hamilton_jacobi(
            lambda t, x, p: -0.5 * p.square().sum(-1),
            s2 * G(grid.points()[:, 0]),
            grid,
            [T, 0.0],
            covariance=torch.tensor([[s2]]),
        )
        here = middle(grid, 1)
        exact = s2 * hopf_cole(G, grid.points()[here, 0], s2 * T)
        errors.append(float((w[1][here] - exact).abs().max()))
        sizes.append(grid.spacing[0])
    assert errors[-1] < 2e-4
    assert observed_orders(errors, sizes)[-1] == pytest.approx(3, abs=0.4)


@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.9])
def test_correlated_noise_in_the_plane_solves_hopf_cole(correlation):
    """A plane wave in the direction k sees the noise kᵀSk alone."""
    S = torch.tensor([[0.4, 0.4 * correlation], [0.4 * correlation, 0.4]])
    k, T = torch.tensor([1.0, 0.7]), 0.3
    G = lambda s: torch.sin(1.5 * s)  # noqa: E731
    errors, sizes = [], []
    for nodes in (25, 49):
        grid = Grid((-3.0, -3.0), (3.0, 3.0), nodes)
        w = hamilton_jacobi(
            lambda t, x, p: -0.5 * ((p @ S) * p).sum(-1),
            G(grid.points() @ k).reshape(grid.shape),
            grid,
            [T, 0.0],
            covariance=S,
        )
        here = middle(grid, 1)
        exact = hopf_cole(G, grid.points()[here] @ k, float(k @ S @ k) * T)
        errors.append(float((w[1].flatten()[here] - exact).abs().max()))
        sizes.append(grid.spacing[0])
    assert errors[-1] < 1e-3
    assert observed_orders(errors, sizes)[-1] > 2.5


# --- without noise: w(0, x) = min_y G(y) + ‖x − y‖²/2T (Hopf and Lax) ----------------------------


def hopf_lax(G, x, T):
    found = []
    for at in x.tolist():
        cost = lambda y, at=at: G(torch.tensor(y)).item() + (at - y) ** 2 / (2 * T)  # noqa: E731
        grid = np.linspace(at - 4, at + 4, 801)
        first = min(grid, key=cost)
        found.append(minimize_scalar(cost, (first - 0.01, first + 0.01), tol=1e-12).fun)
    return torch.tensor(found)


def from_cosine(T, nodes):
    """The greatest error near 0 of the solution from cos 2x, which has kinks at 0 once T > ¼."""
    G = lambda x: torch.cos(2 * x)  # noqa: E731
    grid = Grid((-4.0,), (4.0,), nodes)
    x, here = grid.points()[:, 0], middle(grid, 1.2)
    w = hamilton_jacobi(lambda t, x, p: -0.5 * p.square().sum(-1), G(x), grid, [T, 0.0])
    return float((w[1][here] - hopf_lax(G, x[here], T)).abs().max())


def test_without_noise_it_is_the_least_cost_of_order_3_before_kinks():
    errors = [from_cosine(0.2, nodes) for nodes in (81, 161)]
    assert errors[-1] < 1e-3
    assert math.log2(errors[0] / errors[1]) > 2.5


@pytest.mark.parametrize("nodes", [80, 81])
def test_past_kinks_it_is_of_order_1(nodes):
    errors = [from_cosine(1.5, n) for n in (nodes, 2 * nodes - nodes % 2)]
    assert errors[-1] < 0.05
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.3)


def test_a_node_on_a_kink_moves():
    grid = Grid((-2.0,), (2.0,), 41)
    G = (grid.points()[:, 0].abs() - 1).square()
    w = hamilton_jacobi(lambda t, x, p: -0.5 * p.square().sum(-1), G, grid, [1.0, 0.0])
    assert float(w[1, 20]) == pytest.approx(1 / 3, abs=0.1)


def test_nodes_on_a_line_of_kinks_move():
    grid = Grid((-3.0, -3.0), (3.0, 3.0), 41)
    wells = [(grid.points() - at).square().sum(1) for at in (-1, 1)]
    G, exact = torch.minimum(*wells).reshape(grid.shape), torch.minimum(*wells) / 3
    w = hamilton_jacobi(lambda t, x, p: -0.5 * p.square().sum(-1), G, grid, [1.0, 0.0])
    here = middle(grid, 1.5)
    assert (w[1].flatten() - exact)[here].abs().max() < 0.2


# --- shapes, dtypes, bad input ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_values(dtype):
    grid = Grid((-1.0, 0.0), (1.0, 1.0), 5)
    w = grid.points(dtype=dtype).square().sum(1).reshape(grid.shape)
    H = lambda t, x, p: -p.square().sum(-1) + x[:, 0]  # noqa: E731
    found = hamilton_jacobi(H, w, grid, [0.1, 0.0], covariance=torch.eye(2, dtype=torch.float64))
    assert found.dtype == dtype


def test_an_axis_is_what_its_nodes_say():
    """On a box whose axes differ, a function of one coordinate stays one."""
    grid = Grid((-1.0, 0.0), (1.0, 4.0), 15)
    for axis in (0, 1):
        x = grid.points()[:, axis]
        w = hamilton_jacobi(
            lambda t, x, p: -0.5 * p.square().sum(-1),
            (x + 0.1 * x**2).reshape(grid.shape),
            grid,
            [0.5, 0.0],
            covariance=torch.diag(torch.tensor([0.1, 0.3])),
            cfl=0.1,
        )[1]
        line = w.select(1 - axis, 3)
        assert torch.allclose(w, line.unsqueeze(1 - axis).expand_as(w), atol=1e-12)
        # w = ½P z² + κ with P = 1/(5 + τ), z = x + 5
        s2 = (0.1, 0.3)[axis]
        known = 0.5 * (x + 5) ** 2 / 5.5 - 2.5 + 0.5 * s2 * math.log(1 + 0.1)
        assert torch.allclose(w.flatten(), known, atol=1e-6)


def test_what_costs_nothing_stays():
    grid = Grid((-1.0,), (1.0,), 21)
    w = hamilton_jacobi(lambda t, x, p: -0.5 * p.square().sum(-1), torch.ones(21), grid, [1.0, 0.0])
    assert torch.equal(w[1], torch.ones(21))


def test_a_cost_without_a_control_adds_up():
    grid = Grid((-1.0,), (1.0,), 21)
    w = hamilton_jacobi(lambda t, x, p: x[:, 0], torch.zeros(21), grid, [1.0, 0.0])
    assert torch.allclose(w[1], grid.points()[:, 0])


LINE = Grid((-1.0,), (1.0,), 9)


def run(w=None, times=(1.0, 0.0), grid=LINE, **options):
    w = torch.zeros(grid.shape) if w is None else w
    return hamilton_jacobi(lambda t, x, p: -p.square().sum(-1), w, grid, times, **options)


BAD = {
    "flat values": (lambda: run(torch.zeros(81), grid=Grid((0.0, 0.0), (1.0, 1.0), 9)), "reshape"),
    "too few": (lambda: run(torch.zeros(8)), r"w has shape \(8,\), the grid \(9,\)"),
    "rising times": (lambda: run(times=(0.0, 1.0)), "times must decrease"),
    "standing times": (lambda: run(times=(1.0, 0.5, 0.5)), "times must decrease"),
    "one time": (lambda: run(times=(1.0,)), "times must decrease"),
    "no time": (lambda: run(times=()), "times must decrease"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()

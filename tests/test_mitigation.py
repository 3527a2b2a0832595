import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ctdl_lib.control import hamiltonian, rollout
from ctdl_lib.dynamics import taylor_errors
from experiments.pde_control.mitigation import SourceMitigation, best_openings, draw_basins


def seeded(s):
    return torch.Generator().manual_seed(s)


@pytest.fixture(scope="module")
def problem():
    return SourceMitigation(draw_basins(4, seeded(0)), nodes=17, steps=10)


def opened(controls):
    """The policy of fixed controls (batch, steps)."""
    steps = controls.shape[1]
    return lambda t, x: controls[:, round(float(t) * steps)].view(-1, 1)


def cost(problem, controls):
    return rollout(problem, opened(controls), problem.start, steps=problem.steps).cost


def test_an_explicit_step_of_the_rate_is_the_implicit_step(problem):
    x, a = torch.randn(4, 289, generator=seeded(1)).double(), torch.rand(4, 1).double()
    h = problem.horizon / problem.steps
    y = x + h * problem.drift(0.0, x, a)
    for k, v in enumerate(problem.velocities):
        A = torch.from_numpy(problem._advection(v).toarray())
        left = problem.mass @ (y[k] - x[k]) / h
        right = -A @ y[k] + problem.source[k] - a[k] * problem.sink[k]
        assert torch.allclose(left, right, atol=1e-9)


def test_a_closed_basin_keeps_what_the_source_emits(problem):  # up to quadrature
    closed = torch.zeros(4, 10, dtype=torch.float64)
    end = rollout(problem, opened(closed), problem.start, steps=10).x[-1]
    assert torch.allclose((end @ problem.mass).sum(1), problem.source.sum(1), rtol=1e-4)


def test_streams_have_no_divergence_and_do_not_leave(problem):
    x = np.linspace(0.05, 0.95, 7)
    eps = 1e-5
    for (along, across), speed in zip(problem.velocities, problem.basins.speed, strict=True):
        X, Y = np.meshgrid(x, x)
        dx = (along(X + eps, Y) - along(X - eps, Y)) / (2 * eps)
        dy = (across(X, Y + eps) - across(X, Y - eps)) / (2 * eps)
        assert abs(dx + dy).max() < 1e-8
        for wall in (0.0, 1.0):
            assert abs(along(np.full(7, wall), x)).max() < 1e-14
            assert abs(across(x, np.full(7, wall))).max() < 1e-14
        fine = np.meshgrid(*2 * (np.linspace(0, 1, 65),))
        assert np.hypot(along(*fine), across(*fine)).max() == pytest.approx(float(speed))


def test_images_show_the_fields_that_the_equations_use(problem):
    image = problem.images[1]
    x, y = problem.basis.doflocs.reshape(2, 17, 17)
    assert np.allclose(image[0], problem.velocities[1][0](x, y))
    for field, vector in ((image[2], problem.source[1]), (image[3], problem.sink[1])):
        # the vector of a function and that of its interpolant agree to second order
        gap = problem.mass @ field.reshape(-1) - vector
        assert gap.norm() < 0.06 * vector.norm()


def test_the_gradient_of_the_cost_is_right_to_ten_digits(problem):
    generator = seeded(2)
    a, da = torch.rand(2, 4, 10, generator=generator, dtype=torch.float64)
    a.requires_grad_()
    cost(problem, a).sum().backward()
    slope = (a.grad * da).sum()
    with torch.no_grad():
        # the cost is quadratic: the central difference has no error but round-off
        central = (cost(problem, a + 0.1 * da) - cost(problem, a - 0.1 * da)).sum() / 0.2
        errors = taylor_errors(lambda a: cost(problem, a).sum(), lambda a, d: slope, a, da)
    assert float(slope) == pytest.approx(float(central), rel=1e-10)
    orders = torch.log2(errors.first[:-1] / errors.first[1:])
    assert torch.allclose(orders, torch.full_like(orders, 2.0), atol=1e-3)


def test_the_best_openings_are_what_a_quasi_newton_method_finds(problem):
    best = best_openings(problem)
    assert torch.allclose(cost(problem, best.controls), best.cost, rtol=1e-12)

    def both(flat):
        a = torch.from_numpy(flat).view(4, 10).requires_grad_()
        total = cost(problem, a).sum()
        total.backward()
        return float(total.detach()), a.grad.numpy().ravel()

    found = minimize(both, np.ones(40), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 40,
                     options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 500})  # fmt: skip
    assert found.fun == pytest.approx(float(best.cost.sum()), rel=1e-8)
    assert np.allclose(found.x.reshape(4, 10), best.controls, atol=1e-4)


def test_a_sink_that_may_emit_is_never_worse(problem):
    free, closable = best_openings(problem, closable=False), best_openings(problem)
    assert (free.cost <= closable.cost + 1e-12).all()
    assert (closable.controls >= 0).all()
    a = free.controls.clone().requires_grad_()
    cost(problem, a).sum().backward()
    assert a.grad.abs().max() < 1e-10


def test_the_control_minimises_the_hamiltonian(problem):
    x, p = torch.randn(2, 8, 289, generator=seeded(3), dtype=torch.float64)
    u = problem.optimal_control(0.0, x, p)
    assert u.shape == (8, 1)
    assert (u > 0).any()
    assert (u == 0).any()
    least = hamiltonian(problem, 0.0, x, p)
    for other in torch.linspace(0, 5, 20, dtype=torch.float64):
        v = torch.full_like(u, float(other))
        value = problem.running_cost(0.0, x, v) + (p * problem.drift(0.0, x, v)).sum(1)
        assert (value >= least - 1e-9).all()


def test_all_times_at_once_are_one_time_after_the_other(problem):
    x, u = torch.randn(3, 4, 289, generator=seeded(4)).double(), torch.rand(3, 4, 1).double()
    together = problem.drift(0.0, x.flatten(0, 1), u.flatten(0, 1)).view_as(x)
    for k in range(3):
        assert torch.allclose(together[k], problem.drift(0.0, x[k], u[k]), rtol=1e-10, atol=1e-12)


def test_a_finer_mesh_agrees():
    basins = draw_basins(2, seeded(5))
    costs = [best_openings(SourceMitigation(basins, nodes=n)).cost for n in (17, 33, 65)]
    assert torch.allclose(costs[0], costs[2], rtol=0.02)
    assert ((costs[1] - costs[2]).abs() < 0.4 * (costs[0] - costs[2]).abs()).all()


def test_sources_lie_in_the_basin():
    basins = draw_basins(2, seeded(6))
    outside = basins._replace(source=basins.source + torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"source of basin 0 has its centre .* outside"):
        SourceMitigation(outside)


def test_a_control_must_be_a_number(problem):
    with pytest.raises(ValueError, match="not finite: check the control"):
        rollout(problem, lambda t, x: x[:, :1] * torch.nan, problem.start, steps=10)


def test_a_basin_has_steps():
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        SourceMitigation(draw_basins(1, seeded(0)), steps=0)

import math

import pytest
import torch
from torch import nn

from ctdl_lib.dynamics import integrate, taylor_errors
from ctdl_lib.generative import Flow, MeanFieldCost, mean_field, ot_flow, transport
from ctdl_lib.metrics import observed_orders
from ctdl_lib.potentials import AutodiffPotential, ResNetPotential


class Expansion(nn.Module):
    """Φ = −½‖x‖²/(1 + t): x(t) = (1 + t) x(0) on straight lines, and ∂ₜΦ = ½‖∇Φ‖²."""

    def forward(self, t, x):
        return -0.5 * x.square().sum(-1) / (1 + t)


class Hill:
    """From N(0, I), in a force that grows with x₁ and a price of crowding, to a point at 0."""

    price = 0.3

    def log_initial(self, x):
        return -0.5 * (x.square().sum(-1) + x.shape[1] * math.log(2 * math.pi))

    def interaction(self, t, x, log_density):
        hill, crowd = x[:, 0] * (1 + t), self.price * log_density
        return MeanFieldCost(hill + crowd, hill + crowd + self.price)

    def terminal(self, x, log_density):
        return MeanFieldCost(log_density, log_density + 1)


def randomized(d, generator, **options):
    phi = ResNetPotential(d, width=8, generator=generator, **options)
    with torch.no_grad():
        for p in phi.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return phi.double()


@pytest.mark.parametrize("d", [1, 2, 5])
def test_costs_along_a_solution_of_the_hjb_equation_are_known(d, generator):
    x = torch.randn(6, d, generator=generator)
    end = transport(AutodiffPotential(Expansion()), x, steps=20)
    assert torch.allclose(end.x, 2 * x, atol=1e-9)
    assert torch.allclose(end.log_det, torch.full((6,), d * math.log(2)), atol=1e-7)
    assert torch.allclose(end.transport_cost, 0.5 * x.square().sum(-1), atol=1e-7)
    assert end.hjb_residual.max() < 1e-12
    assert end.interaction_cost.abs().max() == 0


def test_costs_agree_with_a_fine_path_of_the_velocity_alone(generator):
    phi, game = randomized(3, generator), Hill()
    x = torch.randn(4, 3, generator=generator)
    times = torch.linspace(0, 1, 401)
    path = integrate(lambda t, x: -phi.gradient(t, x).dx, x, 0, 1, steps=400, save_at=times)
    found = [phi.derivatives(t, x) for t, x in zip(times, path, strict=True)]
    _, dt, dx, laplacian = (torch.stack(part) for part in zip(*found, strict=True))
    integral = lambda f: torch.trapezoid(f, times, dim=0)  # noqa: E731
    kinetic = 0.5 * dx.square().sum(-1)
    log_det = -torch.cumulative_trapezoid(laplacian, times, dim=0)
    log_density = game.log_initial(x) - torch.cat([torch.zeros(1, 4), log_det])
    costs = [
        game.interaction(t, x, rho) for t, x, rho in zip(times, path, log_density, strict=True)
    ]
    value, variation = (torch.stack(part) for part in zip(*costs, strict=True))
    end = transport(phi, x, steps=40, game=game)
    assert torch.allclose(end.log_det, log_det[-1], atol=1e-5)
    assert torch.allclose(end.transport_cost, integral(kinetic), atol=1e-5)
    assert torch.allclose(end.interaction_cost, integral(value), atol=1e-5)
    assert torch.allclose(end.hjb_residual, integral((dt - kinetic + variation).abs()), atol=1e-4)


def test_errors_fall_at_order_four(generator):
    phi, x = randomized(2, generator), torch.randn(5, 2, generator=generator)
    exact = transport(phi, x, steps=128)
    steps = [8, 16, 32]
    for name in ("x", "log_det", "transport_cost"):
        errors = [
            (getattr(transport(phi, x, steps=n), name) - getattr(exact, name)).abs().max().item()
            for n in steps
        ]
        assert observed_orders(errors, [1 / n for n in steps])[-1] == pytest.approx(4, abs=0.3)


def test_the_likelihood_is_that_of_the_flow_and_weights_multiply(generator):
    phi, x = randomized(2, generator), torch.randn(7, 2, generator=generator)
    terms = ot_flow(phi, x, steps=6, likelihood=3.0, hjb=2.0)
    flow = Flow(phi, 2, solver={"steps": 6}, standardize=False)
    assert torch.allclose(terms["likelihood"], -3 * flow.log_prob(x).mean())
    end = transport(phi, x, steps=6)
    assert torch.allclose(terms["transport"], end.transport_cost.mean())
    assert torch.allclose(terms["hjb"], 2 * end.hjb_residual.mean())


@pytest.mark.parametrize("d", [2, 12])
def test_parameter_gradients_pass_the_taylor_test(d, generator):
    phi, x = randomized(d, generator), torch.randn(7, d, generator=generator)
    K, direction = phi.K0.detach().clone(), torch.randn(phi.K0.shape, generator=generator)
    for objective in (
        lambda: sum(ot_flow(phi, x, steps=3, likelihood=2.0, hjb=0.5).values()),
        lambda: sum(mean_field(phi, x, Hill(), steps=3, hjb=0.5, terminal_condition=1.0).values()),
    ):

        def value(K0, objective=objective):
            with torch.no_grad():
                phi.K0.copy_(K0)
                return objective()

        phi.K0.data.copy_(K)
        (gradient,) = torch.autograd.grad(objective(), phi.K0)
        errors = taylor_errors(value, lambda K, dK, g=gradient: (g * dK).sum(), K, direction, 14)
        orders = observed_orders(errors.first.tolist(), errors.h.tolist())
        assert orders[-2] == pytest.approx(2, abs=0.1)


def test_the_terms_of_a_game_are_its_costs_and_the_residuals_of_its_conditions(generator):
    phi, x, game = randomized(3, generator), torch.randn(5, 3, generator=generator), Hill()
    terms = mean_field(phi, x, game, steps=4, hjb=2.0, terminal_condition=3.0)
    end = transport(phi, x, steps=4, game=game)
    rho = game.log_initial(x) - end.log_det
    assert torch.allclose(terms["terminal"], rho.mean())
    assert torch.allclose(terms["hjb"], 2 * end.hjb_residual.mean())
    gap = (phi(1.0, end.x) - rho - 1).abs().mean()
    assert torch.allclose(terms["terminal condition"], 3 * gap)


def test_paths_can_be_saved_on_the_way(generator):
    phi, x = randomized(2, generator), torch.randn(5, 2, generator=generator)
    path = transport(phi, x, steps=8, save_at=[0.0, 0.5, 1.0])
    end = transport(phi, x, steps=8)
    assert path.x.shape == (3, 5, 2)
    assert torch.equal(path.x[0], x)
    assert all(torch.allclose(part[-1], last) for part, last in zip(path, end, strict=True))


BAD = {
    "no likelihood": ({"likelihood": 0.0, "hjb": 1.0, "steps": 4}, "likelihood=0.0"),
    "negative hjb": ({"likelihood": 1.0, "hjb": -1.0, "steps": 4}, "hjb=-1.0"),
    "nan": (
        {"likelihood": math.nan, "hjb": 1.0, "steps": 4},
        "likelihood must be a number, got nan",
    ),
    "no steps": ({"likelihood": 1.0, "hjb": 1.0, "steps": 0}, "steps must be an integer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        ot_flow(ResNetPotential(2), torch.ones(3, 2), **arguments)


def test_negative_weights_of_a_game_are_refused():
    phi, x = ResNetPotential(2), torch.ones(3, 2)
    with pytest.raises(ValueError, match="must not be negative"):
        mean_field(phi, x, Hill(), steps=2, hjb=-1.0, terminal_condition=1.0)

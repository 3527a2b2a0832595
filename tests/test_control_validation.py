"""`check` accepts every problem of the book and names what is wrong with a broken one."""

import pytest
import torch

from ctdl_lib.control import check, objective, rollout
from ctdl_lib.potentials import ResNetPotential
from ctdl_lib.problems.control import LinearQuadratic, Obstacle
from ctdl_lib.problems.vehicles import Corridor, Quadcopter

PROBLEMS = {
    "LinearQuadratic": (lambda: LinearQuadratic(torch.ones(3), 2.0, 0.3, 0.5, 3.0), 3, 2.0),
    "Obstacle": (lambda: Obstacle(LinearQuadratic(torch.ones(2), 2.0, 0.3)), 2, 1.0),
    "Corridor": (Corridor, 4, 1.0),
    "Quadcopter": (Quadcopter, 12, 0.3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_problems_of_the_book_are_consistent(name, dtype, generator):
    build, d, scale = PROBLEMS[name]
    x = scale * torch.randn(20, d, generator=generator).to(dtype)
    found = check(build(), x, generator=generator)
    assert found.excess <= 1e-6
    assert found.slope < (3e-2 if dtype == torch.float32 else 1e-6)


class Steering:
    """ẋ = u, L = ½‖u‖², G = ½‖x‖², σ = 0."""

    diffusion, horizon = 0.0, 1.0

    def drift(self, t, x, u):
        return u

    def running_cost(self, t, x, u):
        return 0.5 * u.square().sum(-1)

    def terminal_cost(self, x):
        return 0.5 * x.square().sum(-1)

    def optimal_control(self, t, x, p):
        return -p


def nan(t, x, u):
    return x.new_full(x.shape[:1], torch.nan)


BROKEN = {
    "sign": ({"optimal_control": lambda t, x, p: p}, "does not minimise.*is its sign right"),
    "factor": ({"optimal_control": lambda t, x, p: -1.2 * p}, "does not minimise L"),
    "column": ({"running_cost": lambda t, x, u: 0.5 * u.square()}, r"running_cost\(t, x, u\) must"),
    "scalar": (
        {"terminal_cost": lambda x: x.square().sum()},
        r"terminal_cost\(x\) must",
    ),
    "drift": ({"drift": lambda t, x, u: u[:, :1]}, r"drift\(t, x, u\) must have shape"),
    "flat": ({"optimal_control": lambda t, x, p: -p[:, 0]}, r"optimal_control.* must have shape"),
    "detached": (
        {"terminal_cost": lambda x: 0.5 * x.detach().square().sum(-1)},
        "derivative of terminal_cost by x .* central differences",
    ),
    "detached control": (
        {"running_cost": lambda t, x, u: 0.5 * u.detach().square().sum(-1)},
        "derivative of running_cost by u",
    ),
    "NaN": ({"running_cost": nan}, "is not finite"),
    "horizon": ({"horizon": -1.0}, "horizon must be positive"),
    "clocked": (
        {"diffusion": lambda t, x: (0.1 + t) * torch.eye(2)},
        r"diffusion\(t, x\) fails for t of shape \(20,\)",
    ),
    "diffusion": ({"diffusion": torch.eye(3)}, "diffusion must be a number or a matrix"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_problem_is_refused_by_name(fault, generator):
    changes, message = BROKEN[fault]
    x = torch.randn(20, 2, generator=generator)
    check(Steering(), x, generator=generator)
    broken = Steering()
    for name, value in changes.items():
        setattr(broken, name, value)
    with pytest.raises(ValueError, match=message):
        check(broken, x, generator=generator)


def test_controls_at_their_bounds_are_compared_with_allowed_ones(generator):
    problem = Steering()
    problem.optimal_control = lambda t, x, p: (-p).clamp(-0.5, 0.5)
    x = torch.randn(20, 2, generator=generator)
    bounds = torch.full((2,), -0.5), torch.full((2,), 0.5)
    assert check(problem, x, generator=generator, bounds=bounds).excess <= 1e-9
    with pytest.raises(ValueError, match="does not minimise"):
        check(problem, x, generator=generator)


def test_other_errors_name_the_check(generator):
    broken = Steering()
    broken.running_cost = lambda t, x, u: 0.5 * u.square()
    x, phi = torch.randn(8, 2, generator=generator), ResNetPotential(2, width=4)
    with pytest.raises(ValueError, match=r"check\(problem, x\) examines"):
        objective(broken, phi, x, steps=3)
    with pytest.raises(ValueError, match=r"check\(problem, x\) examines"):
        rollout(broken, lambda t, x: -x, x, steps=3)

import pytest
import torch

from ctdl_lib.dynamics import Statistics
from ctdl_lib.networks import MLP
from experiments.neural_odes.models import NeuralODE


def test_a_linear_velocity_gives_the_matrix_exponential(generator):
    A = torch.randn(3, 3, generator=generator)
    net = NeuralODE(lambda t, x: x @ A.T, 2, 4, augment=1, solver={"tol": 1e-10}).double()
    y = torch.randn(6, 2, generator=generator)
    x = torch.cat([y, torch.zeros(6, 1)], 1) @ torch.linalg.matrix_exp(A).T
    assert torch.allclose(net(y), x @ net.W.T + net.mu, atol=1e-8)


def test_the_velocity_is_trained_with_the_readout(generator):
    net = NeuralODE(MLP(3, width=5), 2, 1, augment=1, solver={"steps": 4}).double()
    net(torch.randn(6, 2, generator=generator)).sum().backward()
    assert len(list(net.parameters())) == 2 + 6
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("solver", [{"steps": 4}, {"tol": 1e-3}])
def test_costs_are_counted_and_paths_saved(solver):
    net, costs = NeuralODE(MLP(2, width=5), 2, 1, solver=solver).double(), Statistics()
    path = net.features(torch.ones(6, 2), save_at=[0.0, 0.5, 1.0], statistics=costs)
    assert path.shape == (3, 6, 2)
    assert torch.equal(path[0], torch.ones(6, 2))
    assert costs.evaluations >= 8

import pytest
import torch
from torch import nn

from ctdl_lib.networks import ResNet
from experiments.resnets.landscape import (
    filter_normalized,
    grid,
    interior_minima,
    loss_plane,
    rotation_landscape,
    rotation_network,
)


def test_interior_minima_are_counted_on_a_function_whose_minima_are_known():
    a = grid(-1.0, 1.0, 81)
    x, y = torch.meshgrid(a, a, indexing="ij")
    four = (x**2 - 0.25) ** 2 + (y**2 - 0.25) ** 2
    found = interior_minima(four)
    assert found.sum() == 4
    assert torch.equal(x[found].abs(), torch.full((4,), 0.5))
    assert interior_minima(x + y).sum() == 0


def test_the_coarse_network_has_many_minima_and_the_fine_one_exactly_one():
    theta = grid(0.2, 2.0, 41)
    one = torch.ones(1, dtype=torch.float64)
    y = 0.1 * torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = rotation_network(y, 200, one, one)[0, 0]
    coarse = interior_minima(rotation_landscape(y, target, 5, theta, theta)).sum()
    fine = interior_minima(rotation_landscape(y, target, 100, theta, theta))
    assert coarse > 10
    assert fine.sum() == 1
    # the one minimum is at the truth, up to the grid's spacing and the steps (100 against 200)
    i, j = fine.nonzero()[0]
    assert abs(theta[i] - 1) < 0.1
    assert abs(theta[j] - 1) < 0.1


def test_the_plane_contains_the_loss_itself_and_moves_along_the_directions():
    net = nn.Linear(2, 1, bias=False)
    y = torch.randn(5, 2)
    ones = {"weight": torch.ones(1, 2)}
    zero = {"weight": torch.zeros(1, 2)}
    alphas = torch.tensor([-1.0, 0.0, 2.0])
    plane = loss_plane(net, lambda f: f(y).square().mean(), (ones, zero), alphas, alphas)
    assert torch.equal(plane[:, 0], plane[:, 2])
    for k, alpha in enumerate(alphas):
        direct = (y @ (net.weight.detach() + alpha).T).square().mean()
        assert float(plane[k, 0]) == pytest.approx(direct.item())


def test_filters_of_a_direction_have_the_norms_of_those_of_the_network(generator):
    net = ResNet(2, 1, width=3, layers=4)
    nn.init.normal_(net.b)
    direction = filter_normalized(net, generator, keep=("b",))
    assert torch.allclose(direction["K"].norm(dim=-1), net.K.norm(dim=-1))
    assert torch.allclose(direction["K_in"].norm(dim=-1), net.K_in.norm(dim=-1))
    assert not direction["b"].any()
    assert not direction["b_out"].any()


def test_a_grid_too_small_is_refused():
    with pytest.raises(ValueError, match="n ≥ 3"):
        grid(0.0, 1.0, 2)

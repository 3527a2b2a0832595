import pytest
import torch
from torch import nn

from ctdl_lib.metrics import cross_entropy
from ctdl_lib.networks import ResNet
from experiments.stable_architectures.robustness import local_lipschitz, pgd


def test_the_constant_of_a_linear_map_is_its_norm(generator):
    A = torch.randn(4, 3, generator=generator)
    y = torch.randn(5, 3, generator=generator)
    found = local_lipschitz(lambda y: y @ A.T, y)
    assert torch.allclose(found, torch.linalg.matrix_norm(A, ord=2).expand(5))


def test_the_constant_is_the_greatest_difference_quotient(generator):
    net = ResNet(2, 2, width=3, layers=5, scale=1.0, generator=generator).double()
    y = torch.randn(1, 2, generator=generator)
    angle = torch.linspace(0, 2 * torch.pi, 2001)
    eps = 1e-6 * torch.stack([angle.cos(), angle.sin()], 1)
    quotients = (net(y + eps) - net(y)).detach().norm(dim=1) / 1e-6
    assert float(local_lipschitz(net, y)) == pytest.approx(float(quotients.max()), rel=1e-5)


def test_an_attack_on_a_linear_classifier_is_optimal(generator):
    """The worst point of the box is known: against the weights, in every coordinate."""
    w = torch.randn(1, 6, generator=generator)
    y, label = torch.randn(8, 6, generator=generator), torch.arange(8) % 2
    worst = y - 0.1 * (2 * label[:, None] - 1) * w.sign()
    linear = lambda y: y @ w.T  # noqa: E731
    assert torch.allclose(pgd(linear, y, label, 0.1, steps=1, rate=0.1), worst)
    assert torch.allclose(pgd(linear, y, label, 0.1), worst)


def test_attacks_stay_in_the_box_and_raise_the_loss(generator):
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))
    y, label = torch.randn(50, 6, generator=generator), torch.arange(50) % 3
    losses = [cross_entropy(net(y), label).item()]
    for attacked in (pgd(net, y, label, 0.2, steps=1, rate=0.2), pgd(net, y, label, 0.2)):
        assert float((attacked - y).abs().max()) <= 0.2 + 1e-15
        losses.append(cross_entropy(net(attacked), label).item())
    assert losses == sorted(losses)
    assert torch.equal(pgd(net, y, label, 0.0), y)


@pytest.mark.parametrize("bad", [{"eps": -0.1}, {"eps": 0.1, "steps": 0}])
def test_a_bad_attack_is_refused(bad):
    with pytest.raises(ValueError, match="eps must be ≥ 0 and steps ≥ 1"):
        pgd(lambda y: y, torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), **bad)

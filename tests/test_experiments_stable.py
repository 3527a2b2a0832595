import math

import pytest
import torch
from torch import nn

from ctdl_lib.networks.resnets import reversible
from experiments.stable_architectures import (
    attacks,
    competition,
    growth,
    images,
    multilevel,
    reversal,
)
from experiments.stable_architectures.robustness import local_lipschitz, pgd
from machinery.store import Store

pytestmark = pytest.mark.usefixtures("as_the_book_computes")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def store(tmp_path):
    return Store("02_stable_architectures", "smoke", folder=tmp_path)


# --- growth -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", growth.MATRICES)
def test_the_growth_at_rest_is_that_of_the_layers(name):
    K, origin = growth.MATRICES[name], torch.zeros(1, 2, dtype=torch.float64)
    found = local_lipschitz(lambda u: growth.path(K, 30, u)[-1], origin)
    assert growth.growth_at_rest(K, 30) == pytest.approx(found.item())


def test_biases_that_take_turns_let_a_change_grow_and_others_do_not():
    layers = growth.swinging(2)
    # in every layer the eigenvalues of the Jacobian diag(σ′)K are imaginary
    J = layers.slopes[:, :, None] * growth.ROTATION
    assert torch.linalg.eigvals(J).real.abs().max() < 1e-12
    norms = growth.growths(layers)
    # each cycle multiplies a change by 4, up to the error of Euler's method
    assert norms[-1].item() == pytest.approx(16, rel=0.06)
    still = growth.growths(growth.swinging(2, slow=True))
    assert still.max() < math.sqrt(2) * 1.06


def test_the_slopes_are_those_of_layers_with_these_biases():
    """Second route: run the nonlinear layers from two near starts."""
    layers = growth.swinging(1, per_phase=50)
    u = torch.stack([torch.zeros(2), torch.tensor([1e-7, 0.0])]).double()
    for b in layers.biases:
        u = u + layers.h * torch.tanh(u @ growth.ROTATION.T + b)
    change = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for slope in layers.slopes:
        change = change + layers.h * slope * (growth.ROTATION @ change)
    torch.testing.assert_close((u[1] - u[0]) / 1e-7, change, atol=1e-5, rtol=1e-5)
    assert u[0].norm() < 1.1  # the trajectory returns after each phase and does not run away


def test_slopes_that_vary_slowly_let_no_change_grow_and_fast_ones_do():
    slow, fast = (growth.growths(growth.modulated(8, period)).max() for period in (4.0, 2 / 3))
    assert slow < 2
    assert fast > 100
    layers = growth.modulated(1, 2 / 3)
    J = layers.slopes[:, :, None] * growth.ROTATION
    assert torch.linalg.eigvals(J).real.abs().max() < 1e-12
    u = torch.zeros(2, dtype=torch.float64)  # second route: the slopes are those of the layers
    for b, slope in zip(layers.biases, layers.slopes, strict=True):
        z = growth.ROTATION @ u + b
        torch.testing.assert_close(torch.cosh(z) ** -2, slope)
        u = u + layers.h * torch.tanh(z)
    assert u.norm() < 0.1


@pytest.mark.parametrize("kind", growth.SEARCHED)
def test_no_search_exceeds_what_a_lipschitz_constant_of_one_allows(kind):
    found = growth.worst_growth(kind, 0, steps=5, layers=20, horizon=2.0)
    assert found <= math.exp(2.0)


def test_the_parabolic_layer_never_lets_a_change_grow():
    generator = seeded(1)
    for scale in (0.1, 1.0, 10.0):
        K = scale * torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
        u = torch.randn(2, 4, generator=generator, dtype=torch.float64)
        before = (u[0] - u[1]).norm()
        for matrix in K:
            h = 1.9 / torch.linalg.matrix_norm(matrix, ord=2) ** 2
            u = u - h * torch.tanh(u @ matrix.T) @ matrix
        assert (u[0] - u[1]).norm() <= before


def test_verlet_keeps_the_energy_and_rk4_does_not():
    verlet, rk4 = (growth.energy_error(method, 3) for method in ("verlet", "rk4"))
    assert verlet < 0.05 < rk4


# --- layers undone ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", reversal.KINDS[:-1])
def test_round_trips_are_exact_up_to_round_off(kind):
    assert reversal.round_trip(kind, 0, 5.0, layers=50) < 1e-4
    assert reversal.round_trip("resnet", 0, 5.0, layers=50) > 1e-2


def test_the_memory_of_layers_that_are_undone_does_not_grow():
    for kept_bytes, depths in ((reversal.kept_bytes, (4, 16)), (images.kept_bytes, (2, 8))):
        few, many = kept_bytes(True, depths)
        assert many < 1.1 * few
        few, many = kept_bytes(False, depths)
        assert many > 2 * few


# --- convolutional layers -----------------------------------------------------------------------


def dense(K, pixels):
    """The matrix of a convolution, column by column."""
    channels = K.shape[1]
    eye = torch.eye(channels * pixels**2, dtype=K.dtype).view(-1, channels, pixels, pixels)
    return nn.functional.conv2d(eye, K, padding=1).flatten(1).T


def test_parabolic_layers_descend_with_the_transposed_convolution():
    K = torch.randn(2, 2, 3, 3, generator=seeded(), dtype=torch.float64)
    b = torch.zeros(2, dtype=torch.float64)
    u = torch.randn(1, 4, 4, 2, generator=seeded(1), dtype=torch.float64)
    A, flat = dense(K, 4), u.movedim(-1, 1).flatten()
    expected = -A.T @ torch.tanh(A @ flat)
    found = images.ARCHITECTURES[images.PARABOLIC].field(u, K, b)
    torch.testing.assert_close(found.movedim(-1, 1).flatten(), expected)


@pytest.mark.parametrize("kind", [images.HAMILTONIAN, images.SECOND])
def test_a_stage_undone_has_the_same_gradients(kind):
    y = torch.randn(3, 5, 5, 4, generator=seeded(), dtype=torch.float64)
    found = []
    for reverse in (False, True):
        torch.manual_seed(0)
        stage = images.Stage(kind, 4, 3, 1.0, reverse).double()
        stage(y).square().sum().backward()
        found.append((stage.K.grad, stage.b.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_layers_without_an_inverse_are_refused():
    stage = images.Stage(images.PARABOLIC, 4, 3, 1.0)
    u = torch.zeros(1, 5, 5, 4)
    with pytest.raises(ValueError, match="no explicit inverse"):
        reversible(stage.architecture, stage.h, (u,), (stage.K, stage.b))


def test_a_blurred_constant_image_stays_constant():
    label = torch.zeros(2, dtype=torch.long)
    parts = images.disturbed(images.Samples(torch.ones(2, 196), label), 0)
    torch.testing.assert_close(parts["blurred"].y, torch.ones(2, 196))
    assert (parts["noisy"].y - 1).std().item() == pytest.approx(images.NOISE, rel=0.15)


# --- attacks and trainings ----------------------------------------------------------------------


def test_an_attack_on_a_linear_classifier_finds_the_worst_digits():
    net, generator = nn.Linear(6, 2), seeded()
    y = torch.randn(50, 6, generator=generator)
    label = (net(y).argmax(1)).detach()
    w = (net.weight[1] - net.weight[0]).detach()
    margin = ((net(y)[:, 1] - net(y)[:, 0]).abs() - 0.1 * w.abs().sum()).detach()
    found = attacks.attacked(net.requires_grad_(False), (y, label), 0.1, 0, steps=5)
    assert found == pytest.approx(100 * (margin > 0).float().mean().item())


def test_a_network_without_layers_is_a_linear_map(tmp_path):
    smoke = Store("02_stable_architectures", "smoke", folder=tmp_path)
    found = attacks.without_layers(smoke, {"resnet": 0.01}, [10])
    assert set(found) == {"resnet"}
    assert all(0 <= kept <= 100 for row in found["resnet"] for kept in row)
    net = attacks.trained("resnet", 10, 0.01, 1)
    net.K.zero_()
    net.b.zero_()
    y = torch.randn(5, 64, generator=seeded())
    torch.testing.assert_close(net(y), y @ net.K_in.T @ net.K_out.T + net.b_out)


def test_a_random_start_stays_in_the_box():
    net, y = nn.Linear(6, 2), torch.randn(50, 6, generator=seeded())
    label = torch.zeros(50, dtype=torch.long)
    z = pgd(net, y, label, 0.1, steps=1, rate=1e-6, generator=seeded(1))
    assert 0.09 < (z - y).abs().max() <= 0.1 + 1e-6
    assert (z - y).std() > 0.05


def test_a_saving_is_the_ratio_of_works_to_one_loss():
    race = multilevel.Race([[10, 0.5], [20, 0.2]], [[10, 0.9], [50, 0.15]], [[5, 0.1]], 0.4, 0.6)
    assert multilevel.saving(race) == 50 / 20
    assert multilevel.saving(race, 0.95) == 10 / 20
    assert multilevel.saving(race, 0.1) == 50 / 20  # never reached: all of the work counts


def test_architectures_choose_without_the_reported_seeds(tmp_path, monkeypatch):
    used = []

    def trained(key, data, seed, lr, horizon, steps):
        used.append((lr, horizon, seed))
        return lr, horizon

    monkeypatch.setattr(competition, "trained", trained)
    monkeypatch.setattr(competition, "accuracy", lambda net, data: 90 - abs(net[0] - 0.05))
    found = competition.study(
        Store("02_stable_architectures", "train", folder=tmp_path), "peaks", "resnet", [10, 11]
    )
    assert found.lr == 0.05
    assert {seed for *_, seed in used[:8]} == set(competition.TRIED)
    assert [seed for *_, seed in used[8:]] == [10, 11]

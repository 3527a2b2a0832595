import dataclasses
import math

import pytest
import torch

from ctdl_lib import metrics
from ctdl_lib.networks import ResNet
from ctdl_lib.problems.classification import digits
from experiments.resnets import convolutional, deep, evidence, landscape, limits, planar
from machinery.store import Store

pytestmark = pytest.mark.usefixtures("as_the_book_computes")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def store(tmp_path):
    return Store("01_resnets", "smoke", folder=tmp_path)


# --- in the plane -------------------------------------------------------------------------------


def steep(scale=20.0):
    return ResNet(2, 1, width=2, layers=8, horizon=4.0, scale=scale, generator=seeded(1)).double()


def test_an_injective_network_has_small_layers_and_can_be_undone():
    wrapped = planar.Injective(steep())
    norms = wrapped.net.h * torch.linalg.matrix_norm(wrapped.K, ord=2)
    assert norms.max() <= planar.INJECTIVE + 1e-12
    y = torch.randn(50, 2, generator=seeded(), dtype=torch.float64)
    out = wrapped(y)
    net = wrapped.scaled()
    torch.testing.assert_close(net(y), out)
    u = net.features(y).detach()
    for K, b in zip(net.K.flip(0), net.b.flip(0), strict=True):  # a contraction finds uₖ
        after = u
        for _ in range(2000):
            u = after - net.h * torch.tanh(u @ K.T + b)
    torch.testing.assert_close(u, y @ net.K_in.T, atol=1e-9, rtol=0)


def test_layers_that_are_small_already_stay_as_they_are():
    net = steep(scale=0.1)
    torch.testing.assert_close(planar.Injective(net).K, net.K)


def test_the_price_of_the_identity_is_known():
    net = ResNet(2, 1, width=2, layers=4, generator=seeded()).requires_grad_(False)
    for weights in (net.K, net.b, net.K_out):
        weights.zero_()
    net.b_out.fill_(-1.0)  # it says 0 of every point: right for half of them
    found = planar.price(net, 0, points=100)
    assert dataclasses.astuple(found) == pytest.approx((50, 50, 50, 1, 0, 0))


def test_fresh_points_are_not_those_of_the_training():
    seen = {tuple(p) for p in planar.data_of("ellipses", 10).train.y.tolist()}
    assert not seen & {tuple(p) for p in planar.fresh(10, 500).y.tolist()}


@pytest.mark.parametrize("key", [planar.NARROW, planar.LONGER, planar.RECIPES["peaks"]])
def test_a_smoke_fit_leaves_no_file(tmp_path, key):
    net = planar.fit(store(tmp_path), "tried", key, 0)
    assert not list(tmp_path.rglob("*"))
    assert 0 <= planar.accuracy(net, planar.data_of(key.data, 0).val) <= 100


# --- limits -------------------------------------------------------------------------------------


def test_weights_of_a_function_of_time_converge_and_others_do_not():
    layers = (20, 40, 80)
    assert limits.order(limits.euler_errors(3, layers), layers) == pytest.approx(1, abs=0.05)
    afresh = limits.euler_errors(3, layers, afresh=True)
    assert min(afresh) > 10 * limits.euler_errors(3, layers)[-1]


def test_the_change_of_a_control_that_is_linear_in_time_is_that_of_its_last_interval():
    def line(n):  # θ(t) = t on [0, 5]; a prolongation is constant after the last node
        return (torch.arange(n, dtype=torch.float64) * 5 / n)[:, None, None].expand(n, 3, 4)

    (found,) = limits.change([line(8), line(16)])
    assert found == pytest.approx(math.sqrt(12 * (5 / 16) ** 2 * 5 / 16))


def test_controls_start_from_the_same_function_of_time(tmp_path):
    found = limits.controls(store(tmp_path), 7)
    for thetas in found.values():
        assert [len(theta) for theta in thetas] == list(limits.LAYERS[:2])
    assert not list(tmp_path.rglob("*"))


# --- deep networks ------------------------------------------------------------------------------


def test_networks_differ_in_their_layers_and_in_their_start():
    nets = {kind: deep.network(deep.Settings(kind, 3, width=64), 0) for kind in deep.KINDS}
    eye = torch.eye(64).expand(3, 64, 64)
    orthogonal = nets[deep.ORTHOGONAL].K
    torch.testing.assert_close(orthogonal @ orthogonal.mT, eye, atol=1e-4, rtol=0)
    assert nets[deep.USUAL].K.std().item() == pytest.approx(5 / 3 / 8, rel=0.05)
    u = torch.randn(5, 64, generator=seeded())
    for kind, net in nets.items():
        one = torch.tanh(u @ net.K[0].T + net.b[0])
        stepped = net.architecture.scheme.step(
            net.architecture.field, (u,), net.h, (net.K[0], net.b[0])
        )[0]
        torch.testing.assert_close(stepped, u + net.h * one if kind == deep.RESIDUAL else one)
    with pytest.raises(ValueError, match="'dense'"):
        deep.network(deep.Settings("dense", 3), 0)


def test_a_gradient_ratio_is_that_of_the_product_of_the_jacobians():
    net = deep.network(deep.Settings(deep.ORTHOGONAL, 3), 0).double()
    y, label = (part[:128] for part in digits(0).train)
    u = y.double() @ net.K_in.T
    end = u
    factors = []
    for K, b in zip(net.K, net.b, strict=True):
        end = torch.tanh(end @ K.T + b)
        factors.append((1 - end**2)[:, :, None] * K)
    last = torch.func.grad(lambda e: metrics.cross_entropy(e @ net.K_out.T + net.b_out, label))(end)
    first = last
    for J in reversed(factors):
        first = torch.einsum("bi,bij->bj", first, J)
    expected = (first.norm() / last.norm()).item()
    ((found,),) = deep.gradient_ratios(deep.ORTHOGONAL, [0], [3])
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_study_chooses_its_rate_without_the_test_data(tmp_path, monkeypatch):
    used = []

    def scored(key, data, seed, rate, steps):
        used.append((rate, len(data.train.y), len(data.val.y), seed))
        return -abs(math.log(rate / 3e-3))

    monkeypatch.setattr(deep, "_score", scored)
    monkeypatch.setattr(deep, "RATES", (1e-3, 3e-3, 1e-2))
    found = deep.study(
        Store("01_resnets", "train", folder=tmp_path), deep.Settings("plain", 2), [10, 11]
    )
    assert found.rate == 3e-3
    whole, test = len(digits(0).train.y), len(digits(0).val.y)
    chosen, judged = used[:6], used[6:]
    assert all(train + val == whole for _, train, val, _ in chosen)
    assert {seed for *_, seed in chosen} == set(deep.TRIED)
    assert judged == [(3e-3, whole, test, 10), (3e-3, whole, test, 11)]


# --- convolutional networks ---------------------------------------------------------------------


def small(**changes):
    return dataclasses.replace(convolutional.KINDS[convolutional.SKIPS], blocks=2, **changes)


def test_the_networks_have_56_layers_and_three_resolutions():
    for kind, key in convolutional.KINDS.items():
        net = convolutional.network(key, 0)
        layers = [
            module
            for name, module in net.named_modules()
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and ".skip" not in name
        ]
        assert len(layers) == (20 if kind == convolutional.SHALLOW else 56)
    shapes = []
    for module in net:
        if isinstance(module, convolutional.Block):
            module.register_forward_hook(lambda m, i, out: shapes.append(tuple(out.shape[1:])))
    net(torch.randn(2, 196))
    assert sorted(set(shapes)) == [(8, 14, 14), (16, 7, 7), (32, 4, 4)]


def test_a_block_adds_its_change_to_what_it_receives_only_with_a_skip():
    u = torch.rand(3, 8, 5, 5, generator=seeded())
    for skip in (True, False):
        block = convolutional.Block(8, 8, skip, normalised=True).eval()
        torch.testing.assert_close(block(u), torch.relu(block.layers(u) + (u if skip else 0)))


def test_an_orthogonal_start_keeps_the_size_of_small_features():
    net = convolutional.network(small(skips=False, orthogonal=True, normalised=False), 0)
    block = next(m for m in net if isinstance(m, convolutional.Block))
    u = 1e-3 * torch.randn(1, 8, 5, 5, generator=seeded())
    torch.testing.assert_close(block(u).norm(), u.norm(), rtol=1e-4, atol=0)


def test_images_for_training_and_testing_share_none():
    (y, _), (test, label) = convolutional.images(3)
    assert (len(y), len(test), len(label)) == (4000, 1000, 1000)
    assert torch.cdist(test, y).min() > 0
    assert not torch.equal(convolutional.images(4)[1].y, test)


def test_a_slice_contains_the_loss_and_leaves_the_network_as_it_was():
    net = convolutional.network(small(), 0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    samples = convolutional.Samples(*(part[:32] for part in convolutional.images(0)[0]))
    found = torch.tensor(convolutional.plane(net, samples, 1, 3))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    centre = metrics.cross_entropy(net.train()(samples.y), samples.label).item()
    assert found[1, 1].item() == pytest.approx(centre, rel=1e-3)
    assert found.std() > 0


def test_a_rate_is_chosen_on_images_kept_apart(tmp_path, monkeypatch):
    used = []

    def trained(key, seed, rate, data):
        used.append((rate, seed, len(data.y)))
        return rate

    monkeypatch.setattr(convolutional, "trained", trained)
    monkeypatch.setattr(
        convolutional, "accuracy", lambda net, samples: 1 / len(samples.y) if net == 0.01 else 0.0
    )
    train = Store("01_resnets", "train", folder=tmp_path)
    found = convolutional.study(train, convolutional.ORTHOGONAL, [10])
    assert found.rate == 0.01
    assert found.accuracies == [1 / 1000]
    assert used[:-1] == [(rate, convolutional.TRIED, 3200) for rate in convolutional.RATES]
    assert used[-1] == (0.01, 10, 4000)


def test_filters_of_convolutions_keep_their_norm():
    net = convolutional.network(small(), 0)
    direction = landscape.filter_normalized(net, seeded(2))
    for name, w in net.named_parameters():
        if w.dim() == 4:
            pair = [part.flatten(1).norm(dim=1) for part in (direction[name], w.detach())]
            torch.testing.assert_close(*pair)
        elif w.dim() == 1:
            assert not direction[name].any()


# --- landscapes ---------------------------------------------------------------------------------


def test_descents_find_every_minimum_of_a_known_function_once(monkeypatch):
    def four(y, target, layers, a, b):  # minima at (0.5 or 1.5)², and a slope towards the edge
        value = ((a - 1) ** 2 - 0.25) ** 2 + ((b - 1) ** 2 - 0.25) ** 2
        return value.reshape(1, 1)

    monkeypatch.setattr(landscape, "rotation_landscape", four)
    starts = 0.2 + 1.8 * torch.rand(40, 2, generator=seeded(), dtype=torch.float64)
    nothing = torch.zeros(3, 1, dtype=torch.float64)
    found = landscape.minimisers(nothing, nothing, 1, starts)
    expected = torch.cartesian_prod(*[torch.tensor([0.5, 1.5]).double()] * 2)
    order = (10 * found[:, 0].round(decimals=2) + found[:, 1]).argsort()
    torch.testing.assert_close(found[order], expected, atol=1e-3, rtol=0)


def test_minima_on_the_boundary_do_not_count(monkeypatch):
    monkeypatch.setattr(
        landscape, "rotation_landscape", lambda y, target, layers, a, b: (a + b).reshape(1, 1)
    )
    nothing = torch.zeros(3, 1, dtype=torch.float64)
    starts = torch.full((3, 2), 1.0, dtype=torch.float64)
    assert landscape.minimisers(nothing, nothing, 1, starts).shape == (0, 2)


def test_a_coarse_landscape_has_many_minimisers_and_a_fine_one_a_single_one():
    y, target = evidence.toy(0)
    starts = 0.2 + 1.8 * torch.rand(8, 2, generator=seeded(), dtype=torch.float64)
    assert len(landscape.minimisers(y, target, evidence.COARSE, starts)) >= 3
    (only,) = landscape.minimisers(y, target, evidence.FINE, starts)
    assert (only - 1).abs().max() < 0.1

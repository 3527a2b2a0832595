import inspect
import math

import pytest
import torch
from torch.nn import functional

from ctdl_lib.networks import FNO
from experiments.function_space.unets import UNet

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def network(width=8, seed=1, started=True, **others):
    """A network, and if it has `started` to learn, with a last convolution that is not zero."""
    torch.manual_seed(seed)
    net = UNet(width=width, **others)
    if started:
        torch.nn.init.normal_(net.last.weight, std=0.1)
    return net


def relative(a, b):
    return float(((a - b).norm() / b.norm()).detach())


def normalized(norm, x):
    """The group norm: of the channels of a group and all pixels, mean 0 and variance 1."""
    groups = x.reshape(len(x), norm.num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    unit = centred / (centred.square().mean(2, keepdim=True) + norm.eps).sqrt()
    return norm.weight[:, None, None] * unit.reshape(x.shape) + norm.bias[:, None, None]


def convolved(conv, x):
    """The convolution as a sum over its kernel of moved fields, with zeros beyond the edge."""
    n, reach = x.shape[-1], conv.weight.shape[-1] // 2
    padded = functional.pad(x, 4 * [reach])
    total = conv.bias[:, None, None]
    for i in range(2 * reach + 1):
        for j in range(2 * reach + 1):
            moved = padded[:, :, i : i + n, j : j + n]
            total = total + torch.einsum("oi,bixy->boxy", conv.weight[:, :, i, j], moved)
    return total


def block(part, x, time):
    u = convolved(part.conv1, functional.silu(normalized(part.norm1, x)))
    u = u + (part.hands.weight @ time + part.hands.bias)[:, None, None]
    u = convolved(part.conv2, functional.silu(normalized(part.norm2, u)))
    return u + (convolved(part.skip, x) if hasattr(part.skip, "weight") else x)


def plain(net, t, u):
    """The network of three levels as it is written down, for one time t."""
    n, half = u.shape[-1], net.width // 2
    omega = torch.tensor([1000 ** (j / (half - 1)) for j in range(half)])
    features = torch.cat([(omega * t).sin(), (omega * t).cos()])
    time = functional.silu(net.clock.weight @ features + net.clock.bias)
    angle = 2 * math.pi * torch.arange(n) / n
    x, y = angle[:, None].expand(n, n), angle.expand(n, n)
    circles = torch.stack([x.sin(), x.cos(), y.sin(), y.cos()]).expand(len(u), 4, n, n)

    def halved(x):
        return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))

    def doubled(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    first = block(net.down[0], convolved(net.first, torch.cat([u[:, None], circles], 1)), time)
    second = block(net.down[1], halved(first), time)
    third = block(net.down[2], halved(second), time)
    x = block(net.up[2], torch.cat([block(net.middle, third, time), third], 1), time)
    x = block(net.up[1], torch.cat([doubled(x), second], 1), time)
    x = block(net.up[0], torch.cat([doubled(x), first], 1), time)
    return convolved(net.last, functional.silu(normalized(net.norm, x)))[:, 0]


@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("t", [0.0, 0.37])
def test_the_network_is_its_formula(n, t, generator):
    net, u = network(), torch.randn(2, n, n, generator=generator)
    assert torch.allclose(net(t, u), plain(net, t, u), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("factors", "n"), [((1,), 5), ((1, 1), 6), ((1, 2, 2), 8), ((1, 2, 2, 3), 16)]
)
def test_fields_keep_their_shape(factors, n):
    net = network(factors=factors)
    for batch in (1, 3):
        assert net(0.3, torch.randn(batch, n, n)).shape == (batch, n, n)


def test_samples_know_nothing_of_each_other(generator):
    net, u = network(), torch.randn(4, 8, 8, generator=generator)
    t, order = torch.rand(4, generator=generator), torch.randperm(4, generator=generator)
    assert torch.allclose(net(t[order], u[order]), net(t, u)[order])
    assert torch.allclose(net(t[:1], u[:1]), net(t, u)[:1])


def test_the_time_is_a_number_or_one_a_sample(generator):
    net, u = network(), torch.randn(3, 8, 8, generator=generator)
    for t in (torch.tensor(0.3), torch.full((3,), 0.3)):
        assert torch.equal(net(t, u), net(0.3, u))
    assert torch.equal(net(torch.ones(3), u), net(1, u))
    assert relative(net(0.31, u), net(0.3, u)) > 1e-4


def test_the_network_starts_with_a_constant(generator):
    net, u = network(started=False), torch.randn(3, 8, 8, generator=generator)
    for t in (0.0, 0.7):
        assert torch.equal(net(t, u), net.last.bias.expand(3, 8, 8))


def test_every_weight_matters_once_the_last_ones_do(generator):
    net, u = network(), torch.randn(2, 8, 8, generator=generator)
    net(0.3, u).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad.abs().max() > 0, name


def test_only_the_last_weights_have_a_gradient_at_first(generator):
    net, u = network(started=False), torch.randn(2, 8, 8, generator=generator)
    (net(0.3, u) - 1).square().sum().backward()
    moved = {name for name, p in net.named_parameters() if p.grad.any()}
    assert moved == {"last.weight", "last.bias"}


def test_equal_seeds_make_equal_networks(generator):
    u = torch.randn(2, 8, 8, generator=generator)
    assert torch.equal(network(seed=3)(0.2, u), network(seed=3)(0.2, u))
    assert relative(network(seed=4)(0.2, u), network(seed=3)(0.2, u)) > 0.1


def test_kernels_of_pixels_see_another_function_on_a_finer_grid():
    """The operator on the same fields is the same up to rounding, more or less."""

    def waves(n):
        x = 2 * math.pi * torch.arange(n) / n
        return (x.cos()[:, None] + (2 * x).sin())[None]

    def gap(net):
        with torch.no_grad():
            return relative(net(0.3, waves(56))[:, ::2, ::2], net(0.3, waves(28)))

    operator = FNO(modes=6, width=8, generator=torch.Generator().manual_seed(1))
    assert gap(network()) > 0.1
    assert gap(operator) < 1e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_are_kept(dtype, device, generator):
    net, u = network(), torch.randn(2, 8, 8, generator=generator)
    wanted = net(0.3, u)
    found = net.to(device, dtype)(0.3, u.to(device, dtype))
    assert (found.dtype, found.device.type) == (dtype, device)
    assert torch.allclose(found.cpu().double(), wanted, rtol=1e-4, atol=1e-5)


def by_hand(net, u):
    """The network without the check of its annotated shapes."""
    return inspect.unwrap(UNet.forward)(net, 0.3, u)


BAD = {
    "no multiple of four": (
        lambda: network()(0.3, torch.zeros(2, 10, 10)),
        r"multiple of 4, got \(2, 10, 10\): resample",
    ),
    "no multiple of two": (
        lambda: network(factors=(1, 1))(0.3, torch.zeros(2, 7, 7)),
        "multiple of 2",
    ),
    "no square": (lambda: by_hand(network(), torch.zeros(2, 8, 12)), r"got \(2, 8, 12\)"),
    "one field alone": (lambda: by_hand(network(), torch.zeros(8, 8)), r"got \(8, 8\)"),
    "a width of twelve": (lambda: UNet(width=12), "multiple of 8, got 12"),
    "no levels": (lambda: network(factors=()), r"factors=\(\) not empty"),
    "no width": (lambda: UNet(width=0), "multiple of 8, got 0"),
}


def test_the_first_level_may_be_wider_too():
    assert network(factors=(2, 1))(0.3, torch.zeros(2, 8, 8)).shape == (2, 8, 8)


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()

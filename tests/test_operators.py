import inspect
import math

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from ctdl_lib.networks import FNO, SpectralConv, time_features
from experiments.function_space.grids import resample

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def convolution(inputs=3, outputs=2, modes=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return SpectralConv(inputs, outputs, modes=modes, generator=generator)


def network(modes=4, width=6, layers=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return FNO(modes=modes, width=width, layers=layers, generator=generator)


def weight(K, k1, k2):
    """The complex matrix Rₖ, (inputs, outputs), of a wave number with k₂ ≥ 0."""
    real, imaginary = K.R.detach()[(k1 + K.modes - 1) * K.modes + k2].chunk(2, -1)
    return torch.complex(real, imaginary)


def by_fft(K, u):
    """K on fields (n, n, batch, channels) by the full FFT and products of complex numbers."""
    n, m = u.shape[0], K.modes
    coefficients = torch.fft.rfft2(u, dim=(0, 1))
    out = torch.zeros(n, n // 2 + 1, u.shape[2], K.R.shape[2] // 2, dtype=coefficients.dtype)
    for k1 in range(1 - m, m):
        for k2 in range(m):
            out[k1, k2] = torch.einsum("bi,io->bo", coefficients[k1, k2], weight(K, k1, k2))
    return torch.fft.irfft2(out, s=(n, n), dim=(0, 1))


def points(n):
    x = torch.arange(n) / n
    return x[:, None], x[None, :]


def band_limited(m, generator, channels=1):
    """Functions of random wave numbers up to m, as their values on any grid, (channels, n, n)."""
    k = torch.arange(m + 1)
    parts = torch.randn(4, channels, m + 1, m + 1, generator=generator) / (m + 1)

    def on(n):
        angle = 2 * math.pi * torch.arange(n) / n * k[:, None]
        cos, sin = angle.cos(), angle.sin()
        a, b, c, d = parts
        return cos.T @ a @ cos + cos.T @ b @ sin + sin.T @ c @ cos + sin.T @ d @ sin

    return on


def on_grid(fields):
    """Fields (channels, n, n) as one sample of a convolution, (n, n, 1, channels)."""
    return fields.permute(1, 2, 0)[:, :, None]


def relative(a, b):
    return float(((a - b).norm() / b.norm()).detach())


# --- the spectral convolution -------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 11, 13, 28])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 2), (1, 4)])
def test_truncated_transforms_do_what_the_fft_does(n, inputs, outputs, generator):
    K = convolution(inputs, outputs)
    u = torch.randn(n, n, 4, inputs, generator=generator)
    assert K(u).shape == (n, n, 4, outputs)
    assert torch.allclose(K(u), by_fft(K, u), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("k", [(0, 1), (2, 1), (-2, 1), (-4, 4), (3, 2)])
@pytest.mark.parametrize("n", [10, 13])
def test_a_wave_is_multiplied_by_its_own_weights(k, n):
    """Re aₖe^{2πi k·x} becomes Re(Rₖaₖ e^{2πi k·x}), and k₁ counts along the first axis."""
    K, (x, y) = convolution(), points(n)
    wave = torch.exp(2j * math.pi * (k[0] * x + k[1] * y))
    a = torch.tensor([1.0 + 2j, -0.5j, 0.3])
    found = K((wave[..., None, None] * a).real)[:, :, 0]
    assert torch.allclose(found, (wave[..., None] * (a @ weight(K, *k))).real)


@pytest.mark.parametrize("k1", [0, 1, 4])
def test_of_waves_along_the_first_axis_the_real_part_is_taken(k1):
    """Both ±k₁ have weights of their own: cos becomes Re ½(R₊e^{iφ} + R₋e^{−iφ})."""
    K, n = convolution(), 11
    wave = torch.exp(2j * math.pi * k1 * points(n)[0]).expand(n, n)
    a = torch.tensor([1.0, -0.5, 0.3])
    both = a @ weight(K, k1, 0).real * wave.real[..., None]
    both = both + a @ weight(K, -k1, 0).real * wave.real[..., None]
    turned = a @ (weight(K, -k1, 0) - weight(K, k1, 0)).imag * wave.imag[..., None]
    found = K(wave.real[..., None, None] * a)[:, :, 0]
    assert torch.allclose(found, (both + turned) / 2)


@pytest.mark.parametrize("k", [(5, 0), (0, 5), (-5, 2), (6, 6)])
def test_waves_beyond_the_modes_are_dropped(k):
    K, (x, y) = convolution(), points(14)
    wave = torch.cos(2 * math.pi * (k[0] * x + k[1] * y))
    assert K(wave[..., None, None].expand(14, 14, 1, 3)).abs().max() < 1e-13


@pytest.mark.parametrize("n", [10, 13])
@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (3, -4)])
def test_moved_fields_have_moved_images(n, shift, generator):
    K, u = convolution(), torch.randn(n, n, 2, 3, generator=generator)
    assert torch.allclose(K(u.roll(shift, (0, 1))), K(u).roll(shift, (0, 1)))


@pytest.mark.parametrize("n", [10, 11, 25, 28, 50])
def test_the_convolution_is_one_operator_on_all_grids(n, generator):
    """Also of functions with waves that it drops, as long as the grid does not mistake them."""
    K = convolution()
    for m in (4, (n - 1) // 2):
        function = band_limited(m, generator, channels=3)
        image = K(on_grid(function(60)))[:, :, 0].permute(2, 0, 1)
        found = K(on_grid(function(n)))[:, :, 0].permute(2, 0, 1)
        assert torch.allclose(found, resample(image, n))


def test_the_convolution_is_linear_and_samples_know_nothing_of_each_other(generator):
    K, (u, v) = convolution(), torch.randn(2, 11, 11, 4, 3, generator=generator)
    order = torch.randperm(4, generator=generator)
    assert torch.allclose(K(2 * u - 3 * v), 2 * K(u) - 3 * K(v))
    assert torch.allclose(K(u[:, :, order]), K(u)[:, :, order])
    assert torch.allclose(K(u[:, :, :1]), K(u)[:, :, :1])


def test_weights_start_with_the_variance_that_is_said():
    """E|Rₖ|² = 1/inputs, and real and imaginary parts have a half of it each."""
    K = convolution(inputs=8, outputs=8, modes=6)
    for part in K.R.detach().chunk(2, -1):
        square = part.square()
        error = float(square.std()) / square.numel() ** 0.5
        assert abs(float(square.mean()) - 1 / 16) < 4 * error


@pytest.mark.parametrize("n", [4, 5])
def test_derivatives_are_those_of_finite_differences(n, generator):
    K = convolution(2, 1, modes=2)
    u = torch.randn(n, n, 1, 2, generator=generator, requires_grad=True)
    R = K.R.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda u, R: functional_call(K, {"R": R}, (u,)), (u, R))


# --- the operator -------------------------------------------------------------------------------


def frequencies(count):
    return [1000 ** (j / (count // 2 - 1)) for j in range(count // 2)]


def plain(net, t, u):
    """The network as it is written down, for one time t and channels before pixels."""
    n = u.shape[-1]
    omega = torch.tensor(frequencies(net.width))
    features = torch.cat([(omega * t).sin(), (omega * t).cos()])
    time = functional.silu(net.clock @ features)
    x, y = (2 * math.pi * z.expand(n, n) for z in points(n))
    circles = torch.stack([x.sin(), x.cos(), y.sin(), y.cos()]).expand(len(u), 4, n, n)
    u = torch.cat([u[:, None], circles], 1)
    u = torch.einsum("oi,bixy->boxy", net.lift, u) + net.b_lift[:, None, None]
    for K, W, b, hands in zip(net.K, net.W, net.b, net.hands, strict=True):
        g, e = (hands @ time).reshape(2, -1, 1, 1)
        convolved = by_fft(K, u.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)
        step = convolved + torch.einsum("oi,bixy->boxy", W, u) + b[:, None, None]
        u = u + functional.gelu((1 + g) * step + e)
    hidden = functional.gelu(
        torch.einsum("oi,bixy->boxy", net.widen, u) + net.b_widen[:, None, None]
    )
    return torch.einsum("oi,bixy->boxy", net.narrow, hidden)[:, 0]


def drawn(net, seed=2):
    """The network with all weights drawn, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(torch.randn(p.shape, generator=generator) / 3)
    return net


@pytest.mark.parametrize("n", [8, 11])
@pytest.mark.parametrize("t", [0.0, 0.37, 1.0])
def test_the_network_is_its_formula(n, t, generator):
    net, u = drawn(network()), torch.randn(3, n, n, generator=generator)
    assert torch.allclose(net(t, u), plain(net, t, u), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2])
def test_a_finer_grid_sees_the_same_function(m, generator):
    """On the points of both grids, and on other grids up to what 28 points cannot tell apart."""
    net, function = network(modes=8, width=16, layers=4), band_limited(m, generator)
    with torch.no_grad():
        image = {n: net(0.3, function(n)) for n in (28, 29, 50, 56)}
    assert relative(image[28], image[56][:, ::2, ::2]) < 1e-6
    for n in (29, 50, 56):
        assert relative(resample(image[n], 28), image[28]) < 3e-4


@pytest.mark.parametrize("n", [29, 50])
def test_grids_without_common_points_agree_in_the_band_of_the_convolutions(n, generator):
    """What they disagree in is near the wave number 14, where 28 points mistake one for another."""
    net, function = network(modes=8, width=16, layers=4), band_limited(3, generator)
    with torch.no_grad():
        coarse, fine = net(0.3, function(28)), net(0.3, function(n))
    assert relative(resample(fine, 15), resample(coarse, 15)) < 1e-4
    assert relative(net(0.3, function(56))[:, ::2, ::2], coarse) < 1e-5


def test_the_error_of_a_coarse_grid_falls_faster_than_any_power(generator):
    net, function = network(modes=8, width=16, layers=4), band_limited(3, generator)
    with torch.no_grad():
        image = {n: net(0.3, function(n)) for n in (16, 24, 40, 112)}
    errors = [relative(image[n], resample(image[112], n)) for n in (16, 24, 40)]
    slopes = [
        math.log(errors[i] / errors[i + 1]) / math.log(b / a)
        for i, (a, b) in enumerate([(16, 24), (24, 40)])
    ]
    assert 3 < slopes[0] < slopes[1]
    assert errors[-1] < 1e-3


def test_samples_know_nothing_of_each_other(generator):
    net, u = network(), torch.randn(4, 9, 9, generator=generator)
    t, order = torch.rand(4, generator=generator), torch.randperm(4, generator=generator)
    assert torch.allclose(net(t[order], u[order]), net(t, u)[order])
    assert torch.allclose(net(t[:1], u[:1]), net(t, u)[:1])


def test_the_time_is_a_number_or_one_a_sample(generator):
    net, u = network(), torch.randn(3, 8, 8, generator=generator)
    for t in (torch.tensor(0.3), torch.full((3,), 0.3)):
        assert torch.equal(net(t, u), net(0.3, u))
    assert torch.equal(net(torch.ones(3), u), net(1, u))
    assert relative(net(0.31, u), net(0.3, u)) > 1e-3


def test_weights_do_not_depend_on_the_grid():
    net = network(modes=3, width=6, layers=2)
    matrices = 6 * 5 + 2 * 6 * 6 + 24 * 6 + 2 * 12 * 24 + 24 * 6 + 24
    vectors = 6 + 2 * 6 + 24
    assert sum(p.numel() for p in net.parameters()) == matrices + vectors + 2 * 5 * 3 * 6 * 12
    for n in (6, 7, 12, 31):
        assert net(0.2, torch.zeros(2, n, n)).shape == (2, n, n)


def test_every_weight_matters(generator):
    net, u = drawn(network()), torch.randn(2, 9, 9, generator=generator)
    net(0.3, u).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad.abs().max() > 0, name


def test_equal_generators_make_equal_networks(generator):
    u = torch.randn(2, 8, 8, generator=generator)
    assert torch.equal(network(seed=3)(0.2, u), network(seed=3)(0.2, u))
    assert relative(network(seed=4)(0.2, u), network(seed=3)(0.2, u)) > 0.1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_are_kept(dtype, device, generator):
    net, u = network(), torch.randn(2, 9, 9, generator=generator)
    wanted = net(0.3, u)
    found = net.to(device, dtype)(0.3, u.to(device, dtype))
    assert (found.dtype, found.device.type) == (dtype, device)
    assert torch.allclose(found.cpu().double(), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_stored_in_inference_mode_can_be_trained_with_later(generator):
    net = network(modes=3)
    with torch.inference_mode():
        net(0.3, torch.randn(1, 19, 19, generator=generator))
    net(0.3, torch.randn(1, 19, 19, generator=generator)).sum().backward()
    assert net.K[0].R.grad.isfinite().all()


def test_derivatives_of_the_network_can_be_taken_by_transformations(generator):
    net, u = network(modes=2, width=4), torch.randn(4, 4, generator=generator)

    def image(u):
        return net(0.3, u[None])[0]

    forward, reverse = torch.func.jacfwd(image)(u), torch.func.jacrev(image)(u)
    assert torch.allclose(forward, reverse)
    direction, h = torch.randn(4, 4, generator=generator), 1e-5
    slope = (image(u + h * direction) - image(u - h * direction)) / (2 * h)
    assert torch.allclose(torch.einsum("abij,ij->ab", forward, direction), slope, atol=1e-8)


# --- features of time ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 6, 32])
def test_features_of_time_are_waves_from_slow_to_fast(count):
    times = [0.0, 0.3, 1.0]
    wanted = [[f(w * t) for f in (math.sin, math.cos) for w in frequencies(count)] for t in times]
    found = time_features(torch.tensor(times), count)
    assert torch.allclose(found, torch.tensor(wanted), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_of_time_keep_the_precision(dtype):
    assert time_features(torch.rand(3).to(dtype), 8).dtype == dtype


# --- what is refused ----------------------------------------------------------------------------


def by_hand(function):
    """The function without the check of its annotated shapes."""
    return inspect.unwrap(function)


BAD = {
    "a coarse grid": (
        lambda: convolution()(torch.zeros(9, 9, 1, 3)),
        "n = 9 is too small for 5 modes: take n ≥ 10",
    ),
    "a coarse grid for the network": (
        lambda: network()(0.3, torch.zeros(1, 7, 7)),
        "n = 7 is too small for 4 modes: take n ≥ 8",
    ),
    "a channel too many": (
        lambda: by_hand(FNO.forward)(network(), 0.3, torch.zeros(2, 8, 9, 1)),
        r"shape \(batch, n₁, n₂\), got \(2, 8, 9, 1\)",
    ),
    "one side too coarse": (
        lambda: network()(0.3, torch.zeros(1, 20, 7)),
        "n = 7 is too small for 4 modes: take n ≥ 8",
    ),
    "one field alone": (
        lambda: by_hand(FNO.forward)(network(), 0.3, torch.zeros(8, 8)),
        r"got \(8, 8\)",
    ),
    "no modes": (lambda: network(modes=0), "modes=0"),
    "no layers": (lambda: network(layers=0), "at least 1, got layers=0"),
    "an odd width": (lambda: network(width=5), "width=5 must be even"),
    "a narrow network": (lambda: network(width=2), "width=2 must be even and at least 4"),
    "odd features": (lambda: by_hand(time_features)(torch.zeros(1), 5), "even .* got 5"),
    "few features": (lambda: by_hand(time_features)(torch.zeros(1), 2), "at least 4, got 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_grids_that_are_not_square_agree_with_square_ones(generator):
    """A band-limited field, sampled on 16 × 16, 12 × 20 and 20 × 12 pixels of the same torus."""
    net = FNO(modes=3, width=8, layers=1, generator=generator)
    convolution = SpectralConv(1, 2, modes=3, generator=generator)

    def field(n1, n2):
        x = 2 * torch.pi * torch.arange(n1)[:, None] / n1
        y = 2 * torch.pi * torch.arange(n2) / n2
        return 1 + torch.sin(x) * torch.cos(2 * y) + 0.5 * torch.cos(2 * x - y)

    def quarters(u):
        """The values at multiples of a quarter of the period, which all three grids have."""
        return u[:: u.shape[0] // 4, :: u.shape[1] // 4]

    square = convolution(field(16, 16)[:, :, None, None])
    pointwise = net(0.3, field(16, 16)[None])[0]
    for n1, n2 in [(12, 20), (20, 12)]:
        u = field(n1, n2)
        assert torch.allclose(quarters(convolution(u[:, :, None, None])), quarters(square))
        # only one layer acts on a field with few modes, so this is exact as well
        assert torch.allclose(quarters(net(0.3, u[None])[0]), quarters(pointwise))
    with pytest.raises(ValueError, match="n = 5 is too small for 3 modes"):
        net(0.3, field(5, 20)[None])

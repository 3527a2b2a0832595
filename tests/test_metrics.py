import importlib.util
import inspect
import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from ctdl_lib import metrics
from ctdl_lib.metrics import (
    accuracy,
    c2st,
    cross_entropy,
    energy_distance,
    mmd,
    observed_orders,
    predict,
    sliced_wasserstein,
    spread,
    vendi,
)
from ctdl_lib.networks import SpectralConv
from machinery.instruments import interleaved_times, moved_bytes, retained_bytes


def test_accuracy_counts_what_is_recognised():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 75.0
    assert predict(torch.tensor([[-1.0], [2.0]])).tolist() == [0, 1]


def test_spread_is_that_of_torch():
    values = torch.randn(7)
    found = spread(values.tolist())
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.std == pytest.approx(float(values.std()))
    with pytest.raises(ValueError, match="at least two"):
        spread([1.0])


def test_observed_orders_of_powers():
    assert observed_orders([1.0, 1 / 8, 1 / 64], [1.0, 0.5, 0.25]) == pytest.approx([3.0, 3.0])


def test_contenders_run_by_turns():
    order = []
    contenders = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = interleaved_times(contenders, rounds=3)
    assert order == ["a", "b"] * 4
    assert set(times) == {"a", "b"}
    assert all(seconds >= 0 for seconds in times.values())


def test_cross_entropy_of_one_logit_is_that_of_two():
    logit, label = torch.randn(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    two = torch.cat([torch.zeros(6, 1), logit], 1)
    by_hand = -(two.softmax(1)[torch.arange(6), label]).log().mean()
    assert torch.allclose(cross_entropy(logit, label), by_hand)
    assert torch.allclose(cross_entropy(two, label), by_hand)


def test_retained_bytes_are_those_of_what_is_stored_for_the_way_back():
    x = torch.ones(1000, requires_grad=True)

    def forward():
        y = torch.tanh(x)  # stores its result
        return y + y.detach().clone().sum()  # adding stores nothing; the clone dies

    assert retained_bytes(forward) == 2 * 8000  # float64: tanh(x) and the result


def test_what_was_there_before_is_not_counted():
    x = torch.ones(1000)
    assert retained_bytes(lambda: x.view(10, 100)) == 0
    assert retained_bytes(lambda: x.add_(1)) == 0
    assert retained_bytes(lambda: (x + 1).sum()) == 8


def within(values, wanted, errors=4.0):
    """Where the mean of repeated estimates is `wanted` within four standard errors."""
    values = torch.tensor(values)
    return float((values.mean() - wanted).abs()) < errors * float(values.std()) / len(values) ** 0.5


def gaussian_mmd(d, shift, deviation, bandwidth):
    """The squared discrepancy of N(0, I) and N(m, s²I), ‖m‖ = shift, in closed form."""

    def mean_kernel(variance, distance):  # E exp(−‖Z‖²/(2h²)), Z ~ N(distance, variance·I)
        total = bandwidth**2 + variance
        return (bandwidth**2 / total) ** (d / 2) * math.exp(-0.5 * distance**2 / total)

    across = mean_kernel(1 + deviation**2, shift)
    return mean_kernel(2, 0) + mean_kernel(2 * deviation**2, 0) - 2 * across


@pytest.mark.parametrize(("shift", "deviation"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1.5), (1.0, 0.7)])
def test_mmd_of_gaussians_is_unbiased(shift, deviation, generator):
    d, bandwidth, values = 3, 1.2, []
    for _ in range(300):
        x = torch.randn(40, d, generator=generator)
        y = deviation * torch.randn(30, d, generator=generator)
        y[:, 0] += shift
        values.append(mmd(x, y, bandwidth=bandwidth))
    assert within(values, gaussian_mmd(d, shift, deviation, bandwidth))
    assert min(values) < 0 or shift + deviation > 1


def test_mmd_is_that_of_the_formula():
    x, y = torch.randn(7, 2), torch.randn(5, 2)
    k = [torch.exp(-(torch.as_tensor(d) ** 2)) for d in (pdist(x), pdist(y), cdist(x, y))]
    by_hand = k[0].mean() + k[1].mean() - 2 * k[2].mean()
    assert mmd(x, y, bandwidth=math.sqrt(0.5)) == pytest.approx(float(by_hand), rel=1e-12)


def test_mmd_and_energy_distance_in_parts_are_as_at_once():
    x, y = torch.randn(2500, 2), torch.randn(2100, 2) + 0.3  # more than four million pairs
    k = [torch.exp(-(torch.as_tensor(d) ** 2) / 2) for d in (pdist(x), pdist(y), cdist(x, y))]
    at_once = float(k[0].mean() + k[1].mean() - 2 * k[2].mean())
    assert mmd(x, y, bandwidth=1.0) == pytest.approx(at_once, abs=1e-12)
    at_once = 2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean()
    assert energy_distance(x, y) == pytest.approx(at_once, abs=1e-12)


def test_energy_distance_is_the_square_of_that_of_scipy():
    """Which takes the pairs of a sample with itself along."""
    x, y = torch.randn(40, 1), torch.randn(30, 1) + 1
    bias = pdist(x).mean() / 40 + pdist(y).mean() / 30
    of_scipy = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y) == pytest.approx(of_scipy - bias, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_energy_distance_of_normals_is_unbiased(shift, generator):
    """For Z ~ N(m, s²) E|Z| = s√(2/π) exp(−m²/(2s²)) + m erf(m/(s√2)), here with s² = 2."""
    values = []
    for _ in range(300):
        x = torch.randn(40, 1, generator=generator)
        values.append(energy_distance(x, torch.randn(30, 1, generator=generator) + shift))

    def mean_of_modulus(m):
        return 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)

    assert within(values, 2 * mean_of_modulus(shift) - 2 * mean_of_modulus(0.0))
    assert min(values) < 0 or shift > 0


def test_sliced_wasserstein_on_a_line_compares_sorted_samples(generator):
    x, y = torch.randn(50, 1), 2 * torch.rand(50, 1)
    by_hand = (x[:, 0].sort().values - y[:, 0].sort().values).square().mean().sqrt()
    found = sliced_wasserstein(x, y, projections=3, generator=generator)
    assert found == pytest.approx(float(by_hand))


def test_sliced_wasserstein_of_a_shift_and_of_a_scaling(generator):
    """E(θᵀm)² = ‖m‖²/d; the scaling by s costs (s − 1)² times the mean of (θᵀx)²."""
    d, x, m = 4, torch.randn(100, 4), torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = sliced_wasserstein(x, x + m, projections=20_000, generator=generator)
    assert found**2 == pytest.approx(float(m.square().sum()) / d, rel=0.03)
    found = sliced_wasserstein(x, 1.5 * x, projections=5000, generator=generator)
    assert found**2 == pytest.approx(0.25 * float(x.square().mean()), rel=0.01)


def test_sliced_wasserstein_of_normals_nears_that_of_their_laws(generator):
    x, y = (torch.randn(20_000, 3, generator=generator) for _ in range(2))
    found = sliced_wasserstein(x, 2 * y, projections=50, generator=generator)
    assert found == pytest.approx(1.0, abs=0.03)  # W₂ of N(0, 1) and N(0, 4) on each line


def test_vendi_is_one_for_equal_samples_and_n_for_orthogonal_ones():
    assert vendi(torch.randn(1, 3).expand(5, 3)) == pytest.approx(1.0)
    assert vendi(torch.eye(4, 9)) == pytest.approx(4.0)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert vendi(rotation) == pytest.approx(6.0)


@pytest.mark.parametrize("d", [8, 3, 4])
def test_vendi_of_groups_is_the_exponential_of_the_entropy_of_their_shares(d):
    """In more dimensions than samples, in fewer, and in as many as there are groups."""
    sizes = [3, 2, 1]
    x = torch.eye(3, d).repeat_interleave(torch.tensor(sizes), 0)
    assert vendi(x) == pytest.approx(math.exp(stats.entropy(sizes)))


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2, math.pi / 2, 2.5])
def test_vendi_of_two_samples_depends_on_their_angle(angle):
    """The eigenvalues are (1 ± cos)/2."""
    x = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    shares = [(1 + math.cos(angle)) / 2, (1 - math.cos(angle)) / 2]
    assert vendi(x) == pytest.approx(math.exp(stats.entropy(shares)))


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5), (6, 6)])
def test_vendi_is_that_of_the_formula_with_either_product(n, d):
    x = torch.randn(n, d)
    cosines = 1 - torch.as_tensor(cdist(x, x, metric="cosine"))
    eigenvalues = torch.linalg.eigvalsh(cosines / n).clamp(min=0)
    assert vendi(x) == pytest.approx(math.exp(stats.entropy(eigenvalues)))
    wide = torch.cat([x, torch.zeros(n, n)], 1)  # more columns than rows, and the same cosines
    assert vendi(wide) == pytest.approx(vendi(x))


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5)])
def test_vendi_looks_at_directions_only(n, d):
    x = torch.randn(n, d)
    of_x = pytest.approx(vendi(x))
    assert vendi(1e3 * torch.rand(n, 1) * x) == of_x
    assert vendi(x[torch.randperm(n)]) == of_x
    assert vendi(x @ torch.linalg.qr(torch.randn(d, d)).Q) == of_x
    assert vendi(torch.cat([x, x])) == of_x  # more of the same
    assert vendi((-1.0) ** torch.arange(n)[:, None] * x) == of_x
    assert 1 < vendi(x) < min(n, d)


def test_vendi_of_single_precision_is_nearly_that_of_double():
    x = torch.randn(20, 7)
    assert vendi(x.float()) == pytest.approx(vendi(x), rel=1e-5)
    assert vendi(torch.ones(50, 7).float()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_vendi_of_very_large_and_small_samples_is_that_of_the_others(scale):
    x = torch.randn(6, 4)
    assert vendi((scale * x).float()) == pytest.approx(vendi(x), rel=1e-5)


def test_c2st_of_equal_laws_is_a_half_and_of_separate_ones_one(generator):
    x, y = (torch.randn(200, 2, generator=generator) for _ in range(2))
    assert abs(c2st(x, y, seed=0) - 0.5) < 4 * 0.5 / math.sqrt(400)
    assert c2st(x, y + 8, seed=0) == 1.0
    assert c2st(x, y + 1, seed=1) == c2st(x, y + 1, seed=1)


@pytest.mark.parametrize("shift", [0.6, 2.0])
def test_c2st_in_the_plane_is_the_bayes_accuracy(generator, shift):
    """Of N(0, I) and N(m, I) no classifier has an accuracy above Φ(‖m‖/2): 0.618 and 0.841."""
    x, y = (torch.randn(1000, 2, generator=generator) for _ in range(2))
    y[:, 0] += shift
    best = float(torch.special.ndtr(torch.tensor(shift / 2)))
    assert abs(c2st(x, y, seed=0) - best) < 3 * math.sqrt(best * (1 - best) / 2000)


def test_c2st_is_that_of_sbibm(generator):
    package = importlib.util.find_spec("sbibm")
    if package is None or package.origin is None:
        pytest.skip("sbibm is not installed")
    path = Path(package.origin).parent / "metrics" / "c2st.py"
    # of the package itself only this file can be imported beside a new sbi
    spec = importlib.util.spec_from_file_location("sbibm_c2st", path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    x, y = (torch.randn(500, 2, generator=generator) for _ in range(2))
    y = 1.5 * y + 0.3
    assert c2st(x, y, seed=3) == pytest.approx(float(theirs.c2st(x, y, seed=3)), abs=1e-6)


def test_c2st_looks_at_features_of_x_that_are_constant(generator):
    x, y = (torch.randn(100, 2, generator=generator) for _ in range(2))
    x[:, 1], y[:, 1] = 5.0, 8.0
    assert c2st(x, y, seed=0) > 0.95


def by_energy(x, y):
    return inspect.unwrap(energy_distance)(x, y)


def by_slices(x, y, projections=2):
    check = inspect.unwrap(sliced_wasserstein)
    return check(x, y, projections=projections, generator=torch.Generator())


BAD = {
    "dimensions": (lambda: by_energy(torch.ones(3, 2), torch.ones(3, 1)), r"\(m, d\)"),
    "a vector": (lambda: by_energy(torch.ones(3), torch.ones(3)), r"\(n, d\)"),
    "one sample": (lambda: by_energy(torch.ones(1, 2), torch.ones(3, 2)), "at least two"),
    "nan": (lambda: by_energy(torch.ones(3, 2), torch.full((3, 2), math.nan)), "3 samples of y"),
    "bandwidth": (lambda: mmd(torch.ones(3, 2), torch.ones(3, 2), bandwidth=0.0), "positive"),
    "sizes": (lambda: by_slices(torch.ones(3, 2), torch.ones(4, 2)), "equal"),
    "sizes for a network": (
        lambda: inspect.unwrap(c2st)(torch.ones(3, 2), torch.ones(4, 2), seed=0),
        "equal",
    ),
    "zero": (lambda: vendi(torch.eye(4)[[0, 1]] * torch.tensor([[1.0], [0.0]])), "1 samples are"),
    "one sample has no diversity": (lambda: vendi(torch.ones(1, 2)), "at least two"),
    "no projection": (lambda: by_slices(torch.ones(3, 2), torch.ones(3, 2), 0), "at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_the_bandwidth_is_chosen_never_defaulted():
    parameter = inspect.signature(metrics.mmd).parameters["bandwidth"]
    assert parameter.default is inspect.Parameter.empty


def test_moved_bytes_counts_what_is_read_and_written():
    A, B = torch.randn(3, 4), torch.randn(4, 5)
    assert moved_bytes(lambda: A @ B) == 8 * (12 + 20 + 15)
    assert moved_bytes(lambda: A.T.reshape(2, 6)) == 8 * (12 + 12)  # a copy
    assert moved_bytes(lambda: A.reshape(2, 6)[:1].unsqueeze(0)) == 0
    assert moved_bytes(lambda: A.relu_()) == 8 * (12 + 12)


def test_moved_bytes_of_a_spectral_layer_are_those_of_its_docstring():
    n, m, c, batch = 12, 4, 6, 5
    layer, u = SpectralConv(c, c, modes=m), torch.randn(n, n, batch, c)
    layer(u)
    with torch.no_grad():
        found = moved_bytes(lambda: layer(u))
    modes = (2 * m - 1) * m  # about 2m²
    formula = 8 * batch * c * (2 * n * n + 8 * n * m + 20 * modes) + 8 * 4 * modes * c * c
    matrices = 8 * 2 * (2 * m * n + 2 * (2 * m - 1) * 2 * n)
    assert found == formula + matrices

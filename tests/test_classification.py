from itertools import pairwise

import pytest
import torch

from ctdl_lib.problems.classification import digits, ellipses, peaks, peaks_of, swiss_roll
from experiments.neural_odes.problems import annuli


def test_ellipses_lie_in_their_ellipses():
    data = ellipses(0)
    for samples, n in ((data.train, 1000), (data.val, 200)):
        r = (samples.y / torch.tensor([1.0, 0.4])).norm(dim=1)
        assert torch.equal(samples.label, (r < 1).long())
        assert samples.label.sum() == n
        assert r.max() < 2
        # uniform in r, so that the mean of each ring is that of its interval
        assert float(r[:n].mean()) == pytest.approx(0.5, abs=4 * 0.29 / n**0.5)


def test_swiss_roll_is_two_spirals():
    data = swiss_roll(0, nodes=2000, noise=0.0)
    y, label = (torch.cat(parts) for parts in zip(data.train, data.val, strict=True))
    assert len(y) == 8000
    r, angle = y.norm(dim=1), torch.atan2(y[:, 1], y[:, 0])
    for k, inner in ((1, 0.0), (0, 0.2)):
        share = r[label == k] - inner
        assert -1e-6 < float(share.min()) < 0.01
        assert 0.99 < float(share.max()) < 1 + 1e-6
        turns = (angle[label == k] - 4 * torch.pi * share) / (2 * torch.pi)
        torch.testing.assert_close(turns, turns.round(), atol=1e-4, rtol=0)


def test_points_of_a_swiss_roll_are_drawn_afresh_and_lie_about_the_spirals():
    data = swiss_roll(3, nodes=400, noise=0.02)
    assert data.train.label.bincount().tolist() == data.val.label.bincount().tolist() == [400, 400]
    on_curve = swiss_roll(0, nodes=8000, noise=0.0)
    for samples in (data.train, data.val):
        for label in (0, 1):
            curve = on_curve.train.y[on_curve.train.label == label].double()
            points = samples.y[samples.label == label]
            distance = torch.cdist(points, curve).min(dim=1).values
            # the distance from a smooth curve is one coordinate of the noise
            assert float(distance.square().mean().sqrt()) == pytest.approx(0.02, rel=0.15)
    assert torch.cdist(data.train.y, data.val.y).min() > 0
    assert torch.equal(swiss_roll(3).val.y, swiss_roll(3).val.y)


def test_peaks_has_five_balanced_classes_of_equal_width_and_no_shared_points():
    data = peaks(0, train=200, val=50)
    assert data.train.label.bincount().tolist() == [200] * 5
    assert data.val.label.bincount().tolist() == [50] * 5
    for samples in (data.train, data.val):
        height = peaks_of(samples.y.double())
        bounds = [
            (height[samples.label == k].min(), height[samples.label == k].max()) for k in range(5)
        ]
        assert all(low[1] <= high[0] for low, high in pairwise(bounds))
    joint = {tuple(y) for y in data.train.y.tolist()} & {tuple(y) for y in data.val.y.tolist()}
    assert not joint
    with pytest.raises(ValueError, match="raise grid"):
        peaks(0, train=10_000)


def test_digits_are_split_with_equal_shares():
    data = digits(3)
    assert data.train.y.shape == (1437, 64)
    assert data.val.y.shape == (360, 64)
    assert 0 <= data.train.y.min() < data.train.y.max() == 1
    shares = data.val.label.bincount() / data.train.label.bincount()
    assert (shares - 0.25).abs().max() < 0.02


def test_samples_depend_on_the_seed_alone():
    assert torch.equal(ellipses(1).train.y, ellipses(1).train.y)
    assert not torch.equal(ellipses(1).train.y, ellipses(2).train.y)
    assert torch.equal(digits(1).val.label, digits(1).val.label)


def test_settings_can_be_chosen_without_the_samples_that_judge():
    data = digits(0)
    inner = data.without_val(3)
    assert len(inner.val.y) == round(0.2 * 1437)
    assert len(inner.train.y) + len(inner.val.y) == 1437
    joint = torch.cat([inner.train.y, inner.val.y])
    assert torch.equal(joint.sum(0), data.train.y.sum(0))
    assert torch.equal(inner.val.y, data.without_val(3).val.y)


def test_annuli_leave_a_gap_between_the_classes():
    data = annuli(3)
    for (y, label), counts in ((data.train, (1500, 500)), (data.val, (300, 100))):
        r = y.norm(dim=1)
        assert tuple(label.bincount().tolist()) == counts
        assert float(r[label == 1].max()) <= 0.5
        assert 1.0 <= float(r[label == 0].min()) <= float(r.max()) <= 1.5

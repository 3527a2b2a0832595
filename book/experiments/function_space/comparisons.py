"""Two numbers that compare samples: how far apart they are, and how diverse."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ctdl_lib.metrics import check_samples


def energy_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """The unbiased estimate of the energy distance 2E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖.

    The energy distance is the square of a metric. The estimate may be negative.

    Reference: szekely2013energy.
    """
    check_samples(x, y)
    n, m = len(x), len(y)
    within_x = _sum_of_distances(x, x) / (n * (n - 1))
    within_y = _sum_of_distances(y, y) / (m * (m - 1))
    return 2 * _sum_of_distances(x, y) / (n * m) - within_x - within_y


def vendi(x: Float[Tensor, "n d"]) -> float:
    """The Vendi score exp(−Σ λᵢ log λᵢ), where nλᵢ are the eigenvalues of the matrix of cosines.

    Entry (i, j) of that matrix is the cosine of the angle between samples i and j. The score is the
    effective number of directions: 1 for equal samples and n for orthogonal ones.

    Raises:
        ValueError: a sample is zero, so that it has no direction.

    Reference: friedman2023vendi.
    """
    check_samples(x, x)
    norm = x.double().norm(dim=1, keepdim=True)
    if not (norm > 0).all():
        raise ValueError(f"{int((norm == 0).sum())} samples are zero and have no direction")
    unit = x / norm
    # both products have the same nonzero eigenvalues
    smaller = unit @ unit.T if len(x) <= x.shape[1] else unit.T @ unit
    eigenvalues = torch.linalg.eigvalsh(smaller / len(x)).clamp(min=0)
    return math.exp(-float(torch.special.xlogy(eigenvalues, eigenvalues).sum()))


def _sum_of_distances(x: Tensor, y: Tensor) -> float:
    """The sum of ‖xᵢ − yⱼ‖ over all pairs, with at most four million at a time."""
    rows = max(1, 4_000_000 // len(y))
    # with matrix products the distance of a sample to itself would not be exactly zero
    exact = "donot_use_mm_for_euclid_dist"
    parts = (torch.cdist(part, y, compute_mode=exact) for part in x.split(rows))
    return math.fsum(float(part.sum(dtype=torch.float64)) for part in parts)

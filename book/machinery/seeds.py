"""Generators whose numbers depend on a seed alone."""

import torch


def seeded(seed: int, k: int | None = None) -> torch.Generator:
    """The generator of a seed, or the k-th generator of a run that has this seed."""
    return torch.Generator().manual_seed(seed if k is None else 1_000_003 * seed + k)

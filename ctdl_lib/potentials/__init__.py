"""Potentials Φ(t, x) with their derivatives, for the slides on the value-function network.

Read `potential` first: it defines what every potential computes. `resnet` has the network of the
talk with its gradient and Laplacian in closed form, and `sweeps` the loops over its layers.
`composed` adds a known part or changes units, and `convex` has functions that are convex in x.
"""

from ..contracts import guard
from .composed import PinnedPotential, ScaledPotential
from .convex import ConvexPotential
from .potential import AutodiffPotential, Derivatives, Gradient, Potential
from .resnet import ResNetPotential

__all__ = [
    "AutodiffPotential",
    "ConvexPotential",
    "Derivatives",
    "Gradient",
    "PinnedPotential",
    "Potential",
    "ResNetPotential",
    "ScaledPotential",
]

guard(__name__)

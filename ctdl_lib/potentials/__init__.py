"""Potentials Φ(t, x) that know their derivatives: the slides on the value-function network.

Read `potential` first: it says what every potential can compute. `resnet` has the talk's network
with its gradient and trace in closed form, and `sweeps` the loops over its layers. `composed` adds
known parts and units, and `convex` has functions that are convex in x.
"""

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

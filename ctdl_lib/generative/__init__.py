"""Generative models: normalizing flows, OT-Flow, conditional transport and diffusion.

Read `flows` first: a `Flow` computes densities and samples from a velocity. `maps` has the methods
that all transport maps share, `scaling` the units of data, and `convex_maps` the gradients of
convex functions.
`optimal_transport` has the objectives of OT-Flow and mean-field games. `diffusion` has score-based
models.
"""

from ..contracts import guard
from .convex_maps import ConvexMap
from .diffusion import (
    Denoiser,
    ProbabilityFlow,
    Schedule,
    Score,
    denoising,
    perturb,
    reverse_sde,
    sample_sde,
)
from .flows import Flow, flow_matching
from .maps import Sample, TransportMap
from .optimal_transport import MeanFieldCost, MeanFieldGame, mean_field, ot_flow, transport
from .scaling import BoxScaling, Standardization

__all__ = [
    "BoxScaling",
    "ConvexMap",
    "Denoiser",
    "Flow",
    "MeanFieldCost",
    "MeanFieldGame",
    "ProbabilityFlow",
    "Sample",
    "Schedule",
    "Score",
    "Standardization",
    "TransportMap",
    "denoising",
    "flow_matching",
    "mean_field",
    "ot_flow",
    "perturb",
    "reverse_sde",
    "sample_sde",
    "transport",
]

guard(__name__)

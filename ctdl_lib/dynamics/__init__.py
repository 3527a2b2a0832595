"""Differential equations and their derivatives: the ground on which every chapter stands.

The talk's slides on ResNets, neural ODEs and normalizing flows all integrate ẋ = v(t, x). Read
`integration` first: `integrate` solves, and differentiates in three ways. `stepping` has the
Runge–Kutta steps, `adjoint` the equation −ṗ = ∇vᵀp, and `calculus` divergences and Taylor tests.
"""

from .calculus import Transformed, divergence, hutchinson, standard_normal_log_prob, taylor_errors
from .integration import IntegrationError, euler_maruyama, integrate
from .stepping import Statistics

__all__ = [
    "IntegrationError",
    "Statistics",
    "Transformed",
    "divergence",
    "euler_maruyama",
    "hutchinson",
    "integrate",
    "standard_normal_log_prob",
    "taylor_errors",
]

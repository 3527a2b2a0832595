"""Differential equations and their derivatives, which every chapter uses.

The slides on ResNets, neural ODEs and normalizing flows integrate ẋ = v(t, x). Read `integration`
first: `integrate` solves the equation and offers three ways to differentiate the solution.
`stepping` has the Runge–Kutta steps, `adjoint` the adjoint equation −ṗ = (∂v/∂x)ᵀp, `stochastic`
the method of Euler and Maruyama, and `calculus` divergences and Taylor tests. `inputs` checks what
these functions receive, and `deferral` lets a training step put off checks on a device.
"""

from ..contracts import guard
from .calculus import Transformed, divergence, hutchinson, standard_normal_log_prob, taylor_errors
from .inputs import IntegrationError
from .integration import integrate
from .stepping import Statistics
from .stochastic import euler_maruyama

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

guard(__name__)

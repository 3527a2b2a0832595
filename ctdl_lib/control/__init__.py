"""Optimal control with a learned value function, for the slides on HJB, PMP and neural SOC.

Read `problem` first: it defines a control problem, its Hamiltonian and the feedback of a potential.
`validation` checks a problem before any training. `rollouts` simulates a policy, and `objectives`
has the loss for Φ.
"""

from ..contracts import guard
from .objectives import objective
from .problem import ControlProblem, feedback, hamiltonian, hjb_residual
from .rollouts import CostError, rollout
from .validation import check

__all__ = [
    "ControlProblem",
    "CostError",
    "check",
    "feedback",
    "hamiltonian",
    "hjb_residual",
    "objective",
    "rollout",
]

guard(__name__)

"""Optimal control with a learned value function: the slides on HJB, PMP and neural SOC.

Read `problem` first: what a control problem is, its Hamiltonian, and the feedback of a potential.
`rollouts` follows a policy, `objectives` has the loss by which Φ is learned, and `environments`
offers any noise-free problem to reinforcement learning.
"""

from .objectives import objective
from .problem import ControlProblem, feedback, hamiltonian, hjb_residual
from .rollouts import CostError, rollout

__all__ = [
    "ControlProblem",
    "CostError",
    "feedback",
    "hamiltonian",
    "hjb_residual",
    "objective",
    "rollout",
]

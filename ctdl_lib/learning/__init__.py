"""Learning as optimal control: training loops, and Pontryagin's principle for networks.

Read `training` first: `train` yields one record a step, and the caller's loop does the rest.
`pontryagin` states the slide on the optimal control framework layer by layer and solves it by
successive approximations; `storage` keeps checkpoints.
"""

from .training import Step, TrainingError, cosine, minibatches, train

__all__ = ["Step", "TrainingError", "cosine", "minibatches", "train"]

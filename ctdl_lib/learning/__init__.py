"""Learning as optimal control: training loops, and Pontryagin's principle for networks.

Read `training` first: `train` is a generator that yields one record per step. `pontryagin` writes
the optimal control framework of the slides layer by layer and solves it by successive
approximations. `storage` saves and loads checkpoints.
"""

from .training import Step, TrainingError, cosine, minibatches, train

__all__ = ["Step", "TrainingError", "cosine", "minibatches", "train"]

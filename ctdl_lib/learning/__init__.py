"""Learning as optimal control: the training loop of every chapter.

Read `training` first: `train` is a generator that yields one record per step. `storage` saves and
loads its checkpoints. The chapter on training as optimal control writes out Pontryagin's principle.
"""

from ..contracts import guard
from .training import Step, TrainingError, autoclip, cosine, minibatches, train

__all__ = ["Step", "TrainingError", "autoclip", "cosine", "minibatches", "train"]

guard(__name__)

"""Networks for the slides on ResNets, stable architectures and neural ODEs.

Read `resnets` first: its class `ResNet` can have every layer of the slides, and `architectures`
lists these layers and their time-stepping schemes.
`mlps` and `operators` have the velocities, scores and encoders of the chapters on generative
models.
"""

from ..contracts import guard
from .embeddings import time_features
from .mlps import MLP, ConcatSquash, Encoder
from .operators import FNO, SpectralConv
from .resnets import Control, ResNet, tikhonov, time_smoothness

__all__ = [
    "FNO",
    "MLP",
    "ConcatSquash",
    "Control",
    "Encoder",
    "ResNet",
    "SpectralConv",
    "tikhonov",
    "time_features",
    "time_smoothness",
]

guard(__name__)

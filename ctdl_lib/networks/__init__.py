"""Networks as velocities: the slides on ResNets, stable architectures and neural ODEs.

Read `resnets` first: one class holds every layer of the slides, and `architectures` says which
layers and schemes there are. `neural_odes` takes adaptive steps; `invertible` bounds each layer;
`mlps`, `operators` and `unets` are the velocities and scores of the chapters on generation.
"""

from .architectures import antisymmetric_field
from .embeddings import time_features
from .invertible import Contraction, InvertibleResNet
from .mlps import MLP, ConcatSquash
from .neural_odes import NeuralODE
from .operators import FNO, SpectralConv
from .resnets import Control, ResNet, tikhonov, time_smoothness
from .unets import UNet

__all__ = [
    "FNO",
    "MLP",
    "ConcatSquash",
    "Contraction",
    "Control",
    "InvertibleResNet",
    "NeuralODE",
    "ResNet",
    "SpectralConv",
    "UNet",
    "antisymmetric_field",
    "tikhonov",
    "time_features",
    "time_smoothness",
]

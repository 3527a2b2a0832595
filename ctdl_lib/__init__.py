"""The library of the book *Differential Equations for Continuous-Time Deep Learning*."""

__version__ = "0.1.0"

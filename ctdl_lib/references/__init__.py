"""Solvers that only check: grids, finite differences, finite elements, Sinkhorn, transcription.

No algorithm of the talk needs them. They give the chapters and the tests a second answer. Import
from the modules: each brings its own heavy library (scikit-fem, CasADi) only when it is used.
"""

"""Reference solvers, with which the chapters and the tests check the algorithms of the talk.

The algorithms themselves do not use them. Import from the modules, because some of them load a
large library such as scikit-fem or CasADi: `grids`, `finite_differences`, `finite_elements`,
`advection`, `sinkhorn` and `transcription`.
"""

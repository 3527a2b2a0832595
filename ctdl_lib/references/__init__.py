"""Reference solvers, with which the chapters and the tests check the algorithms of the talk.

The algorithms themselves do not use them. `advection` and `finite_differences` solve equations on
`grids`, and `transcription` solves control problems with CasADi. Import from the modules, so that
CasADi is loaded only where it is needed.
"""

"""The experiments of the chapter on the Hamilton–Jacobi–Bellman equation and Pontryagin."""

"""The experiments of the chapter on diffusion in function space."""

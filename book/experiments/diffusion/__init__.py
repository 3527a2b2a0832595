"""The experiments of the chapter on score-based diffusion."""

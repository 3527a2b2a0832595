"""The experiments of the chapter on stable architectures."""

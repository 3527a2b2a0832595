"""The experiments of the chapter on the PDE perspective."""

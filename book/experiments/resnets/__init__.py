"""The experiments of the chapter on ResNets."""

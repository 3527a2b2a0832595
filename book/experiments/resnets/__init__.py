"""The experiments of the chapter on resnets."""

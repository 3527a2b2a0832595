"""The experiments of the chapter on optimal control."""

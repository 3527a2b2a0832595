"""The experiments of the chapter on pde control."""

"""Experiments of the chapter on OT-Flow: densities in the plane, steps and traces, images."""

"""Experiments of chapter 6, continuous normalizing flows."""

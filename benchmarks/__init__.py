"""Comparisons with other implementations: `make bench` prints ratios and asserts nothing."""

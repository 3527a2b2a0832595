"""Experiments of the chapters, as code that notebooks and tests call."""

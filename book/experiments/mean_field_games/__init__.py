"""The experiments of the chapter on mean-field games."""

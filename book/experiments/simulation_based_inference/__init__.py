"""The experiments of the chapter on simulation based inference."""

"""The experiments of the chapter on neural ODEs."""

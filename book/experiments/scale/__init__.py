"""The experiments of the chapter on what lies past one machine."""

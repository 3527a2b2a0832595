"""How the book keeps, judges, draws and executes what its chapters compute."""

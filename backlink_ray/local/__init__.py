"""Local modules: a group of units, its head and its loss."""

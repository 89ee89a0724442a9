"""Local modules: groups of units, each with a head and a loss."""

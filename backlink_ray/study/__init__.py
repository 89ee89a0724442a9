"""Studies: grids and searches, their runs, their records and their tracking."""

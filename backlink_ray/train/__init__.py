"""Training in one process."""

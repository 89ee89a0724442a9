"""Measured steps: speed, memory, correctness."""

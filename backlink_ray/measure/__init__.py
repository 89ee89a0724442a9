"""Measurements: memory, and when each stage does what."""

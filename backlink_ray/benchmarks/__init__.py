"""Measurements: steps, memory, data, pipelines, correctness."""

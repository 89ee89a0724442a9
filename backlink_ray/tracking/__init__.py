"""Tracking in MLflow, which may be down."""

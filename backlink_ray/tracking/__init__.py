"""MLflow, which may be down; knows nothing of studies."""

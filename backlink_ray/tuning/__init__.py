"""Studies: Ray Tune and Optuna."""

"""Rows as studies record them, for tests that read records."""

from collections.abc import Mapping, Sequence

from backlink_ray.paper.cells import find
from backlink_ray.paper.grid import Grid
from backlink_ray.paper.recipes import Budget, recipe, with_alpha
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row, Value, columns_of


def row_of(config: RunConfig, error: float, **more: Value) -> Row:
    """Return the row of a finished run whose best epoch was half a point better."""
    ended: Row = {"status": "FINISHED", "reason": "done", "test_error_pct": error, "best_test_error_pct": error - 0.5}
    return {**columns_of(config), "run_id": config.run_id, **ended, **more}


def runs_of(address: str, errors: Sequence[float], budget: Budget | None = None, alpha: float = 0.5) -> list[Row]:
    """Return full runs of a cell, seeds 0, 1, ..., with these test errors."""
    config = with_alpha(recipe(find(address), budget or Budget()), alpha)
    return [row_of(config.replace(seed=seed), error) for seed, error in enumerate(errors)]


def selection_of(address: str, errors: Mapping[float, float]) -> list[Row]:
    """Return the selection runs of a cell with these held-out errors by alpha; their test errors are in the opposite order."""
    cell = find(address)
    configs = Grid(cells=(cell,)).candidates(cell)
    return [row_of(configs[alpha], 99 - error, val_error_pct=error) for alpha, error in errors.items()]

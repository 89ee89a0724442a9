"""Plan: what a study runs, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backlink_ray.runs.config import RunConfig
from backlink_ray.tuning.space import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study runs.

    Attributes:
        base: every trial's configuration but for what it chooses.
        space: searched by Optuna; or
        cells: run one by one, each a choice (K, l, alpha, eta, or any field of RunConfig by its name).
        first: choices of a search to try before any suggestion.
        num_samples: trials of a search.
        metric: minimised, and what orders the table.
        objectives: metrics that a search minimises together instead, by NSGA-II; none: the metric alone.
        asha: stop trials of a search early that rank low.
        retry_failed: run the cells of a list again that have failed.
        tags: more tags of runs in MLflow, by run_id.
    """

    base: RunConfig
    space: Space | None = None
    cells: tuple[dict[str, Any], ...] = ()
    first: tuple[dict[str, Any], ...] = ()
    num_samples: int = 20
    metric: str = "val_error_pct"
    objectives: tuple[str, ...] = ()
    asha: bool = False
    retry_failed: bool = True
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return the number of trials."""
        return self.num_samples if self.space else len(self.cells)

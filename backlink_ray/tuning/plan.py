"""Plan: what a study runs, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backlink_ray.runs.config import RunConfig
from backlink_ray.tuning.space import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study runs: a list of runs, or a search of a space.

    Attributes:
        base: what a search varies; of a list, what stands for its runs in titles and tells two studies apart.
        runs: the list.
        space: searched by Optuna, where there is no list.
        first: runs of a search that come before any suggestion.
        num_samples: trials of a search.
        metric: minimised, and what orders the table.
        objectives: metrics that a search minimises together instead, by NSGA-II; none: the metric alone.
        asha: stop trials of a search early that rank low.
        retry_failed: run what has failed in a list again.
        tags: more tags of runs in MLflow, by run_id.
    """

    base: RunConfig
    runs: tuple[RunConfig, ...] = ()
    space: Space | None = None
    first: tuple[RunConfig, ...] = ()
    num_samples: int = 20
    metric: str = "val_error_pct"
    objectives: tuple[str, ...] = ()
    asha: bool = False
    retry_failed: bool = True
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return the number of trials."""
        return self.num_samples if self.space else len(self.runs)

    @property
    def examples(self) -> tuple[RunConfig, ...]:
        """Return the runs of a list; of a search what comes first, and one run at each K."""
        ks = self.space.num_modules if self.space else ()
        at_each_k = (self.base.replace(num_modules=k, propagation_length=1) for k in ks)
        return (*self.runs, *self.first, *at_each_k)

    def run_of(self, choice: Mapping[str, Any]) -> RunConfig:
        """Return the run of a trial, which a list names by its run_id and a search by the fields that it chose."""
        if "run_id" in choice:
            return next(run for run in self.runs if run.run_id == choice["run_id"])
        return self.base.replace(**choice)

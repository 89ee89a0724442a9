"""Plan: what a study runs, as plain data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backlink_ray.nets.names import unit_count
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row
from backlink_ray.tuning.space import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study runs: a list of runs, or a search of a space.

    Attributes:
        base: varied by a search; for a list, stands for its runs in titles. It distinguishes one study from another.
        runs: the list of runs.
        space: searched by Optuna if there is no list.
        first: runs of a search before its first suggestion.
        num_samples: trials of a search.
        metric: minimised; the table is sorted by it.
        num_units: of the network of a search's base; 0: a built-in network's.
        objectives: metrics that a search minimises together; if empty, it minimises the metric alone.
        asha: whether a search stops trials early that rank low.
        retry_failed: whether failed runs of a list run again.
        tags: additional tags of runs in MLflow, by run_id.
    """

    base: RunConfig
    runs: tuple[RunConfig, ...] = ()
    space: Space | None = None
    first: tuple[RunConfig, ...] = ()
    num_samples: int = 20
    num_units: int = 0
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
        """Return the runs of a list, or the first runs of a search and one run for each K."""
        return (*self.runs, *self.first, *(self.space.at_each_k(self.base) if self.space else ()))

    @property
    def largest(self) -> tuple[RunConfig, ...]:
        """Return runs of a search, among them the one that needs the most memory, unless an option of its own decides that."""
        return (*self.first, *(self.space.largest_at_each_k(self.base, self._units) if self.space else ()))

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Choose a trial of a search, see `Space.suggest`."""
        assert self.space is not None
        return self.space.suggest(self.base, self._units, trial)

    def check(self) -> None:
        """Raise ConfigError if the space of a search does not fit its base."""
        if self.space:
            self.space.check(self.base, self._units)

    @property
    def _units(self) -> int:
        return self.num_units or unit_count(self.base.network)

    def runs_left(self, rows: Iterable[Row]) -> list[RunConfig]:
        """Return the runs of a list that have no row in the results, or a failed one if failed runs are retried."""
        ended = {row["run_id"] for row in rows if row["status"] == "FINISHED" or not self.retry_failed}
        by_id = {run.run_id: run for run in self.runs}  # two cells can be the same run: BP is, at any K
        return [run for run_id, run in by_id.items() if run_id not in ended]

    def run_of(self, choice: Mapping[str, Any]) -> RunConfig:
        """Return the run of a trial: by its run_id in a list, from the chosen fields in a search."""
        if "run_id" in choice:
            return next(run for run in self.runs if run.run_id == choice["run_id"])
        return self.base.replace(**choice)

"""Data of a figure: the rows it is drawn from, and the plan they belong to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import config_of
from backlink_ray.tuning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """What a picture is drawn from: finished `rows` of the runs of `plan`, recorded in `folder`, where its files go."""

    plan: Plan
    rows: list[dict[str, Any]]
    folder: Path

    @property
    def missing(self) -> list[RunConfig]:
        """Return the runs of a list that have no result."""
        there = {config_of(row).run_id for row in self.rows}
        wanted = {run.run_id: run for run in self.plan.runs}
        return [run for run_id, run in wanted.items() if run_id not in there]

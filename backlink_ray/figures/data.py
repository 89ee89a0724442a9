"""Data of a figure: recorded rows and the plan that they belong to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import config_of
from backlink_ray.tuning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """The data of a figure: finished `rows` of the runs of `plan`, and `folder`, their study's, which gets the files."""

    plan: Plan
    rows: list[dict[str, Any]]
    folder: Path

    @property
    def missing(self) -> list[RunConfig]:
        """Return the plan's runs that have no row."""
        there = {config_of(row).run_id for row in self.rows}
        wanted = {run.run_id: run for run in self.plan.runs}
        return [run for run_id, run in wanted.items() if run_id not in there]

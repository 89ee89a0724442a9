"""Data of a figure: the rows it is drawn from, and the plan they belong to."""

from dataclasses import dataclass
from pathlib import Path

from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Value, config_of
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.space import base_with


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """A study's record as its picture is drawn from: `rows` of the runs of `plan`, in `folder`."""

    name: str
    preset: str
    plan: Plan
    rows: list[dict[str, Value]]
    folder: Path
    tracker: NoTracker

    @property
    def missing(self) -> list[RunConfig]:
        """Return the runs of a list that have no result."""
        there = {config_of(row).run_id for row in self.rows}
        wanted = {c.run_id: c for c in (base_with(self.plan.base, cell) for cell in self.plan.cells)}
        return [config for run_id, config in wanted.items() if run_id not in there]

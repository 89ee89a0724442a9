"""Study: a plan, the folder it is carried out in, and what of it has an outcome."""

from pathlib import Path

from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Results
from backlink_ray.runs.tracked import track_all
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.stopping import StopFile


class Study:
    """A study's folder, opened by this process, and its results; ready to run what is left of a plan."""

    def __init__(self, name: str, plan: Plan, folder: Path, tracker: NoTracker) -> None:
        self.name, self.plan, self.folder, self.tracker = name, plan, folder, tracker
        self.results, self.stop_file = Results(folder), StopFile(folder)
        track_all(tracker, folder)  # an earlier driver may have ended before MLflow was up to date

    def left(self) -> int:
        """Return how many trials of the plan are left: failed ones are done in a search, and may run again in a list."""
        if self.plan.space:
            return max(0, self.plan.num_samples - self.results.ended())
        return len(self.runs_left())

    def missing(self) -> int:
        """Return how many trials of the plan have no outcome, not even a failure: those that an interruption left."""
        if self.plan.space:
            return self.left()
        ended = {row["run_id"] for row in self.results.rows()}
        return len({run.run_id for run in self.plan.runs} - ended)

    def runs_left(self) -> list[RunConfig]:
        """Return the runs of a list that are left, see `Plan.runs_left`."""
        return self.plan.runs_left(self.results.rows())

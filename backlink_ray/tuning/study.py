"""Tuning: one study carried out by Ray Tune, one trial a run, its stages in the trial's own placement group."""

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from backlink_ray.data.images import Dataset
from backlink_ray.runs.results import Results
from backlink_ray.runs.tracked import end_open_runs, track_all
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.callback import Ledger, Reporter
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.resources import ClusterResources
from backlink_ray.tuning.space import base_with, open_search
from backlink_ray.tuning.trial import trial, trial_resources

# A failed trial is told by the Reporter in one line; Tune would add two tracebacks.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
# Tune's own table shows none of our columns and repaints itself; the Reporter prints a line an epoch instead.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


class Study:
    """A claimed study folder with its results, ready to run what is left of a plan."""

    def __init__(self, name: str, plan: Plan, folder: Path, tracker: NoTracker) -> None:
        self.name, self.plan, self.folder, self.tracker = name, plan, folder, tracker
        self.results = Results(folder)
        track_all(tracker, folder)  # what an earlier driver could not bring to MLflow

    def left(self) -> int:
        """Return how many trials of the plan are to be run: a search's failed ones stay failed, a list's may run again."""
        if self.plan.space:
            return max(0, self.plan.num_samples - len(self.results.rows()))
        return len(self.cells_left())

    def missing(self) -> int:
        """Return how many trials of the plan have not ended in any way: those an interruption left."""
        if self.plan.space:
            return self.left()
        ended = {row["run_id"] for row in self.results.rows()}
        return len({self._run_id(cell) for cell in self.plan.cells} - ended)

    def _run_id(self, cell: dict[str, Any]) -> str:
        return base_with(self.plan.base, cell).run_id

    def cells_left(self) -> list[dict[str, Any]]:
        """Return the cells that are not done; failed ones are among them where the plan says so."""
        done = self.results.done() if self.plan.retry_failed else {row["run_id"] for row in self.results.rows()}
        by_run = {self._run_id(cell): cell for cell in self.plan.cells}  # two cells may be one run, as BP at any K
        return [cell for run_id, cell in by_run.items() if run_id not in done]

    def run(self, datasets: Mapping[str, Dataset], places: ClusterResources) -> None:
        """Run what is left, at least one trial; `datasets` has theirs by `data_key`."""
        end_open_runs(self.folder / "runs", "the process that ran the study died")
        count = self.left()
        trainable = tune.with_parameters(
            trial,
            base=self.plan.base,
            places=places,
            datasets={key: ray.put(dataset) for key, dataset in datasets.items()},
            runs=self.folder / "runs",
        )
        sized = tune.with_resources(trainable, partial(trial_resources, base=self.plan.base, places=places))
        tuner = tune.Tuner(
            sized,
            param_space=self._param_space(),
            tune_config=self._tune_config(count, places),
            run_config=self._run_config(datasets, places),
        )
        try:
            tuner.fit()
        finally:
            end_open_runs(self.folder / "runs", "the study was ended before the run")
            track_all(self.tracker, self.folder)

    def _param_space(self) -> dict[str, Any]:
        return {} if self.plan.space else {"cell": tune.grid_search(self.cells_left())}

    def _tune_config(self, count: int, places: ClusterResources) -> tune.TuneConfig:
        limit = places.max_concurrent or (0 if places.num_gpus else 1)
        if not self.plan.space:
            return tune.TuneConfig(num_samples=1, max_concurrent_trials=limit or None)
        recorded = {str(row["run_id"]) for row in self.results.rows()}
        found = open_search(
            self.plan.space, self.plan.base, self.plan.metric, self.folder, self.name, first=self.plan.first,
            objectives=self.plan.objectives, has_result=lambda choice: self._run_id(choice) in recorded,
        )  # fmt: skip
        return tune.TuneConfig(
            num_samples=count,
            search_alg=found,
            scheduler=_asha(self.plan.base.epochs) if self.plan.asha else None,
            max_concurrent_trials=limit or None,
            metric=None if self.plan.objectives else self.plan.metric,  # the searcher has its own
            mode=None if self.plan.objectives else "min",
        )

    def _run_config(self, datasets: Mapping[str, Dataset], places: ClusterResources) -> tune.RunConfig:
        # Tune's own folder is new at every start and never restored: it holds pickles. What we resume from is ours.
        attempt = f"attempt-{len(list((self.folder / 'tune').glob('attempt-*'))):03d}"
        ledger = Ledger(
            name=self.name,
            base=self.plan.base,
            folder=self.folder,
            results=self.results,
            tracker=self.tracker,
            places=places,
            tags=self.plan.tags,
        )
        callback = Reporter(ledger, datasets, self.plan.size, self.plan.size - self.left())
        return tune.RunConfig(name=attempt, storage_path=str(self.folder / "tune"), callbacks=[callback], verbose=0)


def _asha(epochs: int) -> ASHAScheduler:
    return ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=max(1, epochs // 20), reduction_factor=3)

"""Study: a plan carried out by Ray Tune, one trial a run, its stages in the trial's own placement group."""

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
from backlink_ray.errors import StudyError
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Results
from backlink_ray.runs.tracked import end_open_runs, track_all
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.callback import StudyCallback
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.resources import ClusterResources
from backlink_ray.tuning.searcher import open_searcher
from backlink_ray.tuning.trial import trial, trial_resources

# A failed trial is told by our callback in one line; Tune would add two tracebacks.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
# Tune's own table shows none of our columns and repaints itself; our callback prints a line an epoch instead.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


class Study:
    """A study's folder with its results, ready to run what is left of a plan; the folder is open for this process."""

    def __init__(self, name: str, plan: Plan, folder: Path, tracker: NoTracker) -> None:
        self.name, self.plan, self.folder, self.tracker = name, plan, folder, tracker
        self.results = Results(folder)
        track_all(tracker, folder)  # what an earlier driver could not bring to MLflow

    def left(self) -> int:
        """Return how many trials of the plan are to be run: a search's failed ones stay failed, a list's may run again."""
        if self.plan.space:
            return max(0, self.plan.num_samples - len(self.results.rows()))
        return len(self.runs_left())

    def missing(self) -> int:
        """Return how many trials of the plan have not ended in any way: those an interruption left."""
        if self.plan.space:
            return self.left()
        ended = {row["run_id"] for row in self.results.rows()}
        return len({run.run_id for run in self.plan.runs} - ended)

    def runs_left(self) -> list[RunConfig]:
        """Return the runs of a list that are not done; failed ones are among them where the plan says so."""
        done = self.results.done() if self.plan.retry_failed else {row["run_id"] for row in self.results.rows()}
        by_id = {run.run_id: run for run in self.plan.runs}  # two cells may be one run, as BP at any K
        return [run for run_id, run in by_id.items() if run_id not in done]

    def run(self, datasets: Mapping[str, Dataset], cluster: ClusterResources) -> None:
        """Run what is left, at least one trial; `datasets` has theirs by `data_key`."""
        end_open_runs(self.folder / "runs", "the process that ran the study died")
        references = {key: ray.put(dataset) for key, dataset in datasets.items()}
        trainable = tune.with_parameters(
            trial, plan=self.plan, cluster=cluster, datasets=references, runs=self.folder / "runs"
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, partial(trial_resources, plan=self.plan, cluster=cluster)),
            param_space=self._param_space(),
            tune_config=self._tune_config(cluster),
            run_config=self._run_config(datasets, cluster),
        )
        try:
            tuner.fit()
        except tune.TuneError as error:
            raise StudyError(str(error).strip().splitlines()[-1]) from error
        finally:
            end_open_runs(self.folder / "runs", "the study was ended before the run")
            track_all(self.tracker, self.folder)

    def _param_space(self) -> dict[str, Any]:
        return {} if self.plan.space else {"run_id": tune.grid_search([run.run_id for run in self.runs_left()])}

    def _tune_config(self, cluster: ClusterResources) -> tune.TuneConfig:
        limit = (cluster.max_concurrent or (0 if cluster.num_gpus else 1)) or None
        if not self.plan.space:
            return tune.TuneConfig(num_samples=1, max_concurrent_trials=limit)
        recorded = {row["run_id"] for row in self.results.rows()}
        searcher = open_searcher(self.plan, self.folder, self.name, lambda run: run.run_id in recorded)
        alone = not self.plan.objectives  # of several metrics only the searcher knows
        return tune.TuneConfig(
            num_samples=self.left(),
            search_alg=searcher,
            scheduler=_asha(self.plan.base.epochs) if self.plan.asha else None,
            max_concurrent_trials=limit,
            metric=self.plan.metric if alone else None,
            mode="min" if alone else None,
        )

    def _run_config(self, datasets: Mapping[str, Dataset], cluster: ClusterResources) -> tune.RunConfig:
        # Tune's own folder is new at every start and never restored: it holds pickles. What we resume from is ours.
        attempt = f"attempt-{len(list((self.folder / 'tune').glob('attempt-*'))):03d}"
        callback = StudyCallback(self, cluster, datasets)
        return tune.RunConfig(name=attempt, storage_path=str(self.folder / "tune"), callbacks=[callback], verbose=0)


def _asha(epochs: int) -> ASHAScheduler:
    return ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=max(1, epochs // 20), reduction_factor=3)

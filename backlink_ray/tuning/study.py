"""Study: a plan run by Ray Tune, one trial per run, with its stages in the trial's own placement group."""

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

# Our callback reports a failed trial in one line; Tune would add two tracebacks.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
# Tune's own table has none of our columns and redraws itself; our callback prints one line per epoch instead.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


class Study:
    """A study's folder, opened by this process, and its results; ready to run what is left of a plan."""

    def __init__(self, name: str, plan: Plan, folder: Path, tracker: NoTracker) -> None:
        self.name, self.plan, self.folder, self.tracker = name, plan, folder, tracker
        self.results = Results(folder)
        track_all(tracker, folder)  # an earlier driver may have ended before MLflow was up to date

    def left(self) -> int:
        """Return how many trials of the plan are left: failed ones are done in a search, and may run again in a list."""
        if self.plan.space:
            return max(0, self.plan.num_samples - len(self.results.rows()))
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

    def run(self, datasets: Mapping[str, Dataset], cluster: ClusterResources) -> None:
        """Run the trials that are left, at least one; `datasets` holds their data by `data_key`."""
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
            end_open_runs(self.folder / "runs", "the study ended before the run did")
            track_all(self.tracker, self.folder)

    def _param_space(self) -> dict[str, Any]:
        return {} if self.plan.space else {"run_id": tune.grid_search([run.run_id for run in self.runs_left()])}

    def _tune_config(self, cluster: ClusterResources) -> tune.TuneConfig:
        limit = (cluster.max_concurrent or (0 if cluster.num_gpus else 1)) or None
        if not self.plan.space:
            return tune.TuneConfig(num_samples=1, max_concurrent_trials=limit)
        recorded = {row["run_id"] for row in self.results.rows()}
        searcher = open_searcher(self.plan, self.folder, self.name, lambda run: run.run_id in recorded)
        has_one_metric = not self.plan.objectives  # several are known to the searcher alone
        return tune.TuneConfig(
            num_samples=self.left(),
            search_alg=searcher,
            scheduler=_asha(self.plan.base.epochs) if self.plan.asha else None,
            max_concurrent_trials=limit,
            metric=self.plan.metric if has_one_metric else None,
            mode="min" if has_one_metric else None,
        )

    def _run_config(self, datasets: Mapping[str, Dataset], cluster: ClusterResources) -> tune.RunConfig:
        # Tune's folder is new at every start and never restored, since it holds pickles; we resume from our own files.
        attempt = f"attempt-{len(list((self.folder / 'tune').glob('attempt-*'))):03d}"
        callback = StudyCallback(self, cluster, datasets)
        return tune.RunConfig(name=attempt, storage_path=str(self.folder / "tune"), callbacks=[callback], verbose=0)


def _asha(epochs: int) -> ASHAScheduler:
    return ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=max(1, epochs // 20), reduction_factor=3)

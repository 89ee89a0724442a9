"""Callback: what the study's driver does when a trial starts, reports and ends."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from backlink_ray import provenance
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import StorageError
from backlink_ray.output import say
from backlink_ray.paper.cells import published_error_pct
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import data_key
from backlink_ray.runs.job import engine_of
from backlink_ray.runs.outcome import Outcome, outcome_of
from backlink_ray.runs.results import Value, columns_of, epoch_line, numbers
from backlink_ray.runs.tracked import end_tracking, start_tracking, track
from backlink_ray.signals import stopping
from backlink_ray.tuning.resources import ClusterResources
from backlink_ray.tuning.study import Study
from backlink_ray.tuning.trial import FAILURE, IS_FULL


class StudyCallback(tune.Callback):
    """Records how trials end, has MLflow brought up to date, and prints one line per epoch."""

    def __init__(self, study: Study, cluster: ClusterResources, datasets: Mapping[str, Dataset]) -> None:
        self._study, self._cluster = study, cluster
        self._datasets = {key: about(dataset) for key, dataset in datasets.items()}
        self._size, self._num_done = study.plan.size, study.plan.size - study.left()
        version = provenance.describe()["backlink_ray"]
        self._tags = {"study": study.name, "version": version, "commit": provenance.commit()}
        self._started: set[str] = set()
        self._fatal: StorageError | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks for Tuner.restore, which is not used here."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Start tracking the run."""
        config = self._config(trial)
        print(f"{self._label(config)} starts", flush=True)
        published = published_error_pct(config)
        tags = {
            **self._tags, "method": config.label, "executor": self._cluster.resolve(config).executor,
            **self._study.plan.tags.get(config.run_id, {}),
            **({"paper.error_pct": str(published)} if published is not None else {}),
        }  # fmt: skip
        folder, experiment = self._folder(trial), self._study.tracker.experiment
        params, dataset = self._searched(config) | run_params(config), self._datasets[data_key(config)]
        start_tracking(folder, experiment, config.run_name, params=params, tags=tags, dataset=dataset)
        track(self._study.tracker, folder)
        self._started.add(config.run_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Print one epoch and have it tracked; its metrics are already on disk."""
        if FAILURE in result:
            return
        config = self._config(trial)
        track(self._study.tracker, self._folder(trial))
        left_s = (config.epochs - int(result["epoch"])) * result["epoch_s"]
        print(
            f"{self._label(config)} {result['executor']}  {epoch_line(result, config.epochs)}  {left_s / 60:.1f} min left",
            flush=True,
        )

    def _label(self, config: RunConfig) -> str:
        tags = self._study.plan.tags.get(config.run_id, {})
        name = f"{tags['cell'].split()[0]} {tags['kind']} s{config.seed}" if tags else config.label
        texts = {n: f"{v:.3g}" if isinstance(v, float) else str(v) for n, v in self._searched(config).items()}
        searched = "".join(f" {name}={text}" for name, text in texts.items())
        return (
            f"[{self._num_done}/{self._size} done] {name} K={config.num_modules} l={config.propagation_length} "
            f"alpha={config.alpha:g} eta={config.lr:.3g}{searched}"
        )

    def _searched(self, config: RunConfig) -> dict[str, Value]:
        """Return the values of the user's own parameters of a search."""
        space = self._study.plan.space
        return {name: config.values[name] for name in space.parameters if name not in ("alpha", "lr")} if space else {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the result, the last metrics if the trial was stopped early, or why it failed."""
        last = trial.last_result or {}
        if last.get(IS_FULL):
            self._fatal = StorageError(last[FAILURE])
        self._end(trial, last.get(FAILURE))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial is started again: on the screen only, since for Optuna and MLflow it goes on."""
        outcome, count = self._outcome(trial, _error_of(trial)), f"{trial.num_failures} of {trial.max_failures}"
        name = self._config(trial).run_name
        say(f"trial {name} was lost: {outcome.reason}; it is started again ({count})")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a trial was lost more often than it is started again."""
        self._end(trial, _error_of(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Leave Tune's loop if nothing can be written any more, or if a signal has come, once the trials have saved.

        Raised where a trial ends, Tune would take an error for the trial's.
        """
        if self._fatal:
            raise self._fatal
        if stopping():
            self._study.stop_file.stop(self._folder(trial) for trial in trials if trial.status == trial.RUNNING)
            raise KeyboardInterrupt

    def _end(self, trial: Any, error: str | None) -> None:
        try:
            self._record(trial, error)
        except StorageError as fatal:
            self._fatal = self._fatal or fatal

    def _record(self, trial: Any, error: str | None) -> None:
        config = self._config(trial)
        if config.run_id not in self._started:  # its process never started, so Tune did not call on_trial_start
            self.on_trial_start(0, [], trial)
        outcome = self._outcome(trial, error)
        end_tracking(self._folder(trial), outcome)
        track(self._study.tracker, self._folder(trial))
        if outcome.status == "LOST":
            say(f"trial {config.run_name} was lost: {outcome.reason}")
            return  # without a result it runs again when the study is resumed
        self._num_done += 1
        shared = self._cluster.runs_per_gpu if self._cluster.shares_gpu(config) else 1
        self._study.results.append(_row(config, outcome) | ({"runs_per_gpu": shared} if shared > 1 else {}))
        if outcome.status == "FAILED":
            say(f"trial {config.run_name} failed: {outcome.reason}")

    def _outcome(self, trial: Any, error: str | None) -> Outcome:
        return outcome_of(self._folder(trial), self._config(trial).epochs, trial.last_result or {}, error)

    def _folder(self, trial: Any) -> Path:
        return self._study.folder / "runs" / self._config(trial).run_id

    def _config(self, trial: Any) -> RunConfig:
        return self._study.plan.run_of(trial.config)


def _error_of(trial: Any) -> str:
    file = Path(trial.error_file or "-")  # Tune copies it to its storage later, where trial.get_error() looks
    return file.read_text("utf-8", "replace") if file.exists() else ""


def _row(config: RunConfig, outcome: Outcome) -> dict[str, Value]:
    texts: dict[str, Value] = {
        name: str(outcome.result[name])
        for name in ("executor", "memory_source", "dataset_digest")
        if name in outcome.result
    }
    known: dict[str, Value] = {"run_id": config.run_id, "status": outcome.status, "reason": outcome.reason}
    return {**columns_of(config), **known, **texts, **numbers(outcome.result)}


def run_params(config: RunConfig) -> dict[str, str | int | float]:
    """Return the parameters for MLflow's table; config.yaml has all of them."""
    known: dict[str, str | int | float] = {
        "K": config.num_modules, "l": config.propagation_length, "alpha": config.alpha, "eta": round(config.lr, 6),
        "seed": config.seed, "dataset": config.dataset, "network": config.network, "head": config.head,
        "method": config.label, "batch_size": config.batch_size, "epochs": config.epochs,
        "replicas": config.replicas, "batch_norm": config.batch_norm, **vars(engine_of(config)),
    }  # fmt: skip
    return known | {f"options.{name}" if name in known else name: value for name, value in config.options.items()}


def about(dataset: Dataset) -> dict[str, str]:
    """Return what MLflow shows of a data set: its name, the digest of the images in use, and its sizes."""
    sizes = {"train_images": len(dataset.train), "test_images": len(dataset.test)}
    return {"name": dataset.name, "md5": dataset.digest, "source": json.dumps(sizes)}

"""Tuning: one study carried out by Ray Tune, one trial a run, its stages in the trial's own placement group."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.util.placement_group import get_current_placement_group

from backlink_ray import environment
from backlink_ray.config import ConfigError, RunConfig
from backlink_ray.data.datasets import Dataset
from backlink_ray.pipeline.actors import Resources
from backlink_ray.study.paper import published_error_pct
from backlink_ray.study.record import Record
from backlink_ray.study.runner import RunOptions, choose_executor, run, write_whole
from backlink_ray.study.search import Space, base_with, open_search
from backlink_ray.study.tracking import Tracker

MANIFEST = "study.json"

# Tune's own table shows none of our columns and repaints itself; the Reporter prints a line an epoch instead.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study runs.

    Attributes:
        base: every trial's configuration but for what it chooses.
        space: searched by Optuna; or
        cells: run one by one, each a choice (K, l, alpha, eta, or any field of RunConfig by its name).
        first: choices of a search to try before any suggestion.
        num_samples: trials of a search.
        metric: minimised, and what orders the table.
    """

    base: RunConfig
    space: Space | None = None
    cells: tuple[dict[str, Any], ...] = ()
    first: tuple[dict[str, Any], ...] = ()
    num_samples: int = 20
    metric: str = "val_error_pct"

    @property
    def size(self) -> int:
        """Return the number of trials."""
        return self.num_samples if self.space else len(self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The cluster as trials see it, and how many run at once (0: as many as fit)."""

    num_gpus: float
    num_cpus: float
    max_concurrent: int = 0
    cpus_per_stage: float = 0.2
    gpus_per_stage: float = 1.0

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return the configuration with its executor decided."""
        name, _ = choose_executor(config, self.num_gpus, self.num_cpus, self.gpus_per_stage)
        return config.replace(executor=name)

    def resources(self) -> Resources:
        """Return what one stage reserves."""
        return Resources(cpus=self.cpus_per_stage, gpus=self.gpus_per_stage if self.num_gpus else 0.0)

    def bundles(self, config: RunConfig) -> list[dict[str, float]]:
        """Return a trial's bundles: its own, and one for each stage where the stages are actors."""
        resolved = self.resolve(config)
        if resolved.executor == "ray":
            return self.resources().bundles(config.num_modules)
        return [{"CPU": 1.0} | ({"GPU": 1.0} if self.num_gpus else {})]

    def check(self, config: RunConfig) -> None:
        """Refuse a trial that can never be placed."""
        if self.resolve(config).executor == "ray":
            self.resources().check(config.num_modules, {"CPU": self.num_cpus, "GPU": self.num_gpus})


def claim(folder: Path, name: str, plan: Plan, resume: str) -> None:
    """Make a study folder this study's own, or find that it is; ConfigError where it is somebody else's.

    Args:
        folder: of the study.
        name: of the study.
        plan: recorded, so that a folder never mixes two.
        resume: auto (go on if there is something), never (there must be nothing), must (there must be something).
    """
    file = folder / MANIFEST
    mine = {"study": name, "base": dataclasses.asdict(plan.base.replace(executor="auto")), "metric": plan.metric}
    if folder.exists() and any(folder.iterdir()):
        _check_owner(folder)
        if resume == "never":
            raise ConfigError(f"storage folder {str(folder)!r} already holds a study and --resume is never; give another --storage-path")
        found = json.loads(file.read_text()) if file.exists() else {}
        if found != mine:
            raise ConfigError(
                f"storage folder {str(folder)!r} holds {'another study' if found else 'no manifest of ours'}; "
                "give another --storage-path, or the flags it was started with"
            )
    elif resume == "must":
        raise ConfigError(f"storage folder {str(folder)!r} holds no study to resume; check --storage-path, or use --resume auto")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(mine, indent=2))
    except OSError as error:
        raise ConfigError(f"storage folder {str(folder)!r} cannot be written ({error.strerror}); give another --storage-path") from error


def _check_owner(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o002:
        raise ConfigError(f"storage folder {str(folder)!r} belongs to another user or anybody may write to it; give another --storage-path")


class Study:
    """A claimed study folder with its record, ready to run what is left of a plan."""

    def __init__(self, name: str, plan: Plan, folder: Path, tracker: Tracker) -> None:
        self.name, self.plan, self.folder, self.tracker = name, plan, folder, tracker
        self.record = Record(folder / "results")

    def left(self) -> int:
        """Return how many trials of the plan have no result yet (failed ones count as results)."""
        if self.plan.space:
            return max(0, self.plan.num_samples - len(self.record.rows()))
        return len(self.cells_left())

    def cells_left(self) -> list[dict[str, Any]]:
        """Return the cells that are not done; failed ones run again."""
        done = self.record.done()
        return [cell for cell in self.plan.cells if base_with(self.plan.base, cell).run_id not in done]

    def run(self, dataset: Dataset, places: Places) -> None:
        """Run what is left."""
        for run_id in self.tracker.open_runs():
            self.tracker.end_run(run_id, "KILLED", "the driver ended before the run did")
        count = self.left()
        if not count:
            print("nothing left to run: every trial has its result", file=sys.stderr, flush=True)
            return
        trainable = tune.with_parameters(
            _trial, base=self.plan.base, places=places, dataset=dataset, runs=self.folder / "runs", metric=self.plan.metric
        )
        sized = tune.with_resources(trainable, partial(_request, base=self.plan.base, places=places))
        tuner = tune.Tuner(
            sized, param_space=self._param_space(), tune_config=self._tune_config(count, places), run_config=self._run_config(dataset)
        )
        tuner.fit()

    def _param_space(self) -> dict[str, Any]:
        return {} if self.plan.space else {"cell": tune.grid_search(self.cells_left())}

    def _tune_config(self, count: int, places: Places) -> tune.TuneConfig:
        limit = places.max_concurrent or (0 if places.num_gpus else 1)
        if not self.plan.space:
            return tune.TuneConfig(num_samples=1, max_concurrent_trials=limit or None)
        found = open_search(self.plan.space, self.plan.base, self.plan.metric, self.folder, self.name, self.plan.first)
        return tune.TuneConfig(num_samples=count, search_alg=found, max_concurrent_trials=limit or None, metric=self.plan.metric, mode="min")

    def _run_config(self, dataset: Dataset) -> tune.RunConfig:
        # Tune's own folder is new at every start and never restored: it holds pickles. What we resume from is ours.
        attempt = f"attempt-{len(list((self.folder / 'tune').glob('attempt-*'))):03d}"
        callback = Reporter(self, dataset)
        return tune.RunConfig(name=attempt, storage_path=str(self.folder / "tune"), callbacks=[callback], verbose=0)


def _flat(choice: dict[str, Any]) -> dict[str, Any]:
    """A grid's trial has its choice under "cell", a search's has it directly."""
    return dict(choice.get("cell", choice))


def _request(choice: dict[str, Any], base: RunConfig, places: Places) -> PlacementGroupFactory:
    """Return a trial's placement group, whose size depends on K."""
    return PlacementGroupFactory(places.bundles(base_with(base, _flat(choice))))


def _trial(
    choice: dict[str, Any], base: RunConfig, places: Places, dataset: Dataset, runs: Path, metric: str
) -> None:
    """One trial, in a process of its own: bundle 0 of its placement group; stage k lives in bundle 1 + k."""
    config = places.resolve(base_with(base, _flat(choice)))
    report: Callable[[dict[str, Any]], None] = lambda m: tune.report({**m, "run_id": config.run_id, "executor": config.executor})  # noqa: E731
    reported: list[dict[str, Any]] = []

    def on_epoch(metrics: dict[str, Any]) -> None:
        reported.append(metrics)
        report(metrics)

    group = get_current_placement_group() if config.executor == "ray" else None
    result = run(config, dataset, RunOptions(
        output_dir=runs / config.run_id, placement_group=group, on_epoch=on_epoch,
        cpus_per_stage=places.cpus_per_stage, gpus_per_stage=places.gpus_per_stage,
    ))  # fmt: skip
    if not reported:  # the run had ended before its driver heard of it
        report(result["curve"][-1])


class Reporter(tune.Callback):  # type: ignore[misc]  # ray is untyped
    """Writes what trials report to the record and the tracker, in the driver, and a line an epoch to the terminal."""

    def __init__(self, study: Study, dataset: Dataset) -> None:
        self._study, self._dataset = study, dataset
        self._ended = study.plan.size - study.left()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks into a file for Tuner.restore, which is never used here."""
        return {}

    def setup(self, stop: Any = None, num_samples: int | None = None, total_num_samples: int | None = None, **info: Any) -> None:
        """Ray asks for it; nothing to prepare."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the run."""
        config = self._config(trial)
        published = published_error_pct(config)
        tags = {
            "study": self._study.name, "method": config.method, "version": environment.describe()["backlink_ray"],
            "commit": environment.commit(), **({"paper.error_pct": str(published)} if published is not None else {}),
        }  # fmt: skip
        known = {"name": self._dataset.name, "digest": self._dataset.digest, "source": json.dumps(_sizes(self._dataset))}
        self._study.tracker.start_run(config.run_id, config.run_name, run_params(config), tags, known)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Log one epoch."""
        config = self._config(trial)
        self._study.tracker.log_metrics(config.run_id, curve_points(result), int(result["epoch"]))
        losses = " ".join(f"{loss:.3f}" for loss in result["local_loss"])
        print(
            f"[{self._ended + 1}/{self._study.plan.size}] K={config.num_modules} l={config.propagation_length} "
            f"alpha={config.alpha:g} eta={config.lr:.3g} {config.method} {result['executor']}  epoch {result['epoch']}/{config.epochs}  "
            f"test error {result['test_error_pct']:.2f} %  losses {losses}  {result['images_per_s']:.0f} images/s",
            flush=True,
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the result."""
        self._end(trial, "FINISHED", "done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the failure with its reason."""
        self._end(trial, "FAILED", failure_reason(trial))

    def _end(self, trial: Any, status: str, reason: str) -> None:
        self._ended += 1
        config = self._config(trial)
        folder = self._study.folder / "runs" / config.run_id
        result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
        for metrics in result.get("curve", []):  # epochs whose report was lost with a killed driver
            self._study.tracker.log_metrics(config.run_id, curve_points(metrics), int(metrics["epoch"]))
        headline = {k: v for k, v in result.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        if headline:
            self._study.tracker.log_metrics(config.run_id, headline, config.epochs)
        for name in ("config.yaml", "environment.json", "result.json"):
            if (folder / name).exists():
                self._study.tracker.log_artifact(config.run_id, folder / name)
        self._study.record.append({**dataclasses.asdict(config), "run_id": config.run_id, "status": status, "reason": reason, **headline})
        self._study.tracker.end_run(config.run_id, status, reason)
        if status == "FAILED":
            print(f"trial {config.run_name} failed: {reason}", file=sys.stderr, flush=True)

    def _config(self, trial: Any) -> RunConfig:
        return base_with(self._study.plan.base, _flat(trial.config))


def failure_reason(trial: Any) -> str:
    """Return the last line of what the trial raised, which names stage and step."""
    error = trial.get_ray_actor_exception() if hasattr(trial, "get_ray_actor_exception") else None
    error = error or trial.get_error() or trial.get_pickled_error()
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__


def run_params(config: RunConfig) -> dict[str, str | int | float]:
    """Return the few parameters that MLflow's table shows; everything is in config.yaml."""
    return {
        "K": config.num_modules, "l": config.propagation_length, "alpha": config.alpha, "eta": round(config.lr, 6),
        "seed": config.seed, "dataset": config.dataset, "network": config.network, "head": config.head,
        "method": config.method, "batch_size": config.batch_size, "epochs": config.epochs,
    }  # fmt: skip


def curve_points(metrics: dict[str, Any]) -> dict[str, float]:
    """Return one epoch's points: curve/... for the run, local_loss/stage_00... for its stages."""
    names = ("test_error_pct", "val_error_pct", "train_loss", "images_per_s", "epoch_s", "link_ms")
    points = {f"curve/{name}": float(metrics[name]) for name in names if name in metrics}
    return points | {f"local_loss/stage_{k:02d}": float(loss) for k, loss in enumerate(metrics["local_loss"])}


def _sizes(dataset: Dataset) -> dict[str, int]:
    return {"train_images": len(dataset.train), "test_images": len(dataset.test)}


def cluster_places(max_concurrent: int = 0) -> Places:
    """Return what the connected Ray cluster has."""
    found = ray.cluster_resources()
    return Places(num_gpus=found.get("GPU", 0.0), num_cpus=found.get("CPU", 0.0), max_concurrent=max_concurrent)

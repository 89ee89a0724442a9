"""Search: Ray Tune and Optuna look for the best run in a space, from Python; studies take the same path."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

from backlink_ray.data.datasets import data_root as find_data_root
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import ConfigError, StudyError
from backlink_ray.files import local_path, read_json
from backlink_ray.output import say
from backlink_ray.pipeline.stageplan import plan_stages
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import data_key, load_for
from backlink_ray.runs.executors import check_transport
from backlink_ray.runs.folder import RESULT, RUN_AGAIN
from backlink_ray.runs.job import make_job
from backlink_ray.runs.options import DEFAULT, RunOptions
from backlink_ray.runs.results import Results, Row, config_of
from backlink_ray.text import slug
from backlink_ray.tracking.run import ExperimentInfo
from backlink_ray.tracking.tracker import open_tracker
from backlink_ray.tuning.folder import open_study_folder
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.resources import read_runs_per_gpu
from backlink_ray.tuning.space import Space
from backlink_ray.tuning.study import Study
from backlink_ray.tuning.tuner import run_trials

# What every epoch reports and a search can minimise.
_MEASURED = ("val_loss", "test_loss", "train_loss", "epoch_s", "step_ms", "link_ms", "peak_memory_mib")
_OF_CLASSES = ("val_error_pct", "test_error_pct")


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        rows: one per trial, with the fields of its configuration, its status and its numbers; the best first, failed ones last.
        metric: by which they are ordered, smallest first.
        folder: of the study; run folders are in runs/RUN_ID below it.
    """

    rows: list[Row]
    metric: str
    folder: Path

    @property
    def best(self) -> RunConfig:
        """Return the configuration of the best finished trial; StudyError if none finished."""
        return config_of(self._best_row)

    @property
    def best_folder(self) -> Path:
        """Return its run folder, for `load_network`."""
        return self.folder / "runs" / str(self._best_row["run_id"])

    @property
    def best_result(self) -> dict[str, Any]:
        """Return its result.json."""
        return read_json(self.best_folder / RESULT, RUN_AGAIN)

    @property
    def _best_row(self) -> Row:
        row: Row = next(iter(self.rows), {"status": "", "reason": "there is none"})
        if row["status"] != "FINISHED":
            raise StudyError(f"no trial in {self.folder} finished: {row['reason']}")
        return row


def tune(
    base: RunConfig,
    space: Space,
    *,
    num_samples: int = 20,
    storage: str | Path = "results",
    name: str = "search",
    tracking_uri: str = "",
    metric: str = "val_error_pct",
    objectives: Sequence[str] = (),
    first: Sequence[RunConfig] = (),
    asha: bool = False,
    max_concurrent: int = 0,
    address: str = "",
    data_root: str = "",
    runs_per_gpu: int | Literal["auto"] = 1,
    options: RunOptions = DEFAULT,
) -> SearchResult:
    """Search a space by Optuna's TPE, one Ray Tune trial per run; print one line per epoch, and track all runs in MLflow.

    The same call continues a search that was interrupted, and a larger num_samples adds trials to one that ended.

    Args:
        base: what the space does not change; its executor is the trials'.
        space: what is searched.
        num_samples: trials, those of earlier calls included.
        storage, name: folder of studies, and the study's name, which is its folder's in there.
        tracking_uri: MLflow's; default $MLFLOW_TRACKING_URI, else SQLite in the storage folder.
        metric: minimised, a number of result.json, for a regression val_loss; val_ needs a validation_fraction in the base.
        objectives: metrics that are minimised together, in place of the metric, by which rows are ordered all the same.
        first: runs to begin with.
        asha: stop trials early that rank low.
        max_concurrent: trials at once; 0: as many as the GPUs allow, one without a GPU.
        address: of a Ray cluster; default $RAY_ADDRESS, else a private one on this machine.
        data_root: folder of the data sets; default $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray.
        runs_per_gpu: trials of executor local that share a GPU; "auto": as many as keep it busy and fit, measured on it.
        options: of every run, among them what a stage reserves, and how often a lost trial is started again.

    Raises:
        ConfigError: the space does not fit the base, it not the data, options or cluster, or the folder is another study's.
        StudyError: an interruption left trials; the same call continues.
    """
    check_transport(options.transport, base.executor)
    plan, datasets = prepare(Plan(
        base=base, space=space, num_samples=num_samples, metric=metric, objectives=tuple(objectives), first=tuple(first),
        asha=asha,
    ), find_data_root(data_root))  # fmt: skip
    _check_metrics((metric, *objectives), base, all(data.train.has_classes for data in datasets.values()))
    folder, count, left = local_path(storage, "storage").absolute() / slug(name), read_runs_per_gpu(runs_per_gpu), 0
    info = ExperimentInfo(name=f"backlink-{name}", note=f"{name}: lower `{metric}` is better.")
    with open_study_folder(folder, name, plan, "auto"):
        with closing(open_tracker(tracking_uri, info, folder.parent)) as tracker:
            study = Study(name, plan, folder, tracker)
            if study.left():
                how: dict[str, Any] = {"max_concurrent": max_concurrent, "runs_per_gpu": count, "options": options}
                left = run_trials(study, datasets, address=address, **how)
        Results(folder).export()
    say(tracker.page())
    if left:
        raise StudyError(f"{left} of {num_samples} trials in {folder} have no result yet; the same call continues")
    return SearchResult(ordered(Results(folder).rows(), metric), metric, folder)


def _check_metrics(names: Sequence[str], base: RunConfig, has_classes: bool) -> None:
    measured = (*_MEASURED, *_OF_CLASSES) if has_classes else _MEASURED
    for name in names:
        if name.startswith("val_") and not base.validation_fraction:
            raise ConfigError(
                f"metric={name!r} is measured on held-out data; give the base a validation_fraction, for example 0.1"
            )
        if name not in measured:
            problem = "is measured with classes alone" if name in _OF_CLASSES else "is not measured"
            raise ConfigError(f"metric={name!r} {problem}; allowed here: {', '.join(measured)}")


def prepare(plan: Plan, root: Path) -> tuple[Plan, dict[str, Dataset]]:
    """Load the data of a plan's runs, and check that every run can be built; return the plan, complete, and the data.

    Raises:
        ConfigError, DataError: data is unavailable, or a run, its network and its data do not fit together.
    """
    datasets = load_for(plan.examples, root)
    for run in (run for run in plan.examples if run.import_paths or run.batch_norm == "whole"):
        job = make_job(run, datasets[data_key(run)])
        job.check_executor(run.executor)
        plan_stages(job)
        plan = replace(plan, num_units=sum(len(module.units) for module in job.modules))
    plan.check()
    return plan, datasets


def ordered(rows: Sequence[Row], metric: str) -> list[Row]:
    """Return rows with the best finished run first and failed ones last."""
    return sorted(rows, key=lambda row: (row["status"] != "FINISHED", float(row.get(metric, inf))))

"""Tuner: a study run by Ray Tune, one trial per run, with its stages in the trial's own placement group."""

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import BacklinkError, ConfigError, StorageError, StudyError
from backlink_ray.importing import digest
from backlink_ray.runs.cluster import start_once
from backlink_ray.runs.data import data_key
from backlink_ray.runs.options import DEFAULT, RunOptions
from backlink_ray.runs.results import config_of
from backlink_ray.runs.tracked import end_open_runs, track_all
from backlink_ray.signals import deferred, handling, stopping
from backlink_ray.tuning.callback import StudyCallback
from backlink_ray.tuning.resources import ClusterResources
from backlink_ray.tuning.searcher import Searcher, open_searcher
from backlink_ray.tuning.sharing import with_sharing
from backlink_ray.tuning.study import Study
from backlink_ray.tuning.trial import trial, trial_resources
from backlink_ray.tuning.watch import head_watched

# Our callback reports a failed trial in one line; Tune would add two tracebacks.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
# Tune's own table has none of our columns and redraws itself; our callback prints one line per epoch instead.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Tune's loggers would store every epoch three times more, and nobody reads that.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# The report of a trial that failed has no metrics.
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
_TIMES = {"epoch_s", "step_ms", "link_ms"}


def run_trials(
    study: Study, datasets: Mapping[str, Dataset], *, address: str = "", gpus: float = 0.0, max_concurrent: int = 0,
    runs_per_gpu: int = 1, options: RunOptions = DEFAULT,
) -> int:  # fmt: skip
    """Run the trials that are left of a study's plan, at least one; return how many an interruption left.

    Args:
        datasets: by `data_key`.
        address: of the cluster, see `start_once`.
        gpus: to which an autoscaling cluster can grow; 0: those it has now.
        max_concurrent: trials at once; 0: as many as the GPUs allow, one without a GPU.
        runs_per_gpu: of executor local; MEASURED: as many as keep a GPU busy and fit.
        options: of every run: what a stage reserves, how often a lost trial is started again, and others.

    Raises:
        ConfigError: the cluster can never hold a run, or cannot import what a run names, or the study has results on other data,
            or minimises a time, which runs that share a GPU falsify.
        KeyboardInterrupt: only outside of a command, whose first signal has the trials save and end, see `signals`.
    """
    examples = study.runs_left() or study.plan.examples
    _check_data(study, datasets)
    if runs_per_gpu != 1 and (times := _TIMES & {study.plan.metric, *study.plan.objectives}):
        raise ConfigError(f"{min(times)} cannot be minimised on a shared GPU; allowed: runs_per_gpu=1, the default")
    start_once(address, {name: path for run in examples for name, path in run.import_paths.items()})
    found = ray.cluster_resources()
    num_gpus = max(found.get("GPU", 0.0), gpus)
    cluster = ClusterResources(
        num_gpus=num_gpus, num_cpus=found.get("CPU", 0.0), max_concurrent=max_concurrent,
        stage=options.resources, runs_per_gpu=runs_per_gpu,
    )  # fmt: skip
    for run in examples:
        cluster.check(run)
    _run(study, datasets, cluster, options)
    return study.missing()


def _check_data(study: Study, datasets: Mapping[str, Dataset]) -> None:
    for row in study.results.rows():
        here = datasets.get(data_key(config_of(row)))
        if here and row.get("dataset_digest", here.digest) != here.digest:
            raise ConfigError(
                f"{str(study.folder)!r} has results on other data named {row['dataset']!r} (digest {row['dataset_digest']}, here "
                f"{here.digest}); restore the data, or give another --storage-path"
            )


def _run(study: Study, datasets: Mapping[str, Dataset], cluster: ClusterResources, options: RunOptions) -> None:
    end_open_runs(study.folder / "runs", "the process that ran the study died")
    study.stop_file.remove()
    references = {key: ray.put(dataset) for key, dataset in datasets.items()}
    cluster = with_sharing(cluster, (*study.runs_left(), *study.plan.largest), references)
    runs = (study.plan.base, *study.plan.examples)
    files = {(name, path): digest(path, name) for run in runs for name, path in run.import_paths.items()}
    trainable = tune.with_parameters(
        trial, plan=study.plan, cluster=cluster, datasets=references, runs=study.folder / "runs", files=files,
        options=replace(options, stop=study.stop_file),
    )  # fmt: skip
    tune_config = _tune_config(study, cluster)
    param_space = {} if study.plan.space else {"run_id": tune.grid_search([run.run_id for run in study.runs_left()])}
    tuner = tune.Tuner(
        tune.with_resources(trainable, partial(trial_resources, plan=study.plan, cluster=cluster)),
        param_space=param_space,
        tune_config=tune_config,
        run_config=_run_config(study, datasets, cluster, options.max_recoveries),
    )
    if handling():  # our callback does what Tune's own handler does, and SIGTERM is handled as well
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    try:
        with deferred(), head_watched(partial(_end_runs, study)):
            tuner.fit()
    except KeyboardInterrupt:
        if not stopping():
            raise
    except tune.TuneError as error:
        last = str(error).strip().splitlines()[-1]
        raise StudyError(re.sub(r"^[\w.]+: ", "", last)) from error
    except OSError as error:
        if isinstance(error, BacklinkError):
            raise
        raise StorageError(f"{study.folder / 'tune'} cannot be written: {error.strerror}; free some space") from error
    finally:
        if isinstance(tune_config.search_alg, Searcher):
            tune_config.search_alg.close()
        _end_runs(study, "the study ended before the run did")


def _end_runs(study: Study, reason: str) -> None:
    with suppress(StorageError):  # the next start does it again
        end_open_runs(study.folder / "runs", reason)
    track_all(study.tracker, study.folder)


def _tune_config(study: Study, cluster: ClusterResources) -> tune.TuneConfig:
    limit = (cluster.max_concurrent or (0 if cluster.num_gpus else 1)) or None
    if not study.plan.space:
        return tune.TuneConfig(num_samples=1, max_concurrent_trials=limit)
    searcher = open_searcher(study.plan, study.folder, study.name, study.results.rows())
    epochs, has_one_metric = study.plan.base.epochs, not study.plan.objectives  # several: known to the searcher alone
    asha = ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=max(1, epochs // 20), reduction_factor=3)
    return tune.TuneConfig(
        num_samples=study.left(),
        search_alg=searcher,
        scheduler=asha if study.plan.asha else None,
        max_concurrent_trials=limit,
        metric=study.plan.metric if has_one_metric else None,
        mode="min" if has_one_metric else None,
    )


def _run_config(
    study: Study, datasets: Mapping[str, Dataset], cluster: ClusterResources, max_recoveries: int
) -> tune.RunConfig:
    # Tune's folder is new at every start and never restored, since it holds pickles; we resume from our own files.
    attempt = f"attempt-{len(list((study.folder / 'tune').glob('attempt-*'))):03d}"
    return tune.RunConfig(
        name=attempt,
        storage_path=str(study.folder / "tune"),
        callbacks=[StudyCallback(study, cluster, datasets)],
        failure_config=tune.FailureConfig(max_failures=max_recoveries),
        verbose=0,
    )

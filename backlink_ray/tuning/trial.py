"""Trial: one run of a study in a process of its own, and the resources that it reserves."""

import traceback
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.util.placement_group import get_current_placement_group

from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import BacklinkError, ClusterError, ConfigError, StageError, StorageError
from backlink_ray.importing import digest
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import data_key
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.resources import ClusterResources

# In a trial's last report: why it failed, and whether no other trial can succeed either, as the disk is full.
FAILURE, IS_FULL = "failure", "is_full"


def trial_resources(choice: dict[str, Any], plan: Plan, cluster: ClusterResources) -> PlacementGroupFactory:
    """Return a trial's placement group, whose size depends on K."""
    return PlacementGroupFactory(cluster.bundles(plan.run_of(choice)))


def trial(
    choice: dict[str, Any],
    plan: Plan,
    cluster: ClusterResources,
    datasets: Mapping[str, "ray.ObjectRef[Dataset]"],
    runs: Path,
    files: Mapping[tuple[str, str], str],
    options: RunOptions,
) -> dict[str, Any] | None:
    """Run one trial, in bundle 0 of its placement group; stage k runs in bundle 1 + k.

    An error is returned as the trial's last report if it would occur again, since Tune starts a trial again that raises one,
    or whose process died.

    Args:
        choice: Tune's configuration of the trial, see `Plan.run_of`.
        cluster: decides the executor.
        datasets: by `data_key`; only the trial's own is fetched.
        runs: the study's folder of run folders.
        files: the digests that the driver has found, by field and import path.
    """
    config = cluster.resolve(plan.run_of(choice))
    try:
        _check_unchanged(files)
        _run(config, datasets, runs, replace(options, placement_group=get_current_placement_group()))
    except Exception as error:
        if may_pass(error, config.executor):
            raise
        if not isinstance(error, BacklinkError):
            traceback.print_exc()  # into Ray's log of this process
        is_full = isinstance(error, StorageError) and error.is_full
        return {FAILURE: str(error) or type(error).__name__, IS_FULL: is_full}
    return None


def may_pass(error: Exception, executor: str) -> bool:
    """Return whether a new process may have more luck; stages on Ray, which can be replaced, the run has replaced itself."""
    if isinstance(error, StageError):
        return error.lost and executor != "ray"
    return isinstance(error, ClusterError)


def _check_unchanged(files: Mapping[tuple[str, str], str]) -> None:
    """Raise ConfigError if a file is another one now: the result would be recorded as the earlier file's."""
    for (name, path), known in files.items():
        if digest(path, name) != known:
            raise ConfigError(
                f"{name}={path!r} has changed since the study was started; restore the file and start again"
            )


def _run(config: RunConfig, datasets: Mapping[str, "ray.ObjectRef[Dataset]"], runs: Path, options: RunOptions) -> None:
    reported: list[int] = []

    def report(metrics: dict[str, Any]) -> None:
        reported.append(metrics["epoch"])
        tune.report({**metrics, "executor": config.executor})

    # It waits for the folder as long as it takes: a search may choose a run again while it is running.
    options = replace(options, on_epoch=report, lock_timeout_s=inf)
    if config.executor != "ray":  # a run of one module, among others that have stages
        options = replace(options, transport="auto")
    data = ray.get(datasets[data_key(config)])
    result = run(config, runs / config.run_id, dataset=data, options=options)
    if not reported:  # the run had finished before an earlier driver recorded it
        report(result["curve"][-1])

"""The cluster that flags name: what it can hold, and a study's plan carried out on it."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from backlink_ray.commands.exit_codes import SecondInterruptError
from backlink_ray.commands.flags import TrialFlags
from backlink_ray.data.images import Dataset
from backlink_ray.errors import ConfigError
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.executors import start_once
from backlink_ray.tuning.resources import ClusterResources, connected_cluster
from backlink_ray.tuning.study import Study


def carry_out(study: Study, flags: TrialFlags, examples: Iterable[RunConfig], datasets: Mapping[str, Dataset]) -> None:
    """Run what is left of a study's plan.

    Args:
        study: with something left to run.
        flags: name the cluster.
        examples: runs of the plan, at least one of every size.
        datasets: by `data_key`.

    Raises:
        ConfigError: a run that can never be placed there.
        SecondInterruptError: Ctrl-C a second time.
    """
    start_once(flags.address)
    cluster = _grown(connected_cluster(flags.max_concurrent, flags.stage), flags)
    for run in examples:
        cluster.check(run)
    try:
        study.run(datasets, cluster)
    except KeyboardInterrupt as error:  # Tune keeps the first one for itself, and ends its trials in order
        raise SecondInterruptError from error


def cluster_here(flags: TrialFlags) -> ClusterResources:
    """Return what this machine has, for a dry run."""
    num_gpus, num_cpus = torch.cuda.device_count(), os.cpu_count() or 1
    return _grown(ClusterResources(num_gpus=num_gpus, num_cpus=num_cpus, stage=flags.stage), flags)


def _grown(cluster: ClusterResources, flags: TrialFlags) -> ClusterResources:
    return replace(cluster, num_gpus=max(cluster.num_gpus, flags.gpus))


def describe(name: str, run: RunConfig, cluster: ClusterResources, published: float | None) -> str:
    """Return a dry run's line: the name, the executor, what the run reserves, and the paper's number; or why it is refused."""
    try:
        cluster.check(run)
    except ConfigError as error:
        return f"{name}  refused: {error}"
    need = {kind: sum(bundle.get(kind, 0.0) for bundle in cluster.bundles(run)) for kind in ("CPU", "GPU")}
    paper = f"  paper {published:.2f} %" if published is not None else ""
    return f"{name}  executor {cluster.resolve(run).executor}  needs {need['CPU']:g} CPU, {need['GPU']:g} GPU{paper}"

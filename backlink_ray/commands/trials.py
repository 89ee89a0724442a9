"""Trials on a cluster: running those of a study, and what a dry run prints about them."""

import math
import os
from collections.abc import Iterable, Mapping

import ray
import torch

from backlink_ray.benchmarks.step import images_per_s
from backlink_ray.commands.flags import TrialFlags
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import ConfigError
from backlink_ray.runs.config import RunConfig
from backlink_ray.tuning.resources import ClusterResources, read_runs_per_gpu
from backlink_ray.tuning.study import Study
from backlink_ray.tuning.tuner import run_trials


def run_with_flags(study: Study, flags: TrialFlags, datasets: Mapping[str, Dataset]) -> int:
    """Run the trials that are left of a study's plan, see `run_trials`."""
    return run_trials(
        study, datasets, address=flags.address, gpus=flags.gpus, max_concurrent=flags.max_concurrent,
        runs_per_gpu=read_runs_per_gpu(flags.runs_per_gpu), options=flags.options,
    )  # fmt: skip


def check_here(flags: TrialFlags, runs: Iterable[RunConfig]) -> None:
    """Raise ConfigError, before a study's folder is made, if this machine cannot do the runs; a cluster is asked later."""
    if not (flags.address or os.environ.get("RAY_ADDRESS") or ray.is_initialized()):
        for run in runs:
            local_cluster(flags).check(run)


def local_cluster(flags: TrialFlags) -> ClusterResources:
    """Return this machine as a cluster."""
    gpus, cpus = max(torch.cuda.device_count(), flags.gpus), os.cpu_count() or 1
    return ClusterResources(
        num_gpus=gpus, num_cpus=cpus, max_concurrent=flags.max_concurrent, stage=flags.resources,
        runs_per_gpu=read_runs_per_gpu(flags.runs_per_gpu),
    )  # fmt: skip


def describe(name: str, run: RunConfig, cluster: ClusterResources, published: float | None) -> str:
    """Return a dry run's line on a run: its executor, what it reserves and the paper's error, or why it is refused."""
    try:
        cluster.check(run)
    except ConfigError as error:
        return f"{name}  refused: {error}"
    need = {kind: sum(bundle.get(kind, 0.0) for bundle in cluster.bundles(run)) for kind in ("CPU", "GPU")}
    paper = f"  paper {published:.2f} %" if published is not None else ""
    per_gpu = cluster.runs_per_gpu or "as many runs as a measurement at the start says"
    shared = f", shared by {per_gpu}" * (cluster.shares_gpu(run) and per_gpu != 1)
    executor = cluster.resolve(run).executor
    return f"{name}  executor {executor}  needs {need['CPU']:g} CPU, {need['GPU']:g} GPU{shared}{paper}"


def training_images(run: RunConfig) -> float:
    """Return how many images of 32 x 32 pixels a run trains on, in all epochs; one of STL-10 is as much work as nine."""
    area = 9 if run.dataset == "stl10" else 1
    return run.epochs * run.num_train_images * (1 - run.validation_fraction) * area


def estimate(work: Iterable[tuple[RunConfig, float]], gpus: float = 0.0) -> str:
    """Return a dry run's line on the cost of training, from one step of each network on this machine; takes seconds.

    Args:
        work: runs, each with the number of images that it trains on.
        gpus: expected of the cluster; without a GPU on this machine there is then no estimate.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if gpus and device == "cpu":
        return "no estimate: there is no GPU here to measure on"
    work, rates = list(work), dict[str, float]()
    for run, _ in work:
        if run.network not in rates:
            rates[run.network] = images_per_s(run, device)
    hours = math.fsum(images / rates[run.network] / 3600 for run, images in work)
    measured = ", ".join(f"{network} {rate:.0f}" for network, rate in rates.items())
    return f"estimated: {hours:.3g} device-hours of training, at the images/s measured now on one {device}: {measured}"

"""Launch: a plan's runs given their data and their places on the cluster, for every command that runs one."""

import os
from collections.abc import Iterable
from dataclasses import replace

import torch

from backlink_ray.commands.exit_codes import SecondInterruptError
from backlink_ray.commands.flags import Flags
from backlink_ray.data.images import Dataset
from backlink_ray.errors import ConfigError
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.executors import start_once
from backlink_ray.tuning.resources import ClusterResources, cluster_resources
from backlink_ray.tuning.study import Study


def check_numbers(flags: Flags) -> None:
    """Refuse flags that are out of range, by name."""
    for field in ("num_samples", "max_concurrent", "gpus"):
        if not getattr(flags, field) >= 0:
            raise ConfigError(f"{field}={getattr(flags, field)} is out of range; allowed 0 (the default) or more")
    if not flags.gpus_per_stage > 0:
        raise ConfigError(f"gpus_per_stage={flags.gpus_per_stage} is out of range; allowed more than 0")
    if flags.gpus and not (flags.address or os.environ.get("RAY_ADDRESS")):
        raise ConfigError(f"gpus={flags.gpus:g} is for a cluster that grows; give its --address, or leave --gpus out")


def fit(study: Study, flags: Flags, configs: Iterable[RunConfig], datasets: dict[str, Dataset]) -> None:
    """Run what is left of a study's plan, which `configs` are examples of, on the cluster that the flags name.

    Raises:
        ConfigError: a run that can never be placed there.
        SecondInterruptError: Ctrl-C a second time.
    """
    start_once(flags.address)
    places = with_flags(cluster_resources(), flags)
    for config in configs:
        places.check(config)
    try:
        study.run(datasets, places)
    except KeyboardInterrupt as error:  # Tune keeps the first one for itself, and ends its trials in order
        raise SecondInterruptError from error


def resources_here(flags: Flags) -> ClusterResources:
    """Return what this machine has, for a dry run."""
    return with_flags(ClusterResources(num_gpus=torch.cuda.device_count(), num_cpus=os.cpu_count() or 1), flags)


def with_flags(places: ClusterResources, flags: Flags) -> ClusterResources:
    """Return the places with what the flags say of them."""
    gpus = max(places.num_gpus, flags.gpus)
    return replace(places, num_gpus=gpus, max_concurrent=flags.max_concurrent, gpus_per_stage=flags.gpus_per_stage)


def describe(name: str, config: RunConfig, places: ClusterResources, published: float | None) -> str:
    """Return a dry run's line: the name, the executor, what the run reserves, and the paper's number; or why it is refused."""
    need = {kind: sum(b.get(kind, 0.0) for b in places.bundles(config)) for kind in ("CPU", "GPU")}
    try:
        places.check(config)
    except ConfigError as error:
        return f"{name}  refused: {error}"
    paper = f"  paper {published:.2f} %" if published is not None else ""
    return f"{name}  executor {places.resolve(config).executor}  needs {need['CPU']:g} CPU, {need['GPU']:g} GPU{paper}"

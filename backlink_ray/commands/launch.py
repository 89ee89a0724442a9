"""Launch: a plan's runs given their data and their places on the cluster, for every command that runs one."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from backlink_ray.commands.flags import CommonFlags, SecondInterruptError
from backlink_ray.data.datasets import Dataset, dataset_of, hold_out
from backlink_ray.data.loader import check_batch_size
from backlink_ray.runs.config import ConfigError, RunConfig
from backlink_ray.runs.runner import start_ray
from backlink_ray.tuning.study import Study
from backlink_ray.tuning.trial import Places, cluster_places, data_key


@dataclass(frozen=True, kw_only=True)
class Flags(CommonFlags):
    """Flags that every study has."""

    num_samples: int = 0
    """Trials of a search; 0 takes the preset's."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as the GPUs allow, one on a CPU machine."""
    asha: bool = False
    """Stop the trials of a search early that rank low at an epoch (ASHA); best with several trials at once."""
    trade_off: bool = False
    """Search for the trade-off of error, memory and step time (NSGA-II) instead of the error alone (TPE)."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Go on with what the storage path holds: auto if there is something, never, or must."""
    gpus: float = 0.0
    """GPUs the cluster at --address can grow to, where it starts machines on demand; 0: those it has now."""
    gpus_per_stage: float = 1.0
    """GPUs one local module takes, where there are GPUs; a fraction lets modules share one."""
    executor: Literal["auto", "local", "threads", "ray"] = "auto"
    """Where a trial's local modules run; auto: one Ray actor each where the cluster has the places."""


def check_numbers(flags: Flags) -> None:
    """Refuse flags that are out of range, by name."""
    for field in ("num_samples", "max_concurrent", "gpus"):
        if not getattr(flags, field) >= 0:
            raise ConfigError(f"{field}={getattr(flags, field)} is out of range; allowed 0 (the default) or more")
    if not flags.gpus_per_stage > 0:
        raise ConfigError(f"gpus_per_stage={flags.gpus_per_stage} is out of range; allowed more than 0")
    if flags.gpus and not (flags.address or os.environ.get("RAY_ADDRESS")):
        raise ConfigError(f"gpus={flags.gpus:g} is for a cluster that grows; give its --address, or leave --gpus out")


def load_for(configs: Iterable[RunConfig], root: Path) -> dict[str, Dataset]:
    """Return the data sets of some runs by `data_key`, each loaded once and checked against the runs' batch sizes.

    Raises:
        ConfigError, DataError: data that cannot be had, or that a run does not fit.
    """
    found: dict[str, Dataset] = {}
    kept: dict[tuple[str, float], int] = {}
    for config in configs:
        key = data_key(config)
        if key not in found:
            found[key] = dataset_of(config, root)
        part = (key, config.validation_fraction)
        if part not in kept:
            kept[part] = len(hold_out(found[key], config.validation_fraction, config.seed)[0])
        check_batch_size(config.batch_size, kept[part])
    return found


def fit(study: Study, flags: Flags, configs: Iterable[RunConfig], datasets: dict[str, Dataset]) -> None:
    """Run what is left of a study's plan, which `configs` are examples of, on the cluster that the flags name.

    Raises:
        ConfigError: a run that can never be placed there.
        SecondInterruptError: Ctrl-C a second time.
    """
    start_once(flags.address)
    places = grown(cluster_places(), flags)
    for config in configs:
        places.check(config)
    try:
        study.run(datasets, places)
    except KeyboardInterrupt as error:  # Tune keeps the first one for itself, and ends its trials in order
        raise SecondInterruptError from error


def start_once(address: str) -> None:
    """Join the cluster or start a private one, unless this process has done so."""
    import ray

    if not ray.is_initialized():
        start_ray(address)


def places_here(flags: Flags) -> Places:
    """Return what this machine has, for a dry run."""
    return grown(Places(num_gpus=torch.cuda.device_count(), num_cpus=os.cpu_count() or 1), flags)


def grown(places: Places, flags: Flags) -> Places:
    """Return the places with what the flags say of them."""
    gpus = max(places.num_gpus, flags.gpus)
    return replace(places, num_gpus=gpus, max_concurrent=flags.max_concurrent, gpus_per_stage=flags.gpus_per_stage)


def describe(name: str, config: RunConfig, places: Places, published: float | None) -> str:
    """Return a dry run's line: the name, the executor, what the run reserves, and the paper's number; or why it is refused."""
    need = {kind: sum(b.get(kind, 0.0) for b in places.bundles(config)) for kind in ("CPU", "GPU")}
    try:
        places.check(config)
    except ConfigError as error:
        return f"{name}  refused: {error}"
    paper = f"  paper {published:.2f} %" if published is not None else ""
    return f"{name}  executor {places.resolve(config).executor}  needs {need['CPU']:g} CPU, {need['GPU']:g} GPU{paper}"

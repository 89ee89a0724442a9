"""Executors of runs: the choice of one for this machine or cluster, and the connection to Ray."""

import logging
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from backlink_ray.errors import ConfigError
from backlink_ray.importing import digest, folders, sources
from backlink_ray.pipeline.resources import STAGE, StageResources
from backlink_ray.pipeline.threads import RoundRobinExecutor, ThreadsExecutor
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.options import RunOptions
from backlink_ray.train.executor import Executor, Job, LocalExecutor

# A worker that imports torch and the user's modules starts in seconds; a busy cluster takes longer.
WORKER_TIMEOUT_S = 120.0


def choose_executor(
    config: RunConfig, num_gpus: float, num_cpus: float, resources: StageResources = STAGE
) -> tuple[str, str]:
    """Return the executor that a run gets, and why.

    Args:
        config: its executor is local, threads, ray or auto.
        num_gpus, num_cpus: of the cluster, or of this machine without one.
        resources: what one stage takes.
    """
    stages = config.num_modules
    if config.executor != "auto":
        return config.executor, "as configured"
    if stages == 1:
        return "local", "K=1 is a single stage"
    devices, kind = (
        (resources.stages_on(num_gpus), "GPU") if num_gpus and resources.gpus_per_stage else (num_cpus, "CPU")
    )
    if devices >= stages:
        return "ray", f"{devices:g} {kind} slots for K={stages} stages"
    return "local", f"{devices:g} {kind} slots are too few for K={stages} stages"


def open_executor(config: RunConfig, job: Job, options: RunOptions) -> Executor:
    """Open the executor of a run, and print which it is and why; see `choose_executor`."""
    gpus, cpus = _available(config) if config.executor == "auto" else (0.0, 0.0)
    name, why = choose_executor(config, gpus, cpus, options.resources)
    print(f"executor {name}: {why}", file=sys.stderr, flush=True)
    if name == "local" and options.timeline:
        raise ConfigError(
            f"timeline={options.timeline!r} shows concurrent stages, and executor local runs one at a time; "
            "use executor threads or ray"
        )
    if name == "ray":
        return _open_ray(config, job, options)
    local = RoundRobinExecutor if job.method.replay_size else LocalExecutor
    return {"local": local, "threads": ThreadsExecutor}[name](job)


def _available(config: RunConfig) -> tuple[float, float]:
    """Return the GPUs and CPUs of the Ray cluster at $RAY_ADDRESS, else of this machine."""
    if not os.environ.get("RAY_ADDRESS"):
        return torch.cuda.device_count(), os.cpu_count() or 1
    import ray

    start_once(paths=config.import_paths)
    found = ray.cluster_resources()
    return found.get("GPU", 0.0), found.get("CPU", 0.0)


def _open_ray(config: RunConfig, job: Job, options: RunOptions) -> Executor:
    from backlink_ray.pipeline.actors import RayExecutor  # a run on one device needs no Ray

    is_trial = options.placement_group is not None  # then the study's driver has connected, and checked the paths
    start_once(paths={} if is_trial else config.import_paths)
    return RayExecutor(job, options.resources, options.placement_group)


def start_once(address: str = "", paths: Mapping[str, str] = MappingProxyType({})) -> None:
    """Connect this process to Ray, unless it is connected, so that workers can import what the user's paths name.

    Args:
        address: of the cluster; default $RAY_ADDRESS, else a private cluster is started on this machine's loopback address.
        paths: import paths, by the field that names them.

    Raises:
        ConfigError: the cluster cannot be used, or its workers cannot import one of the paths, or import another file.
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS", "")
    own = [path for name, path in paths.items() if digest(path, name)]
    if ray.is_initialized():
        pass
    elif address:
        # Another machine has none of the user's files: Ray copies those that this process has imported.
        _join(address, {"py_modules": sources(own)} if own else {})
    else:
        path = os.pathsep.join([*folders(own), *filter(None, [os.environ.get("PYTHONPATH")])])
        _start({"env_vars": {"PYTHONPATH": path}} if own else {})
    if paths:
        _check_workers(paths)


def _join(address: str, environment: dict[str, Any]) -> None:
    import ray

    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, runtime_env=environment or None)
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"address={address!r} cannot be used ({reason}); give HOST:PORT of a Ray cluster") from error


def _start(environment: dict[str, Any]) -> None:
    import ray

    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.WARNING}
    ray.init(address="local", runtime_env=environment or None, **quiet)
    # Ray makes its token readable for everybody.
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)


def _check_workers(paths: Mapping[str, str]) -> None:
    """Import the paths in a worker: a fresh process, on another machine if the cluster has one."""
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(digest)
    for name, path in paths.items():
        way_out = (
            "put its folder on PYTHONPATH of every machine, or call ray.shutdown() first, so that Ray starts anew with it, and "
            "on a cluster that this process joins itself ray.init(address=..., runtime_env={'py_modules': "
            f"{sources([path])}}})"
        )
        try:
            there = ray.get(task.remote(path, name), timeout=WORKER_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            raise ConfigError(f"{name}={path!r} cannot be imported by Ray's workers ({reason}); {way_out}") from error
        if there != digest(path, name):
            raise ConfigError(f"{name}={path!r} is another file for Ray's workers than here; {way_out}")


def _check_reachable(address: str) -> None:
    """Raise ConfigError if nothing listens at HOST:PORT: Ray itself tries for three minutes before it gives up."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"address={address!r} does not answer ({error}); start Ray there, or give another address"
        ) from error

"""Executors of runs: the choice of one for this machine or cluster."""

import os

import torch

from backlink_ray.errors import ConfigError
from backlink_ray.output import say
from backlink_ray.pipeline.pool import StagePool
from backlink_ray.pipeline.resources import STAGE, StageResources
from backlink_ray.pipeline.threads import RoundRobinExecutor, ThreadsExecutor
from backlink_ray.runs.cluster import start_once
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.options import RunOptions
from backlink_ray.train.executor import Executor, Job, LocalExecutor


def choose_executor(
    config: RunConfig, num_gpus: float, num_cpus: float, resources: StageResources = STAGE
) -> tuple[str, str]:
    """Return the executor that a run gets, and why.

    Args:
        config: its executor is local, threads, ray or auto.
        num_gpus, num_cpus: of the cluster, or of this machine without one.
        resources: what one stage takes.
    """
    stages = config.num_stages
    what = f"K={config.num_modules} stages" + f" in {config.replicas} replicas" * (config.replicas > 1)
    if config.executor != "auto":
        return config.executor, "as configured"
    if stages == 1:
        return "local", "K=1 is a single stage"
    devices, kind = (
        (resources.stages_on(num_gpus), "GPU") if num_gpus and resources.gpus_per_stage else (num_cpus, "CPU")
    )
    if devices >= stages:
        return "ray", f"{devices:g} {kind} slots for {what}"
    return "local", f"{devices:g} {kind} slots are too few for {what}"


def executor_for(config: RunConfig, options: RunOptions) -> tuple[str, str]:
    """Return the executor that a run gets here, and why; ConfigError if that one cannot do what the options ask for."""
    gpus, cpus = _available(config) if config.executor == "auto" else (0.0, 0.0)
    name, why = choose_executor(config, gpus, cpus, options.resources)
    if name == "local" and options.timeline:
        raise ConfigError(
            f"timeline={options.timeline!r} shows concurrent stages, and executor local runs one at a time; "
            "use executor threads or ray"
        )
    check_transport(options.transport, name)
    return name, why


def check_transport(transport: str, executor: str) -> None:
    """Raise ConfigError if a transport is asked for that an executor, unless it is auto, does not have."""
    if executor not in ("ray", "auto") and transport != "auto":
        raise ConfigError(
            f"transport={transport!r} is between stages on Ray, and the executor is {executor}; use executor ray"
        )


def open_executor(config: RunConfig, job: Job, options: RunOptions, pool: StagePool | None = None) -> Executor:
    """Open the executor of a run, and print which it is and why; see `executor_for`.

    Args:
        config, job, options: of the run.
        pool: the processes of Ray's stages, which outlive the executor; None: they end with it.
    """
    name, why = executor_for(config, options)
    say(f"executor {name}: {why}")
    if name == "ray":
        return _open_ray(config, job, options, pool)
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


def _open_ray(config: RunConfig, job: Job, options: RunOptions, pool: StagePool | None) -> Executor:
    from backlink_ray.pipeline.actors import RayExecutor  # a run on one device needs no Ray

    is_trial = options.placement_group is not None  # then the study's driver has connected, and checked the paths
    start_once(paths={} if is_trial else config.import_paths)
    return RayExecutor(job, pool)

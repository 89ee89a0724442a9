"""Runtime: the time of a training step with every local module on a device of its own, as a part of BP's on one (Fig. 9)."""

from collections.abc import Callable
from dataclasses import replace

from backlink_ray.benchmarks.jobs import job_for, random_images
from backlink_ray.benchmarks.speed import compare
from backlink_ray.data.images import ImageSet
from backlink_ray.pipeline.actors import RayExecutor
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.executors import start_once
from backlink_ray.runs.results import Row
from backlink_ray.train.executor import Executor, LocalExecutor


def devices_of(device: str, count: int) -> tuple[str, ...]:
    """Return the devices of a kind by name: cuda:0, cuda:1, ...; one "cpu", whose cores the stages share."""
    return tuple(f"cuda:{i}" for i in range(count)) if device.startswith("cuda") else ("cpu",)


def open_stages(config: RunConfig, images: ImageSet, executor: str, device: str, count: int) -> Executor:
    """Open the stages of a run, each on its own device.

    Args:
        config: of the run.
        images: what it trains on.
        executor: "threads" or "ray".
        device: "cuda" or "cpu".
        count: devices there are.
    """
    job = replace(job_for(config, images, device), devices=devices_of(device, count))
    if executor == "threads":
        return ThreadsExecutor(job)
    start_once()
    return RayExecutor(job)


def step_ratio(config: RunConfig, executor: str, device: str, *, count: int, steps: int, rounds: int) -> Row:
    """Time a run's step against BP's on one device, in turn, round by round, after one round thrown away.

    Args:
        config: of the run, K devices.
        executor: "threads" or "ray".
        device: "cuda" or "cpu".
        count: devices there are, K or more.
        steps: of a round.
        rounds: counted.

    Returns:
        time_ratio: the median of the rounds' ratios, with time_ratio_min and time_ratio_max; step_ms, bp_step_ms; n rounds.
    """
    images = random_images(2 * config.batch_size)
    bp = config.replace(method="bp")
    with (
        LocalExecutor(job_for(bp, images, devices_of(device, count)[0])) as alone,
        open_stages(config, images, executor, device, count) as stages,
    ):
        runs: dict[str, Callable[[int], object]] = {"bp": alone.train, "stages": stages.train}
        first, second = compare(runs, config.batch_size, device, steps, rounds)
    kept = ("step_ms", "time_ratio", "time_ratio_min", "time_ratio_max", "n", "steps")
    return {**{name: second[name] for name in kept}, "bp_step_ms": first["step_ms"]}

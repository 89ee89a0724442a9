"""Runtime: the time of a step with every local module on its own device, as a ratio to BP's on one device (Fig. 9)."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from backlink_ray.benchmarks.jobs import job_for, random_images
from backlink_ray.benchmarks.rounds import Run, interleaved, ratio, spread
from backlink_ray.data.tensors import LabelledSet
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.runs.cluster import start_once
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row
from backlink_ray.train.executor import Executor, LocalExecutor


def step_times(
    config: RunConfig, executors: Sequence[str], device: str, *, count: int, steps: int, rounds: int
) -> Iterator[Row]:
    """Time BP on one device and a run's stages under each executor, taking turns round by round.

    Args:
        config: of the run; its num_modules is at most `count`.
        executors: "threads", "ray" or both. All are open at once, so Ray's processes run beside the threads.
        device: "cuda" or "cpu". CPU stages share the cores, with config.torch_threads each.
        rounds: counted, after one warm-up round.

    Yields:
        A row for "bp", then one per executor: median, minimum and maximum of its step time and of its ratio to BP's in the
        same round, images per second, and link_ms, what the stage that waits longest for its messages waits per step.
    """
    devices = tuple(f"cuda:{i}" for i in range(count)) if device.startswith("cuda") else ("cpu",)
    images = random_images(2 * config.batch_size)
    with ExitStack() as stack:
        bp = LocalExecutor(job_for(config.replace(method="bp"), images, devices[0]))
        opened: dict[str, Executor] = {"bp": stack.enter_context(bp)}
        for name in executors:
            opened[name] = stack.enter_context(_open_stages(config, images, name, devices))
        link_s: dict[str, list[float]] = {name: [] for name in opened}

        def run(name: str) -> Run:
            return lambda n: link_s[name].append(max(opened[name].train(n).link_s) / n)

        times = interleaved({name: run(name) for name in opened}, device, steps, rounds)
        for name, taken in times.items():
            step = spread("step_ms", [1e3 * t for t in taken])
            yield {
                "run": name, **step, "images_per_s": 1e3 * config.batch_size / step["step_ms"],
                **ratio("time_ratio", taken, times["bp"]), "n": rounds, "steps": steps,
                "link_ms": 1e3 * statistics.median(link_s[name][1:]),
            }  # fmt: skip


def _open_stages(config: RunConfig, images: LabelledSet, executor: str, devices: Sequence[str]) -> Executor:
    job = job_for(config, images, *devices)
    if executor == "threads":
        return ThreadsExecutor(job)
    from backlink_ray.pipeline.actors import RayExecutor  # the other measurements do not need Ray

    start_once()
    return RayExecutor(job)

"""Speed: images per second of training runs that take turns on one device."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from backlink_ray.benchmarks.jobs import Row, job_for, random_images, synchronise
from backlink_ray.nets.build import build_network
from backlink_ray.nets.names import unit_count
from backlink_ray.runs.config import RunConfig
from backlink_ray.train.executor import Executor, LocalExecutor


def images_per_s(config: RunConfig, device: str) -> float:
    """Measure one training step of at most 64 images, one module after another, after a warm-up step; takes seconds."""
    config = config.replace(batch_size=min(64, config.batch_size))
    with LocalExecutor(job_for(config, random_images(2 * config.batch_size), device)) as executor:
        executor.train(1)
        return config.batch_size / executor.train(1).seconds


def plain_loop(network: str, device: str, batch_size: int) -> Callable[[int], None]:
    """Return run(steps) of ordinary eager backpropagation, as anyone would write it: the yardstick of speed."""
    net: nn.Module = build_network(network).to(device)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = random_images(batch_size)
    x, y = images.pixels.to(device).float().div_(255), images.labels.to(device)

    def run(steps: int) -> None:
        for _ in range(steps):
            loss = nn.functional.cross_entropy(net(x), y)
            sgd.zero_grad(set_to_none=True)
            loss.backward()
            sgd.step()

    return run


def compare(
    runs: dict[str, Callable[[int], object]], images_per_step: int, device: str, steps: int, rounds: int
) -> Iterator[Row]:
    """Time several runs in turn, round by round, after one round thrown away.

    Yields:
        For each its median images/s and step time, their spread, and the median of its ratios to the first, round by round.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for r in range(rounds + 1):
        for name, run in runs.items():
            synchronise(device)
            start = time.perf_counter()
            run(steps)
            synchronise(device)
            if r:
                times[name].append((time.perf_counter() - start) / steps)
    first = next(iter(times.values()))
    for name, taken in times.items():
        ratios = [t / f for t, f in zip(taken, first, strict=True)]
        median = statistics.median(taken)
        yield {
            "run": name, "step_ms": 1e3 * median, "step_ms_min": 1e3 * min(taken), "step_ms_max": 1e3 * max(taken),
            "images_per_s": images_per_step / median, "time_ratio": statistics.median(ratios),
            "time_ratio_min": min(ratios), "time_ratio_max": max(ratios), "n": rounds, "steps": steps,
        }  # fmt: skip


def speed_rows(network: str, device: str, batch_size: int, steps: int, rounds: int) -> Iterator[Row]:
    """Yield a plain loop, our BP, GLL and BackLink at K = 4 and 16, interleaved."""
    images = random_images(4 * batch_size)
    runs: dict[str, Callable[[int], object]] = {"plain eager BP": plain_loop(network, device, batch_size)}
    with ExitStack() as opened:
        for name, config in _speed_configs(network, batch_size):
            runs[name] = opened.enter_context(LocalExecutor(job_for(config, images, device))).train
        for row in compare(runs, batch_size, device, steps, rounds):
            yield {"network": network, **row}


def _speed_configs(network: str, batch_size: int) -> Iterator[tuple[str, RunConfig]]:
    base = RunConfig(network=network, method="bp", batch_size=batch_size)
    yield "BP", base
    for k in (4, 16):
        if k <= unit_count(network):
            yield f"GLL K={k}", base.replace(method="gll", num_modules=k)
            yield f"BackLink K={k} l=1", base.replace(method="backlink", num_modules=k, propagation_length=1, alpha=0.5)


def overlap_rows(
    network: str, batch_size: int, steps: int, rounds: int, executors: Sequence[tuple[str, Any]]
) -> Iterator[Row]:
    """Yield the step time of BackLink K = 2, l = 1 with conv heads on each executor as a ratio to BP on one core."""
    images = random_images(4 * batch_size)
    bp = RunConfig(network=network, method="bp", head="conv", batch_size=batch_size)
    linked = bp.replace(method="backlink", num_modules=2, propagation_length=1, alpha=0.5)
    link_s: dict[str, list[float]] = {}

    def run(name: str, executor: Executor) -> Callable[[int], object]:
        waited = link_s.setdefault(name, [])
        return lambda n: waited.append(max(executor.train(n).link_s) / n)

    with ExitStack() as opened:
        alone = opened.enter_context(LocalExecutor(job_for(bp, images, "cpu")))
        runs = {"BP, one core": run("BP, one core", alone)}
        for label, make in executors:
            name = f"BackLink K=2 l=1, {label}"
            runs[name] = run(name, opened.enter_context(make(job_for(linked, images, "cpu"))))
        for row in compare(runs, batch_size, "cpu", steps, rounds):
            yield {"network": network, **row, "link_ms": 1e3 * statistics.median(link_s[row["run"]][1:])}

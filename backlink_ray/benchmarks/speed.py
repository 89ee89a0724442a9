"""Speed: images per second of training runs, timed in turn on one device."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
from torch import nn

from backlink_ray.benchmarks.jobs import job_for, random_images
from backlink_ray.nets.build import build_network
from backlink_ray.nets.names import unit_count
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row
from backlink_ray.train.executor import LocalExecutor


def images_per_s(config: RunConfig, device: str) -> float:
    """Measure one step of at most 64 images on one device, after a warm-up step; takes seconds."""
    config = config.replace(batch_size=min(64, config.batch_size))
    with LocalExecutor(job_for(config, random_images(2 * config.batch_size), device)) as executor:
        executor.train(1)
        return config.batch_size / executor.train(1).seconds


def plain_loop(network: str, device: str, batch_size: int) -> Callable[[int], None]:
    """Return run(steps), a plain eager training loop: the baseline for speed."""
    net: nn.Module = build_network(network).to(device)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = random_images(batch_size)
    x, y = images.inputs.to(device).float().div_(255), images.labels.to(device)

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
    """Time several runs, taking turns round by round, after one warm-up round.

    Args:
        runs: run(steps) by name.
        images_per_step: for images_per_s.
        device: synchronised before and after each timing.
        steps: per round.
        rounds: counted.

    Yields:
        One row per run: median, minimum and maximum of its step time, images per second, and median, minimum and maximum
        over the rounds of the ratio of its time to that of the first run in the same round.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for r in range(rounds + 1):
        for name, run in runs.items():
            _synchronise(device)
            start = time.perf_counter()
            run(steps)
            _synchronise(device)
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


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def speed_rows(network: str, device: str, batch_size: int, steps: int, rounds: int) -> Iterator[Row]:
    """Yield the speed of a plain loop, our BP, and GLL and BackLink at K = 4 and 16, interleaved."""
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

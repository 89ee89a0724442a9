"""Rounds: several runs timed in turn on one device, so that what else the machine does falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch

from backlink_ray.runs.results import Row

# Called with a number of steps, which it takes.
Run = Callable[[int], object]
Key = TypeVar("Key", bound=Hashable)


def interleaved(runs: Mapping[Key, Run], device: str, steps: int, rounds: int) -> dict[Key, list[float]]:
    """Return the seconds per step of every run in each of some rounds, in turn, after a warm-up round that does not count."""
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for r in range(rounds + 1):
        for key, run in runs.items():
            _synchronise(device)
            start = time.perf_counter()
            run(steps)
            _synchronise(device)
            if r:
                times[key].append((time.perf_counter() - start) / steps)
    return times


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def spread(name: str, values: Sequence[float]) -> Row:
    """Return the median, minimum and maximum as columns: name, name_min, name_max."""
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def ratio(name: str, times: Sequence[float], others: Sequence[float]) -> Row:
    """Return the spread of the ratio of two times of the same round."""
    return spread(name, [a / b for a, b in zip(times, others, strict=True)])

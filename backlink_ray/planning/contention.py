"""Contention: how much slower a network's units become when several stages compute at once on the cores of one machine.

Cores share memory and caches, so two steps side by side take longer than one alone: measured, not assumed.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import torch

from backlink_ray.local.module import LocalModule
from backlink_ray.processes import usable_cores

# Computes a forward and a backward of all modules, and returns the seconds.
Pass = Callable[[Sequence[LocalModule]], float]
# Each has a copy of the network and the graphs of some units; more stages are taken to be as slow as these.
MOST = 16


def measure_speeds(modules: Sequence[LocalModule], run: Pass, device: torch.device, repeats: int) -> tuple[float, ...]:
    """Return the speed of each of 1, 2, .. stages that compute at once, in its turn, see `sharing.speed_of`; of a GPU for one.

    Measured for 1, 2, 4, .. stages, up to two for a core, with straight lines between. What else the machine does for a while
    does not count: of several rounds the fastest does.

    Args:
        modules: of the network; each thread works on a copy.
        run: what a thread does.
        device: of the modules.
        repeats: rounds in each thread.
    """
    if device.type != "cpu":
        return (1.0,)
    cores = usable_cores()
    numbers = [2**i for i in range(MOST.bit_length()) if 2**i <= max(cores, min(2 * cores, MOST))]
    copies = [copy.deepcopy(modules) for _ in range(numbers[-1])]
    seconds = [_seconds(copies[:n], run, repeats) * min(1.0, cores / n) for n in numbers]
    speeds = np.minimum.accumulate(np.minimum(seconds[0] / np.array(seconds), 1.0))
    return tuple(np.interp(range(1, numbers[-1] + 1), numbers, speeds).tolist())


def _seconds(copies: Sequence[Sequence[LocalModule]], run: Pass, repeats: int) -> float:
    """Return the seconds of the fastest round: of the median thread."""
    start = Barrier(len(copies))

    def work(modules: Sequence[LocalModule]) -> list[float]:
        torch.set_num_threads(1)
        run(modules)
        start.wait()
        return [run(modules) for _ in range(repeats + 1)][:-1]  # in the last round others may have ended

    with ThreadPoolExecutor(len(copies)) as threads:
        return float(np.median([*threads.map(work, copies)], axis=0).min())

"""Contention: how much slower a network's units become when several stages compute at once on the cores of one machine.

Cores share memory and caches, so two steps side by side take longer than one alone: measured, not assumed.
"""

import copy
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import torch

from backlink_ray.local.module import LocalModule

# Computes a forward and a backward of all modules, and returns the seconds.
Pass = Callable[[Sequence[LocalModule]], float]


def measure_speeds(modules: Sequence[LocalModule], run: Pass, device: torch.device, repeats: int) -> tuple[float, ...]:
    """Return the speed of each of 1, 2, .. stages that compute at once, in that of one alone; of a GPU for one alone.

    Measured for 1, 2, 4, .. and all cores, with straight lines between.

    Args:
        modules: of the network; each thread works on a copy.
        run: what a thread does, in turn with nobody.
        device: of the modules.
        repeats: of it in each thread; medians.
    """
    cores = (os.cpu_count() or 1) if device.type == "cpu" else 1
    if cores == 1:
        return (1.0,)
    numbers = [*(2**i for i in range((cores - 1).bit_length())), cores]
    copies = [copy.deepcopy(modules) for _ in range(cores)]
    seconds = [_seconds(copies[:n], run, repeats) for n in numbers]
    speeds = np.minimum.accumulate(np.minimum(seconds[0] / np.array(seconds), 1.0))
    return tuple(np.interp(range(1, cores + 1), numbers, speeds).tolist())


def _seconds(copies: Sequence[Sequence[LocalModule]], run: Pass, repeats: int) -> float:
    start = Barrier(len(copies))

    def work(modules: Sequence[LocalModule]) -> list[float]:
        torch.set_num_threads(1)
        run(modules)
        start.wait()
        return [run(modules) for _ in range(repeats)]

    with ThreadPoolExecutor(len(copies)) as threads:
        return statistics.median(seconds for found in threads.map(work, copies) for seconds in found)

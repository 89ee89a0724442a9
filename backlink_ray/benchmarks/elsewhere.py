"""Elsewhere: a run in a process of its own, as an ordinary script is, without what this library sets for a whole process."""

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from backlink_ray.benchmarks.rounds import Run


def elsewhere(make: Callable[[], Run]) -> Run:
    """Return make(), called in a new process that takes its turns when asked, and ends with this one.

    Args:
        make: picklable.
    """
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    context.Process(target=_serve, args=(make, theirs, torch.get_num_threads()), daemon=True).start()

    def run(steps: int) -> None:
        ours.send(steps)
        if ours.recv() != steps:
            raise AssertionError("the yardstick's process answers for another turn")

    return run


def _serve(make: Callable[[], Run], turns: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    run = make()
    with suppress(EOFError):  # nobody asks any more
        while True:
            steps = turns.recv()
            run(steps)
            turns.send(steps)

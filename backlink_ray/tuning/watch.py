"""Watch: a study is told when the head of its Ray cluster is gone, since Tune hangs then until Ray ends the process."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backlink_ray.errors import ClusterError
from backlink_ray.output import say
from backlink_ray.pipeline.reach import Reach

_CHECK_EVERY_S = 1.0


@contextmanager
def head_watched(on_loss: Callable[[str], None]) -> Iterator[None]:
    """Say so when the cluster's head is gone, call on_loss(reason), and interrupt this process as Ctrl-C does."""
    reach, done = Reach(), threading.Event()

    def watch() -> None:
        while not done.wait(_CHECK_EVERY_S):
            try:
                reach.check()
            except ClusterError as error:
                say(f"the study stops: {error}")
                on_loss(str(error))
                os.kill(os.getpid(), signal.SIGINT)
                break

    threading.Thread(target=watch, daemon=True, name="head-watch").start()
    try:
        yield
    finally:
        done.set()

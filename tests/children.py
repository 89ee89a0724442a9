"""Processes to kill: forked from one that has imported torch, so that each starts in milliseconds instead of seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

START_TIMEOUT_S = 30.0
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["backlink_ray.train.checkpoint"])


class Child:
    """A process that works and tells how far it is."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self._told, telling = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=work, args=(telling, *arguments), daemon=True)
        self._process.start()
        telling.close()

    def told(self) -> Any:
        """Return what it tells next."""
        assert self._told.poll(START_TIMEOUT_S), "the child tells nothing"
        return self._told.recv()

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._process.kill()
        self._process.join()


@contextmanager
def started(work: Callable[..., None], *arguments: Any) -> Iterator[Child]:
    """Start work(telling, *arguments), a function of a module, where `telling.send` tells; it is killed in the end."""
    child = Child(work, *arguments)
    try:
        yield child
    finally:
        child.kill()

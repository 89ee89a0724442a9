"""Processes to kill, forked from one that has imported what a run needs: each starts in milliseconds instead of seconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

START_TIMEOUT_S = 30.0
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["backlink_ray.runs.runner"])


class Child:
    """A process that reports its progress through a pipe."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=work, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def receive(self) -> Any:
        """Return its next message."""
        assert self._pipe.poll(START_TIMEOUT_S), "the child sends nothing"
        return self._pipe.recv()

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._process.kill()
        self._process.join()


@contextmanager
def started(work: Callable[..., None], *arguments: Any) -> Iterator[Child]:
    """Start work(pipe, *arguments), a module-level function that reports with `pipe.send`; it is killed at the end."""
    child = Child(work, *arguments)
    try:
        yield child
    finally:
        child.kill()

"""Signals: SIGINT and SIGTERM end a command in order the first time, at once the second; a closed terminal does not end it."""

import atexit
import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from backlink_ray.processes import end_descendants

ENDING = (signal.SIGINT, signal.SIGTERM)
# A command is gone 10 s after the first signal, whatever hangs; the rest is for ending its processes, of which each takes the
# system a quarter of a second of a core.
GRACE_S = 6.5
INTERRUPTED, AT_ONCE = 3, 130  # exit codes

# A forked child would report its own signals as ours.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
_stopping = threading.Event()
_deferred = 0


def stopping() -> bool:
    """Return whether a signal has asked this process to end."""
    return _stopping.is_set()


def handling() -> bool:
    """Return whether a command runs that handles signals."""
    return signal.getsignal(signal.SIGINT) is _on_signal


def handle_again() -> None:
    """Handle signals as before, if a command runs, although foreign code has set handlers that Python does not know of."""
    if handling() and threading.current_thread() is threading.main_thread():
        for number in ENDING:
            signal.signal(number, _on_signal)


@contextmanager
def deferred() -> Iterator[None]:
    """Let the first signal raise no KeyboardInterrupt in here, where somebody asks `stopping` and ends in order."""
    global _deferred
    _deferred += 1
    try:
        yield
    finally:
        _deferred -= 1


def _on_signal(number: int, frame: object) -> None:
    if not _stopping.is_set():
        _stopping.set()
        if not _deferred:
            raise KeyboardInterrupt


@contextmanager
def handled(last_words: Callable[[], str]) -> Iterator[None]:
    """Handle signals while a command runs; does nothing in another thread than the main one.

    The first raises KeyboardInterrupt, or only sets `stopping` if that is deferred. If the process still lives GRACE_S later, or
    a second signal comes, it prints the last words and ends, and its child processes with it, whatever they do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    before = {number: signal.signal(number, _on_signal) for number in ENDING}
    # The system's handler writes here, also while the main thread hangs in foreign code and Python's handler has to wait.
    earlier = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(ours, last_words), daemon=True, name="signals").start()
    try:
        yield
    finally:
        if not _stopping.is_set():  # else all stays as it is until the process has ended
            signal.set_wakeup_fd(earlier)
            os.close(theirs)
            for number, handler in {**before, signal.SIGHUP: hangup}.items():
                signal.signal(number, handler)
            # All is done by now; a signal while Ray ends its processes, which takes seconds, would only print a traceback.
            for number in ENDING:
                atexit.register(signal.signal, number, signal.SIG_IGN)


def _watch(pipe: int, last_words: Callable[[], str]) -> None:
    """End the process GRACE_S after the first signal, or at the second; end this thread when the pipe is closed."""
    deadline = math.inf
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while poll.poll(None if deadline == math.inf else max(0.0, 1e3 * (deadline - time.monotonic()))):
        numbers = os.read(pipe, 64)
        if not numbers:
            os.close(pipe)
            return
        for _ in filter(ENDING.__contains__, numbers):
            if deadline < math.inf:
                leave(AT_ONCE, last_words())
            deadline = time.monotonic() + GRACE_S
    leave(INTERRUPTED, last_words())


def skip_teardown(code: int) -> None:
    """End this process with `code` as soon as all that `atexit` knows is done: Python's own end takes seconds under load."""
    atexit.register(_end_after_the_others, code)


def _end_after_the_others(code: int) -> None:
    atexit.unregister(_end_after_the_others)
    atexit._run_exitfuncs()  # this one, registered last, was the first to be called
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed when the process began
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


def leave(code: int, last_words: str) -> NoReturn:
    """Print the last words, and end this process and its child processes at once, whatever they do."""
    sys.setswitchinterval(1e-5)  # a thread that computes would hold this one up at every file that it reads
    with contextlib.suppress(OSError):
        os.write(2, f"{last_words}\n".encode())
    end_descendants()
    os._exit(code)

"""Elsewhere: training loops in processes of their own, which take their turns when they are asked."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing import connection
from typing import Any

import torch

from backlink_ray.benchmarks.rounds import Run
from backlink_ray.errors import BacklinkError, first_line

# Longest wait for a step of somebody else's loop, and for a process to start: as long as a stage waits for its neighbour.
STEP_TIMEOUT_S = 120.0
# When one has failed, how long to wait for others, of which one may be the cause.
GRACE_S = 1.0

Make = Callable[[], Mapping[str, Run]]


class Elsewhere:
    """Processes that take the same turns at the same time.

    They are as ordinary scripts are, without what this library sets for a whole process, and end with this one.

    Args:
        *makes: picklable; each is called in a new process, and returns its runs by name.

    Attributes:
        processes: in the order of what they make.
    """

    def __init__(self, *makes: Make) -> None:
        context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
        self._ends, self.processes = list[connection.Connection](), []
        for make in makes:
            ours, theirs = multiprocessing.Pipe()
            process = context.Process(target=_serve, args=(make, theirs, threads), daemon=True)
            process.start()
            theirs.close()  # so that it is noticed if the process ends
            self._ends.append(ours)
            self.processes.append(process)

    def run(self, name: str, steps: int) -> None:
        """Have all processes take some steps of a run; BacklinkError as soon as one of them fails, is gone or hangs."""
        waiting: dict[Any, int] = {end: k for k, end in enumerate(self._ends)}
        failed = {k: "" for k, end in enumerate(self._ends) if not _sent(end, (name, steps))}
        limit_s = STEP_TIMEOUT_S * (steps + 1)
        end_s = time.monotonic() + limit_s
        while waiting and not failed:
            if not (ready := connection.wait(list(waiting), max(0.0, end_s - time.monotonic()))):
                which = " ".join(map(str, sorted(waiting.values())))
                raise BacklinkError(f"{name}: no answer within {limit_s:g} s of process {which} of {len(self._ends)}")
            failed = {k: why for end in ready if (why := _answer(self._ends[k := waiting.pop(end)])) is not None}
        if failed:
            raise BacklinkError(f"{name}: {self._cause(failed)}")

    def _cause(self, failed: dict[int, str]) -> str:
        """Return what failed first: a process that is gone without a word, rather than one that says why in its wake."""
        connection.wait([process.sentinel for process in self.processes], GRACE_S)
        for k, process in enumerate(self.processes):
            process.join(GRACE_S if failed.get(k) == "" else 0)
            if (code := process.exitcode) is not None and not failed.get(k):
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                return f"process {k} of {len(self.processes)} is gone ({how})"
        k, why = min(failed.items())
        return f"process {k} of {len(self.processes)} failed: {why}"

    def close(self) -> None:
        """End all processes, whatever they do."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _sent(end: connection.Connection, message: object) -> bool:
    try:
        end.send(message)
    except OSError:
        return False
    return True


def _answer(end: connection.Connection) -> str | None:
    """Return why a process has failed, "" if it is gone, None if it has done its turn."""
    try:
        answer: str | None = end.recv()
    except (EOFError, OSError):
        return ""
    return answer


def _serve(make: Make, turns: connection.Connection, threads: int) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes of a terminal; the first one ends the others
    torch.set_num_threads(threads)
    try:
        runs = make()
        while True:
            name, steps = turns.recv()
            runs[name](steps)
            turns.send(None)
    except (EOFError, BrokenPipeError):
        pass  # nobody asks any more
    except Exception as error:
        _sent(turns, f"{type(error).__name__}: {first_line(error)}")

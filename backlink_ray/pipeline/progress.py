"""Progress: where a stage is, and for how long it has been there by itself; written by the stage, read by another thread."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Position(NamedTuple):
    """A stage's step and action, and for how many seconds it has been in it; 0 while it waits, for a neighbour or a call."""

    step: int = -1
    action: str = ""
    busy_s: float = 0.0


UNKNOWN = Position()
SILENT = "silent"  # the action of a stage that does not answer
# Who looks again and again looks more often than this, unless it stood still, as on a machine that was paused.
STOOD_STILL_S = 5.0
# How often somebody who waits looks whether the process stood still.
LOOK_S = 1.0


class Patience:
    """For how long somebody has watched others without standing still; what they did not do meanwhile is not their fault."""

    def __init__(self, now: float) -> None:
        self._since = self._last = now

    def look(self, now: float) -> float:
        """Return the seconds since the beginning, or since the last standstill."""
        if now - self._last > STOOD_STILL_S:
            self._since = now
        self._last = now
        return now - self._since


def wait_patiently(wait: Callable[[float], bool], timeout_s: float) -> bool:
    """Return whether wait(seconds) has returned True within `timeout_s`, counted anew once this process stood still."""
    patience, left_s = Patience(time.monotonic()), timeout_s
    while not wait(min(left_s, LOOK_S)):
        left_s = timeout_s - patience.look(time.monotonic())
        if left_s <= 0:
            return False
    return True


class Progress:
    """What a stage does now; one tuple is replaced by another, so a reader needs no lock."""

    def __init__(self) -> None:
        self._now: tuple[int, str, float] = (0, "ready", math.inf)

    def begin(self, step: int, action: str) -> None:
        """The stage begins an action."""
        self._now = (step, action, time.monotonic())

    def rest(self, step: int) -> None:
        """The stage waits for a call, its next step being `step`."""
        self._now = (step, "ready", math.inf)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside `with` the stage waits for a neighbour."""
        step, action, _ = self._now
        self._now = (step, action, math.inf)
        yield
        self.begin(step, action)

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Return method(*arguments); a position of the stage during the call, and where it is if the call fails."""
        step = self._now[0]
        self.begin(step, method.__name__)
        result = method(*arguments)
        self.rest(self._now[0])
        return result

    @property
    def position(self) -> Position:
        """Return the current position."""
        step, action, since = self._now
        return Position(step, action, max(0.0, time.monotonic() - since))

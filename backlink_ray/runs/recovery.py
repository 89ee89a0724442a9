"""Recovery: whether and when a run that has lost a stage goes on from its newest checkpoint."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from backlink_ray.errors import ClusterError, StageError
from backlink_ray.output import say
from backlink_ray.signals import stopping

T = TypeVar("T")

# After the loss of a machine: twice as long each time, since a spot market or a reboot takes minutes.
BACK_OFF_S = 2.0
LONGEST_BACK_OFF_S = 60.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to go on, after how many seconds, and why not."""

    goes_on: bool
    after_s: float = 0.0
    why_not: str = ""


def decide(error: StageError | ClusterError, recoveries: int, max_recoveries: int, replaceable: bool) -> Decision:
    """Decide what to do when an attempt at a run has failed.

    A failure that would repeat itself ends the run: an error of the user's code, a loss that is not finite, a cluster that is
    too small. So does a cluster that has no room, or is gone, before anything was lost.

    Args:
        error: what the attempt raised.
        recoveries: number of recoveries so far.
        max_recoveries: number that is allowed.
        replaceable: the stages are processes, which can be ended and started again; threads cannot.
    """
    if not error.lost:
        return Decision(False)
    if isinstance(error, ClusterError) and (error.final or not recoveries):
        return Decision(False)
    if not replaceable:
        return Decision(False, why_not="; a thread cannot be ended and started again, executor ray can")
    if recoveries >= max_recoveries:
        return Decision(False, why_not=f"; recovered {recoveries} times, max_recoveries={max_recoveries}")
    needs_time = isinstance(error, ClusterError) or error.machine_lost
    doublings = min(recoveries, 10)  # more would only overflow
    return Decision(True, min(BACK_OFF_S * 2**doublings, LONGEST_BACK_OFF_S) if needs_time else 0.0)


def recovering(attempt: Callable[[int], T], max_recoveries: int, replaceable: Callable[[], bool]) -> T:
    """Return attempt(number of recoveries so far), which is called again whenever a stage is lost.

    Raises:
        StageError, ClusterError: of the attempt that was not repeated; the message says why not.
    """
    for recoveries in count():
        try:
            return attempt(recoveries)
        except (StageError, ClusterError) as error:
            if stopping():  # the signal may have reached the stages, too
                raise KeyboardInterrupt from error
            decision = decide(error, recoveries, max_recoveries, replaceable())
            if not decision.goes_on:
                error.reason += decision.why_not
                raise
            wait = f", in {decision.after_s:g} s" * bool(decision.after_s)
            say(f"{error}; recovering from the newest checkpoint{wait} ({recoveries + 1} of {max_recoveries})")
            time.sleep(decision.after_s)
    raise AssertionError("unreachable: count() never ends")

"""Faults: failures made on purpose, at a given stage, step and phase, to see a run survive them."""

from dataclasses import dataclass
from typing import Literal, get_args

from backlink_ray.errors import ConfigError

Phase = Literal["start", "before_forward", "after_forward", "exchange", "after_step", "checkpoint"]
Kind = Literal["kill", "stop", "hang", "raise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A failure of one stage, once.

    Attributes:
        stage: k, from 0.
        step: of the run, from 0; for a checkpoint, the first one after this step; for start, any.
        phase: start (while the stage is built), before_forward, after_forward (of the tail), exchange (when a message has gone
            one way, and the next one has not), after_step, or checkpoint (when the stage has given its part of the state).
        kind: what happens to the stage's process: SIGKILL, SIGSTOP, an action that never ends, or an exception. kill and stop
            are for executor ray: stages that are threads share their process with the run.
        attempt: the number of recoveries before it; 0 for the first.
        replica: of the stage, from 0.
    """

    stage: int
    step: int = 0
    phase: Phase = "before_forward"
    kind: Kind = "kill"
    attempt: int = 0
    replica: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("phase", get_args(Phase)), ("kind", get_args(Kind))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}")
        for name in ("stage", "step", "attempt", "replica"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; allowed 0 or more")

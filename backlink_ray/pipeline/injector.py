"""Injector: makes stages, in which the faults of their job happen; a stage without faults has nothing of it."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from backlink_ray.pipeline.asyncstage import AsyncStage
from backlink_ray.pipeline.capturedstage import CapturedStage
from backlink_ray.pipeline.schedule import is_link
from backlink_ray.pipeline.stage import Stage
from backlink_ray.pipeline.stageplan import StagePlan
from backlink_ray.train.faults import Fault, Kind
from backlink_ray.train.state import TrainState


def _raise() -> None:
    raise RuntimeError("a fault on purpose")


_HAPPENS: dict[Kind, Callable[[], Any]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: threading.Event().wait(),
    "raise": _raise,
}


def make_stage(plan: StagePlan) -> Stage:
    """Return the stage that the plan's method and engine need, with the faults of its job that are for it and this attempt."""
    job = plan.job
    here = (plan.stage_index, plan.part, job.attempt)
    own = [fault for fault in job.faults if (fault.stage, fault.replica, fault.attempt) == here]
    for fault in own:
        if fault.phase == "start":
            _HAPPENS[fault.kind]()
    kind = CapturedStage if job.engine.graph else AsyncStage if job.method.replay_size else Stage
    stage = kind(plan)
    for fault in own:
        if fault.phase != "start":
            _arm(stage, fault)
    return stage


def _arm(stage: Stage, fault: Fault) -> None:
    """Replace the method of this stage in which the fault happens."""
    happen = _HAPPENS[fault.kind]
    state, perform = stage.state, stage._perform
    name = _action(stage, fault)

    def state_and_fault() -> TrainState:
        found = state()
        if found.step > fault.step:
            happen()
        return found

    def perform_and_fault(action: str, step: int) -> None:
        is_it = (action, step) == (name, fault.step)
        if is_it and fault.phase == "before_forward":
            happen()
        perform(action, step)
        if is_it and fault.phase != "before_forward":
            happen()

    if fault.phase == "checkpoint":
        stage.state = state_and_fault  # type: ignore[method-assign]
    else:
        stage._perform = perform_and_fault  # type: ignore[method-assign]


def _action(stage: Stage, fault: Fault) -> str:
    """Return the action that the fault comes before or after."""
    names = [action.name for action in stage.actions if not action.lag]
    exchanges = [name for name in names if is_link(name)]
    found = {"before_forward": "body_forward", "after_forward": "tail_forward", "exchange": (exchanges or names)[0]}
    return found.get(fault.phase, names[-1])

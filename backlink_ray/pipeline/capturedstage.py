"""CapturedStage: a stage whose computing between two links is recorded as a CUDA graph, and replayed in one launch."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from backlink_ray.methods.state import MethodState
from backlink_ray.pipeline.exchange import Kind, Link
from backlink_ray.pipeline.schedule import Stretch, is_link, stretches
from backlink_ray.pipeline.stage import Stage
from backlink_ray.pipeline.stageplan import StagePlan
from backlink_ray.seeds import seeded
from backlink_ray.train.captured import WARM_UP, check_capture, draw
from backlink_ray.train.evaluation import Evaluation
from backlink_ray.train.optim import Updater
from backlink_ray.train.recorder import Recorder
from backlink_ray.train.state import TrainState


@dataclass(frozen=True, slots=True)
class Recording:
    """A stretch as it was recorded; no Python runs in a replay, so what it left behind is put in place again.

    Attributes:
        replay: does the work, always on the memory of the recording.
        attributes: of the stage, those that it changed.
        method_state: as it left it.
        losses: that it appended; the next replay writes them anew.
    """

    replay: Callable[[], None]
    attributes: dict[str, Any]
    method_state: MethodState
    losses: list[Tensor]


class CapturedStage(Stage):
    """One local module in training, eagerly at first, then stretch by stretch as CUDA graphs.

    A replay reads and writes the memory of the recording, so what crosses a link lies still: messages, inputs and labels are
    copied to one place, what is sent is a copy, the lr is a tensor. A stretch reads results of its own step alone (methods for
    which that is not so are refused), so it is recorded in the first step whose other stretches are, which for one that waits
    for the next stage's answer is a step later. Every graph has memory of its own: sharing it, they would have to be replayed in
    the order of their recording, and a run's first step and its end leave that order. A timeline shows a stretch as its first
    action, and what is recorded is launched, not finished, at its end.

    Raises:
        ConfigError: the method or an optimizer cannot be captured; at a run: a unit cannot.
    """

    def __init__(self, plan: StagePlan) -> None:
        super().__init__(plan)
        names = ("body_update", "tail_update", "replica_update")
        updaters = (self._body_updater, self._tail_updater, self._replica_updater)
        check_capture(self._method, [self.module], updaters)
        self._updaters: dict[str, Updater] = dict(zip(names, updaters, strict=True))
        self._recorder = Recorder(self._device)
        self._stretches = {stretch[0]: stretch for stretch in stretches(self.actions)}
        self._draws, self._evaluates = draw([self.module]), False
        self._still: dict[str, Tensor] = {}
        self._forget()

    def _forget(self) -> None:
        self._recordings: dict[str, Recording] = {}
        self._thread, self._first_step = 0, 0

    def load(self, state: TrainState) -> None:
        super().load(state)
        self._forget()  # they read the momentum that was replaced

    def _perform(self, action: str, step: int) -> None:
        if is_link(action):
            super()._perform(action, step)
        elif action in self._stretches:  # the others are done with the first of their stretch
            self._compute(self._stretches[action], step)

    def _compute(self, stretch: Stretch, step: int) -> None:
        self._place(stretch, step)
        with self._drawing(stretch, step):
            if self._warms_up(step):
                self._recorder.call(lambda: self._do(stretch, step))
            else:
                self._replay(self._recordings.get(stretch[0]) or self._record(stretch, step))

    def _do(self, stretch: Stretch, step: int) -> None:
        for action in stretch:
            super()._perform(action, step)

    def _warms_up(self, step: int) -> bool:
        # cuDNN keeps the kernels it has chosen by thread, and cannot time others while it is recorded.
        if not self._recordings and self._thread != threading.get_ident():
            self._thread, self._first_step = threading.get_ident(), step
        return step < self._first_step + WARM_UP

    def _drawing(self, stretch: Stretch, step: int) -> AbstractContextManager[None]:
        if not self._draws:
            return nullcontext()
        return seeded(self._job.seed, f"step/{stretch[0]}", step, self.module.module_index)

    def _record(self, stretch: Stretch, step: int) -> Recording:
        before, count = dict(vars(self)), len(self._losses)
        replay, _ = self._recorder.record(lambda: self._do(stretch, step))
        changed = {name: value for name, value in vars(self).items() if before.get(name) is not value}
        losses, self._losses[count:] = self._losses[count:], []
        recording = Recording(replay, changed, replace(self._method_state), losses)
        self._recordings[stretch[0]] = recording
        return recording

    def _replay(self, recording: Recording) -> None:
        recording.replay()
        vars(self).update(recording.attributes)
        self._method_state = replace(recording.method_state)
        self._losses += [loss.clone() for loss in recording.losses]

    # What lies still.

    def _place(self, stretch: Stretch, step: int) -> None:
        """Put what the stretch reads of its step where it reads it."""
        for action in stretch:
            if action in self._updaters:
                self._updaters[action].set_lr(self._job.lr(step))
        if "body_forward" in stretch:
            self._put("labels", super()._labels(step))
            if self._plan.is_first or self._method.wants_inputs:
                self._put("inputs", super()._inputs(step))

    def _put(self, name: str, tensor: Tensor) -> Tensor:
        if name in self._still:
            return self._still[name].copy_(tensor)
        self._still[name] = tensor.clone()
        return self._still[name]

    def _inputs(self, step: int) -> Tensor:
        return self._still["inputs"]

    def _labels(self, step: int) -> Tensor:
        return self._still["labels"]

    def _update(self, updater: Updater, gradients: Any, step: int) -> None:
        updater.update(gradients)

    def _tail_forward(self, step: int) -> None:
        if self._method.link_kind == "error":
            # The body is forwarded again before this step's error comes back through the tail, which needs its input.
            self._body_graph.output = self._body_graph.output.clone()
        super()._tail_forward(step)

    def _send(self, link: Link, kind: Kind, step: int, tensor: Tensor) -> None:
        super()._send(link, kind, step, tensor.clone())

    def _receive(self, link: Link, kind: Kind, step: int) -> Tensor:
        found = super()._receive(link, kind, step)
        return found if self._evaluates else self._put(kind, found)

    def evaluate(self, which: str) -> Evaluation | None:
        self._evaluates = True
        try:
            return super().evaluate(which)
        finally:
            self._evaluates = False

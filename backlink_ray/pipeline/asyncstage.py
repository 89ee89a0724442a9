"""AsyncStage: a stage that does not keep step with its neighbours (DGL in mode async)."""

from collections.abc import Sequence

from backlink_ray.pipeline.exchange import Kind
from backlink_ray.pipeline.schedule import Action, async_actions
from backlink_ray.pipeline.stage import Stage


class AsyncStage(Stage):
    """One local module that trains on whatever has arrived; how often it uses a batch depends on the speed of the stages.

    Labels are those of the batch it works on; the learning rate is that of its own step.
    """

    _batch_step = 0

    def _schedule(self) -> Sequence[Action]:
        return async_actions(is_first=self._plan.is_first, is_last=self._plan.is_last)

    def _batch_of(self, step: int) -> int:
        return step if self._plan.is_first else self._batch_step

    def _receive_fresh_activation(self, step: int) -> None:
        with self._waiting():
            self._batch_step, self._x = self._previous.receive_any(Kind.FRESH_ACTIVATION)

    def _send_fresh_activation(self, step: int) -> None:
        self._send(self._next, Kind.FRESH_ACTIVATION, self._batch_of(step), self._body_graph.output)

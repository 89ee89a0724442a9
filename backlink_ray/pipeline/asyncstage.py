"""FreeStage: a stage that does not keep step with its neighbours (mode async)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from backlink_ray.pipeline.exchange import Kind, Link, flatten, unflatten
from backlink_ray.pipeline.schedule import Action, async_actions
from backlink_ray.pipeline.stage import Stage, StagePlan


class AsyncStage(Stage):
    """One local module that trains on whatever has arrived; how often and in which order depends on the stages' speeds.

    Its labels are those of the batch it works on, and its learning rate that of its own step.
    """

    def __init__(self, plan: StagePlan) -> None:
        super().__init__(plan)
        self._batch_step = 0
        self._newest: list[Tensor] = []

    def _schedule(self) -> Sequence[Action]:
        plan, has_tail = self._plan, self._method.linked_units > 0
        return async_actions(is_first=plan.is_first, is_last=plan.is_last, has_tail=has_tail)

    def _batch_of(self, step: int) -> int:
        return step if self._plan.is_first else self._batch_step

    def _receive_fresh_activation(self, step: int) -> None:
        self._batch_step, self._x = self._receive_any(self._previous, Kind.FRESH_ACTIVATION)

    def _replica_refresh(self, step: int) -> None:
        if self._previous.has(Kind.TAIL_WEIGHTS):
            _, vector = self._receive_any(self._previous, Kind.TAIL_WEIGHTS)
            parameters: list[Tensor] = list(self._replica.parameters())
            with torch.no_grad():
                for parameter, weights in zip(parameters, unflatten(vector, parameters), strict=True):
                    parameter.copy_(weights)

    def _send_fresh_activation(self, step: int) -> None:
        self._send(self._next, Kind.FRESH_ACTIVATION, self._batch_of(step), self._body_graph.output)

    def _send_tail_weights(self, step: int) -> None:
        self._send(self._next, Kind.TAIL_WEIGHTS, step, flatten([p.detach() for p in self._tail.parameters()]))

    def _receive_newest_gradient(self, step: int) -> None:
        if self._next.has(Kind.NEWEST_GRADIENT):
            _, vector = self._receive_any(self._next, Kind.NEWEST_GRADIENT)
            self._newest = unflatten(vector, list(self._tail.parameters()))
        self._method_state.link = self._newest

    def _send_newest_gradient(self, step: int) -> None:
        vector, self._replica_gradients = flatten(self._replica_gradients), []
        self._send(self._previous, Kind.NEWEST_GRADIENT, step, vector)

    def _receive_any(self, link: Link, kind: Kind) -> tuple[int, Tensor]:
        with self._waiting():
            return link.receive_any(kind)


def make_stage(plan: StagePlan) -> Stage:
    """Return the stage that the plan's method needs."""
    return AsyncStage(plan) if plan.job.method.replay_size else Stage(plan)

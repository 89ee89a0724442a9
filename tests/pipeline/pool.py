"""Stage actors that outlive a run and take one plan after another: a process that imports torch takes seconds to start."""

from collections.abc import Sequence
from typing import Any

import ray

from backlink_ray.pipeline.actors import _GROUPS, ActorGroup, StageActor, _actor_class
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.pipeline.stage import StagePlan

# A run of a few steps is over when its driver goes on; an actor that still works long after has a fault.
IDLE_TIMEOUT_S = 30.0
LARGEST = 4
POOL: list[Any] = []


class PooledGroup(ActorGroup):
    """An ActorGroup in all but this: its actors, their process ids and their place are there before it and stay after it."""

    def __init__(self, plans: Sequence[StagePlan], resources: StageResources, group: Any) -> None:
        super().__init__(plans, resources, group or "the pool has its place")

    def _start(self, plans: Sequence[StagePlan], resources: StageResources, group: Any) -> None:
        for _ in range(len(POOL), LARGEST):  # all at once, and with any plan: they begin at the same time
            POOL.append(_actor_class().options(num_cpus=0).remote(plans[0]))
        self._actors = POOL[: len(plans)]
        # The threads that take messages have done so, and nothing of another run comes after this.
        ray.get([a.__ray_call__.options(concurrency_group=g).remote(id) for a in POOL for g in set(_GROUPS.values())])
        ray.get([a.__ray_call__.remote(StageActor.__init__, plan) for a, plan in zip(self._actors, plans, strict=True)])
        neighbours = [None, *self._actors, None]
        ray.get([a.connect.remote(neighbours[k], neighbours[k + 2]) for k, a in enumerate(self._actors)])

    @property
    def actors(self) -> list[Any]:
        return self._actors

    def close(self) -> None:
        idle = [actor.ready.remote() for actor in self._actors]
        if ray.wait(idle, num_returns=len(idle), timeout=IDLE_TIMEOUT_S)[1]:
            self._actors = [*POOL]
            super().close()
            POOL.clear()

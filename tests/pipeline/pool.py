"""Stage actors that are reused by many runs, since a process that imports torch takes seconds to start."""

from collections.abc import Sequence
from typing import Any

import ray

from backlink_ray.pipeline.actors import _GROUPS, ActorGroup, StageActor, _actor_class
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.pipeline.stage import StagePlan

# When the driver of a short run continues, the run is over; an actor that is still working long after is faulty.
IDLE_TIMEOUT_S = 30.0
LARGEST = 4
POOL: list[Any] = []


class PooledGroup(ActorGroup):
    """An ActorGroup whose actors and reserved resources already exist and are kept afterwards."""

    def __init__(self, plans: Sequence[StagePlan], resources: StageResources, group: Any) -> None:
        super().__init__(plans, resources, group or "reserved by the pool")

    def _start(self, plans: Sequence[StagePlan], resources: StageResources, group: Any) -> None:
        for _ in range(len(POOL), LARGEST):  # all at once, so that they start at the same time; any plan will do
            POOL.append(_actor_class().options(num_cpus=0).remote(plans[0]))
        self._actors = POOL[: len(plans)]
        # Wait until the threads that take messages are idle, so that no message of an earlier run is left.
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

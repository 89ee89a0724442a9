"""StagePool: the processes of a run's stages; they outlive an executor, so that the next one need not wait for new ones."""

import contextlib
import time
from typing import Any

from backlink_ray.errors import ClusterError
from backlink_ray.pipeline.resources import STAGE, StageResources

# Starting a Python process that imports torch takes seconds; after two minutes something is wrong.
READY_TIMEOUT_S = 120.0
# When a stage has failed, how long the others may take to end what they are doing; then their processes are ended, too.
RELEASE_TIMEOUT_S = 5.0
# A shorter run is soon repeated: it is not worth the start of a process that waits to replace another.
STANDBY_AFTER_S = 30.0
# What must be free on the machine for that process: torch takes a quarter of it.
STANDBY_MIB = 2048.0
# A busy process answers at once; a machine under load, within this.
ANSWER_TIMEOUT_S = 1.0


class StagePool:
    """The stage processes of one run, in one placement group; before they are needed, nothing is started and Ray is not imported.

    Args:
        resources: what each stage reserves.
        group: an existing placement group with bundle 1 + k for stage k, such as a Tune trial's; None creates one.
        ready_timeout_s: longest wait for room in the cluster, and for the processes to start.

    Attributes:
        attempt: number of times that stages were built.
        actors: one per stage.
        homes: where each lives, or did: until a new one has settled, also that of a lost one.
    """

    def __init__(
        self, resources: StageResources = STAGE, group: Any = None, ready_timeout_s: float = READY_TIMEOUT_S
    ) -> None:
        self.ready_timeout_s = ready_timeout_s
        self.attempt = 0
        self.actors: list[Any] = []
        self._resources, self._group, self._owned = resources, group, group is None
        self.homes: dict[int, Any] = {}
        self._standby: Any = None
        self._reach: Any = None
        self._lost_machine = ""
        self._started = time.monotonic()

    def use_gpus(self) -> bool:
        """Return whether stages get GPUs: those of a cluster that has any, unless the resources say otherwise."""
        import ray  # here and below: a run on one device needs no Ray

        self._resources = self._resources.where_gpus_are(ray.cluster_resources().get("GPU", 0.0))
        return bool(self._resources.gpus_per_stage)

    def take(self, num_stages: int) -> list[Any]:
        """Return the actors for a new attempt: those that are still there, the one that stands by, and new ones."""
        from backlink_ray.pipeline.reach import Reach

        self.attempt += 1
        if self._lost_machine:
            self._reach.wait_until_known(self._lost_machine)
            self._lost_machine = ""
        self._reach = Reach()
        if self._group is None:
            self._group = self._reserve(num_stages)
        self.actors += [None] * (num_stages - len(self.actors))
        for k in range(num_stages):
            if self.actors[k] is None:
                self.actors[k] = self._replacement(k) or self._start(k)
        return self.actors[:num_stages]

    def settle(self, homes: list[Any]) -> list[str]:
        """Note where the actors of this attempt live; return the GPUs of each: those of the actor that it replaces, if any."""
        for k, home in enumerate(homes):
            self.homes.setdefault(k, home)
        return [self.homes[k].devices for k in range(len(homes))]

    @property
    def nodes(self) -> list[str]:
        """Return the machine of each stage of this attempt."""
        return [self.homes[k].node_id for k in range(len(self.actors))]

    def _reserve(self, num_stages: int) -> Any:
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        cluster = ray.cluster_resources()
        self._resources.check(num_stages, cluster.get("CPU", 0.0), cluster.get("GPU", 0.0))
        group = placement_group(self._resources.bundles(num_stages), strategy="PACK")
        if not group.wait(self.ready_timeout_s):
            remove_placement_group(group)
            raise ClusterError(
                f"the cluster had no room for {num_stages} stages within {self.ready_timeout_s:g} s: it is busy; wait longer "
                "with ready_timeout_s"
            )
        return group

    def _start(self, k: int, **reserved: float) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from backlink_ray.pipeline.stageactor import actor_class

        own = {"num_cpus": self._resources.cpus_per_stage, "num_gpus": self._resources.gpus_per_stage}
        bundle = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=1 + k)
        return actor_class().options(**(reserved or own), scheduling_strategy=bundle).remote()

    def _replacement(self, k: int) -> Any:
        """Return the actor that stands by, if it is ready and on the machine of the one it replaces, else None."""
        import ray

        before, actor = self.homes.pop(k, None), self._standby
        if actor is None or before is None:
            return None
        home = actor.ready.remote()
        if not ray.wait([home], timeout=ANSWER_TIMEOUT_S)[0]:
            return None  # it is still starting
        self._standby, found = None, answer_of(home)
        if not isinstance(found, Exception) and found.node_id == before.node_id:
            # It reserves nothing, so Ray has given it no GPU; those of the lost actor's bundle are still this run's.
            self.homes[k] = found._replace(devices=before.devices)
            return actor
        _kill(actor)
        return None

    def tend(self, plan: Any) -> None:
        """Check that the cluster is there, and start the process that stands by, once the run is long enough and has room.

        Args:
            plan: of any stage of the run, for which that process warms up.
        """
        may_start = self._reach.check() and time.monotonic() - self._started > STANDBY_AFTER_S
        if self._standby is None and may_start and self._has_room():
            self._standby = self._start(0, num_cpus=0, num_gpus=0)
            self._standby.warm_up.remote(plan)

    def _has_room(self) -> bool:
        """Return whether the machine of stage 0 has memory for the process that stands by, now that all stages work."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # it is dead, or has not answered
            return 0 in self.homes and ray.get(self.actors[0].free_mib.remote(), timeout=ANSWER_TIMEOUT_S) > STANDBY_MIB
        return False

    def end(self, k: int) -> bool:
        """End the process of a stage that was lost; return whether its machine is gone, too.

        Raises:
            ClusterError: this machine's own Ray process is gone.
        """
        _kill(self.actors[k])
        self.actors[k] = None
        if self._reach is None or k not in self.homes:
            return False
        self._reach.check_own()
        machine = self.homes[k].node_id
        self._lost_machine = machine if self._reach.is_gone(machine) else ""
        return bool(self._lost_machine)

    def release(self) -> None:
        """Stop every stage, and end the processes that do not stop; the others take a new plan when the next attempt begins."""
        import ray

        living = [k for k, actor in enumerate(self.actors) if actor is not None]
        for k in living:
            self.actors[k].abort.remote(self.attempt)
        free = [self.actors[k].ready.remote() for k in living]
        ray.wait(free, num_returns=len(free), timeout=RELEASE_TIMEOUT_S) if free else None
        for k, ref in zip(living, free, strict=True):
            if not ray.wait([ref], timeout=0)[0] or isinstance(answer_of(ref), Exception):
                _kill(self.actors[k])
                self.actors[k] = None

    def close(self) -> None:
        """End all processes and give back what was reserved."""
        if self._reach and self._reach.is_lost:
            return  # Ray would wait for what is gone
        for actor in (*self.actors, self._standby):
            _kill(actor)
        self.actors, self._standby, self.homes = [], None, {}
        if self._owned and self._group is not None:
            from ray.util.placement_group import remove_placement_group

            with contextlib.suppress(Exception):  # Ray itself may have shut down
                remove_placement_group(self._group)
            self._group = None

    def __enter__(self) -> "StagePool":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def answer_of(ref: Any) -> Any:
    """Return the result of a call that has ended, or the exception that it raised."""
    import ray

    try:
        return ray.get(ref)
    except Exception as error:
        return error


def _kill(actor: Any) -> None:
    if actor is None:
        return  # a pool that has started nothing has no need of Ray
    import ray

    with contextlib.suppress(Exception):  # Ray itself may have shut down
        ray.kill(actor, no_restart=True)

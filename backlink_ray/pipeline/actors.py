"""Actors: the same stages, each in a Ray actor on its own device, anywhere in the cluster."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from backlink_ray.errors import ConfigError
from backlink_ray.local.weights import copy_weights, state_of
from backlink_ray.pipeline.asyncstage import make_stage
from backlink_ray.pipeline.controller import Outcome, PipelineExecutor, StageGroup, nothing, raise_first_failure
from backlink_ray.pipeline.exchange import Kind, Link, Mailbox, NoLink
from backlink_ray.pipeline.objectstore import ObjectStoreLink
from backlink_ray.pipeline.resources import STAGE, StageResources
from backlink_ray.pipeline.stage import StagePlan, plan_stages
from backlink_ray.processes import remember_descendants
from backlink_ray.train.executor import ChunkReport, Job, never
from backlink_ray.train.state import TrainState

# Starting a Python process that imports torch takes seconds; after two minutes something is wrong.
READY_TIMEOUT_S = 120.0
# Once a stage has failed, how long the driver waits for the others to report how they ended.
FAILURE_GRACE_S = 2.0
# How often the driver asks working stages for their position: rarely enough to cost nothing, often enough to find a hanging
# stage soon after stage_timeout_s, even if no neighbour waits for it.
HEARTBEAT_S = 1.0


class StageActor:
    """Hosts a Stage in a Ray actor; separate threads take its messages and report its position."""

    def __init__(self, plan: StagePlan) -> None:
        torch.set_num_threads(plan.job.torch_threads)
        self._plan = plan
        size = max(1, plan.job.method.replay_size)
        self._from_previous, self._from_following = Mailbox(size), Mailbox(size)
        self._stage = make_stage(plan)

    def ready(self) -> int:
        """Return the process id; the first call returns once the stage is built."""
        return os.getpid()

    def connect(self, previous: Any, following: Any) -> None:
        """Link the stage to the neighbouring actors; None stands for no neighbour."""
        before = self._link(previous.deliver_following, self._from_previous) if previous else NoLink()
        after = self._link(following.deliver_previous, self._from_following) if following else NoLink()
        self._stage.connect(before, after)

    def _link(self, deliver: Any, inbox: Mailbox) -> Link:
        job = self._plan.job
        return ObjectStoreLink(deliver, inbox, torch.device(job.devices[0]), job.stage_timeout_s)

    def deliver_previous(self, kind: str, step: int, payload: Any) -> None:
        """Take a message from the previous stage."""
        self._from_previous.deliver(Kind(kind), step, payload, self._plan.job.stage_timeout_s)

    def deliver_following(self, kind: str, step: int, payload: Any) -> None:
        """Take a message from the following stage."""
        self._from_following.deliver(Kind(kind), step, payload, self._plan.job.stage_timeout_s)

    def position(self) -> tuple[int, str]:
        """Return (step, action) of the stage, also while its loop runs."""
        return self._stage.position

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of the stage's steps, also while its loop runs."""
        return getattr(self._stage.steps, name)(*arguments)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the stage."""
        return getattr(self._stage, name)(*arguments)


_GROUPS = {
    "deliver_previous": "from_previous",
    "deliver_following": "from_following",
    "position": "watch",
    "ask": "watch",
}


def _actor_class() -> Any:
    """Decorate StageActor: one thread for the loop, one for each neighbour's messages, one for questions."""
    methods = {name: ray.method(concurrency_group=group)(getattr(StageActor, name)) for name, group in _GROUPS.items()}
    # A step is not idempotent, so Ray must restart and retry nothing by itself.
    options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0}
    options["concurrency_groups"] = dict.fromkeys(_GROUPS.values(), 1)
    return ray.remote(**options)(type("StageActor", (StageActor,), methods))


class ActorGroup(StageGroup):
    """The stages of one run as actors in one placement group."""

    def __init__(self, plans: Sequence[StagePlan], resources: StageResources, group: PlacementGroup | None) -> None:
        self._owned = _reserve(resources, len(plans)) if group is None else None
        self._actors: list[Any] = []
        self._stage_timeout_s = plans[0].job.stage_timeout_s
        try:
            self._start(plans, resources, self._owned if group is None else group)
        except BaseException:
            self.close()
            raise

    def _start(self, plans: Sequence[StagePlan], resources: StageResources, group: Any) -> None:
        reserved = {"num_cpus": resources.cpus_per_stage, "num_gpus": resources.gpus_per_stage}
        for plan in plans:
            _check_sendable(plan)
        cls = _actor_class()
        for k, plan in enumerate(plans):
            bundle = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=1 + k)
            self._actors.append(cls.options(**reserved, scheduling_strategy=bundle).remote(plan))
        self.process_ids = self._wait([actor.ready.remote() for actor in self._actors], READY_TIMEOUT_S)
        remember_descendants()
        around = zip([None, *self._actors], self._actors, [*self._actors[1:], None], strict=False)
        self._wait([actor.connect.remote(before, after) for before, actor, after in around], READY_TIMEOUT_S)

    def call(self, name: str, *arguments: Any, meanwhile: Callable[[], None] = nothing) -> list[Any]:
        shared = [ray.put(argument) for argument in arguments]  # pickled once: a state is large
        return self._wait([actor.call.remote(name, *shared) for actor in self._actors], None, meanwhile)

    def ask(self, name: str, *arguments: Any) -> list[Any]:
        answers = [actor.ask.remote(name, *arguments) for actor in self._actors]
        return list(ray.get(answers, timeout=self._stage_timeout_s))

    def _wait(self, refs: list[Any], timeout_s: float | None, meanwhile: Callable[[], None] = nothing) -> list[Any]:
        pending, deadline = list(refs), math.inf if timeout_s is None else time.monotonic() + timeout_s
        while pending:
            left = max(0.0, min(HEARTBEAT_S, deadline - time.monotonic()))
            done, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not done and time.monotonic() >= deadline:
                raise ConfigError(
                    f"the stages were not ready within {timeout_s:g} s; is the cluster busy or too small?"
                )
            if (done and _error_of(done[0]) is not None) or (not done and timeout_s is None and not self._all_answer()):
                self._raise_first_failure(refs)
            try:
                meanwhile()
            except ray.exceptions.RayError:
                self._raise_first_failure(refs)
        return list(ray.get(refs))

    def _all_answer(self) -> bool:
        """Return whether every stage reports its position; a dead one counts, since its pending call fails as well."""
        positions = [actor.position.remote() for actor in self._actors]
        return not ray.wait(positions, num_returns=len(positions), timeout=self._stage_timeout_s)[1]

    def _raise_first_failure(self, refs: list[Any]) -> None:
        positions = [actor.position.remote() for actor in self._actors]
        ray.wait([*positions, *refs], num_returns=len(positions) + len(refs), timeout=FAILURE_GRACE_S)
        raise_first_failure([_outcome(ref, position) for ref, position in zip(refs, positions, strict=True)])

    def close(self) -> None:
        for actor in self._actors:
            with contextlib.suppress(Exception):  # Ray itself may have shut down
                ray.kill(actor, no_restart=True)
        self._actors = []
        if self._owned is not None:
            with contextlib.suppress(Exception):
                remove_placement_group(self._owned)
            self._owned = None


def _check_sendable(plan: StagePlan) -> None:
    """Raise ConfigError that names the part that cannot be pickled; Ray's own error prints all the data instead."""
    module = plan.job.modules[0]
    units = ((f"units[{index}]", unit) for index, unit in enumerate(module.units, module.chain.first_index))
    rest = ((name, getattr(plan.job, name)) for name in ("method", "loss", "optimizer", "lr"))
    for name, part in (*units, (module.head_name, module.head), *rest):
        try:
            ray.cloudpickle.dumps(part)
        except Exception as error:  # whatever a user's own __reduce__ raises
            raise ConfigError(
                f"{name} cannot be sent to the process of its stage: {error}; allowed: what pickle takes, or executor "
                "threads or local"
            ) from error


def _reserve(resources: StageResources, num_stages: int) -> PlacementGroup:
    cluster = ray.cluster_resources()
    resources.check(num_stages, cluster.get("CPU", 0.0), cluster.get("GPU", 0.0))
    group: PlacementGroup = placement_group(resources.bundles(num_stages), strategy="PACK")
    if not group.wait(READY_TIMEOUT_S):
        remove_placement_group(group)
        raise ConfigError(f"the cluster had no room for {num_stages} stages within {READY_TIMEOUT_S:g} s: it is busy")
    return group


def _error_of(ref: Any) -> BaseException | None:
    try:
        ray.get(ref)
    except ray.exceptions.RayError as error:
        return error
    except Exception as error:  # a task's own exception arrives as its own class
        return error
    return None


def _outcome(call: Any, position: Any) -> Outcome:
    answered, ended = (bool(ray.wait([ref], timeout=0)[0]) for ref in (position, call))
    where = ray.get(position) if answered and _error_of(position) is None else (-1, "")
    if not ended:
        silent = None if answered else TimeoutError("its process does not answer: it hangs, or its machine is gone")
        return Outcome(silent, silent=not answered, position=where)
    error = _error_of(call)
    died = isinstance(error, (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError))
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        cause.__cause__ = error  # its message is the stage's own traceback
        error = cause
    return Outcome(error, died, position=where)


class RayExecutor(PipelineExecutor):
    """The pipeline as Ray actors.

    Args:
        job: what to train; its `devices` are replaced: "cuda" if stages have GPUs, else "cpu".
        resources: what each stage reserves.
        group: an existing placement group with bundle 1 + k for stage k, such as a Tune trial's; None creates one.

    Raises:
        ConfigError: the cluster is too small for the stages, or too busy.
    """

    name = "ray"

    def __init__(self, job: Job, resources: StageResources = STAGE, group: PlacementGroup | None = None) -> None:
        own = resources.where_gpus_are(ray.cluster_resources().get("GPU", 0.0))
        plans = plan_stages(job.with_parts(devices=("cuda" if own.gpus_per_stage else "cpu",)))
        self.actors = ActorGroup(plans, own, group)
        super().__init__(self.actors, plans)
        self._ahead = False  # the stages, in their own processes, have weights that the job's modules lack

    def train(self, num_steps: int, stop: Callable[[], bool] = never) -> ChunkReport:
        self._ahead = False  # what a failed run has learned is not fetched
        report = super().train(num_steps, stop)
        self._ahead = True
        return report

    def load(self, state: TrainState) -> None:
        super().load(state)
        self._ahead = True

    def state(self) -> TrainState:
        """Return the run's state, and give its weights to the job's modules, so that `close` need not fetch them again."""
        state = super().state()
        copy_weights(state_of(self._modules), state.weights)
        self._ahead = False
        return state

    def close(self, *, failed: bool = False) -> None:
        try:
            if self._ahead and not failed:
                self.state()
        finally:
            self._ahead = False
            super().close(failed=failed)

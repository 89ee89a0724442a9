"""StageActor: hosts one stage after another in a Ray actor, whose process takes a new plan when its run recovers."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import ray
import torch

from backlink_ray.allocator import prepare_process
from backlink_ray.measure.metrics import free_memory_mib
from backlink_ray.pipeline.collective import Address, Meeting, join
from backlink_ray.pipeline.exchange import Kind, Link, Mailbox, NoLink
from backlink_ray.pipeline.group import Group
from backlink_ray.pipeline.injector import make_stage
from backlink_ray.pipeline.objectstore import ObjectStoreLink
from backlink_ray.pipeline.progress import UNKNOWN, Position
from backlink_ray.pipeline.stage import Stage
from backlink_ray.pipeline.stageplan import StagePlan

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Home(NamedTuple):
    """Where an actor lives: its process, its node, and the GPUs that Ray gave it."""

    process_id: int
    node_id: str
    devices: str


class StageActor:
    """Hosts a Stage in a Ray actor; separate threads take its messages, report its position and stop it."""

    def __init__(self) -> None:
        # A process that stands by gets its GPU in `build`. A user's module may call torch.cuda.is_available() when a plan is
        # unpickled, before that: asked in this way, CUDA itself does not start, and so does not read what is visible for good.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        self._attempt = -1
        self._from_previous, self._from_following = Mailbox(), Mailbox()
        self._from_parts: list[Mailbox] = []
        self._stage: Stage | None = None

    def ready(self) -> Home:
        """Return where the actor lives, once it has started and does nothing else."""
        return Home(os.getpid(), ray.get_runtime_context().get_node_id(), os.environ.get(_VISIBLE, ""))

    def free_mib(self) -> float:
        """Return the memory that is free on the actor's machine, also while its stage's loop runs."""
        return free_memory_mib()

    def warm_up(self, plan: StagePlan) -> None:
        """Import what a stage of the run needs, which takes seconds, without building one or using a GPU; not run on one yet."""
        prepare_process()
        plan.job.optimizer([torch.nn.Parameter(torch.zeros(1))])

    def build(self, attempt: int, plan: StagePlan, devices: str) -> None:
        """Drop the stage of an earlier attempt, if any, and build one.

        Args:
            attempt: number of this attempt at the run; a message of another one is dropped.
            plan: what the stage is built from.
            devices: the GPUs of the actor whose place this one takes; "" keeps its own.
        """
        if devices:  # CUDA reads it when it first starts, which must not be earlier, see __init__; not run on a GPU yet
            os.environ[_VISIBLE] = devices
        torch.set_num_threads(plan.job.torch_threads)
        size = max(1, plan.job.method.replay_size)
        if self._stage:
            self._stage.connect(NoLink(), NoLink())
        self._stage = None  # its memory is free before the next one is built
        self._attempt, self._plan = attempt, plan
        self._from_previous, self._from_following = Mailbox(size), Mailbox(size)
        self._from_parts = [Mailbox() for _ in range(plan.job.replicas)]
        self._stage = make_stage(plan)

    def connect(self, previous: Any, following: Any, same: Sequence[Any]) -> None:
        """Link the stage to other actors through the object store.

        Args:
            previous, following: the neighbours; None stands for none.
            same: all actors of this stage's module, in the order of their parts.
        """
        before = self._link(previous.deliver_following.remote, self._from_previous) if previous else NoLink()
        after = self._link(following.deliver_previous.remote, self._from_following) if following else NoLink()
        part = self._plan.part
        links = [
            None if d == part else self._link(partial(actor.deliver_part.remote, part), self._from_parts[d])
            for d, actor in enumerate(same)
        ]
        self._built.connect(before, after, Group(links))

    def _link(self, deliver: Any, inbox: Mailbox) -> Link:
        job = self._plan.job
        return ObjectStoreLink(deliver, self._attempt, inbox, torch.device(job.devices[0]), job.stage_timeout_s)

    def listen(self) -> Address:
        """Return where the following stage can join this one, see `Meeting`."""
        self._meeting = Meeting(ray.util.get_node_ip_address())
        return self._meeting.address

    def join(
        self, previous: Address | None, following: Address | None, same: Sequence[Address], timeout_s: float
    ) -> None:
        """Link the stage to others through torch.distributed; of two stages, the earlier one listens.

        Args:
            previous, following: where the neighbours listen; None for none.
            same: where all stages of this one's module listen, in the order of their parts.
            timeout_s: longest wait for another stage.
        """
        k, job, part = self._plan.stage_index, self._plan.job, self._plan.part
        how, host = (torch.device(job.devices[0]), job.stage_timeout_s, timeout_s), self._meeting.address[0]
        before = join(previous, host, self._from_previous, f"stage {k - 1}", *how) if previous else NoLink()
        after = self._meeting.link(self._from_following, f"stage {k + 1}", *how) if following else NoLink()
        links: list[Link | None] = []
        # All meet the others in one order, so that no two wait for each other in vain.
        for d, (address, inbox) in enumerate(zip(same, self._from_parts, strict=True)):
            name = f"replica {d} of stage {k}"
            if d == part:
                links.append(None)
            elif d < part:
                links.append(join(address, host, inbox, name, *how, who=f"part {part}"))
            else:
                links.append(self._meeting.link(inbox, name, *how, who=f"part {d}"))
        self._built.connect(before, after, Group(links))

    def deliver_previous(self, attempt: int, kind: str, step: int, payload: Any) -> None:
        """Take a message from the previous stage."""
        self._take(self._from_previous, attempt, kind, step, payload)

    def deliver_following(self, attempt: int, kind: str, step: int, payload: Any) -> None:
        """Take a message from the following stage."""
        self._take(self._from_following, attempt, kind, step, payload)

    def deliver_part(self, part: int, attempt: int, kind: str, step: int, payload: Any) -> None:
        """Take a message from the stage of the same module that has another part of the batch."""
        self._take(self._from_parts[part], attempt, kind, step, payload)

    def _take(self, inbox: Mailbox, attempt: int, kind: str, step: int, payload: Any) -> None:
        if attempt == self._attempt:  # else it is late: sent before the stages were built anew
            inbox.deliver(Kind(kind), step, payload, self._plan.job.stage_timeout_s)

    def position(self) -> Position:
        """Return where the stage is, also while its loop runs."""
        return self._stage.progress.position if self._stage else UNKNOWN

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of the stage's steps, also while its loop runs."""
        return getattr(self._built.steps, name)(*arguments)

    def abort(self, attempt: int) -> None:
        """End the waits of this attempt's stage: its call ends with LinkAbortedError as soon as it would wait again."""
        # Read before the attempt, which `build` changes before the inboxes.
        inboxes, stage = (self._from_previous, self._from_following, *self._from_parts), self._stage
        if attempt == self._attempt:
            for inbox in inboxes:
                inbox.abort("another stage failed")
            if stage:
                stage.steps.abort()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the stage."""
        return self._built.progress.call(getattr(self._built, name), *arguments)

    @property
    def _built(self) -> Stage:
        assert self._stage, "build comes first"
        return self._stage


GROUPS = {
    "deliver_previous": "from_previous", "deliver_following": "from_following", "deliver_part": "from_parts",
    "position": "watch", "ask": "watch", "abort": "watch", "free_mib": "watch",
}  # fmt: skip


def actor_class() -> Any:
    """Decorate StageActor: a thread for the loop, one for each neighbour's messages, one for parts, one for who watches."""
    methods = {name: ray.method(concurrency_group=group)(getattr(StageActor, name)) for name, group in GROUPS.items()}
    # A step is not idempotent, so Ray must restart and retry nothing by itself.
    options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0}
    options["concurrency_groups"] = dict.fromkeys(GROUPS.values(), 1)
    return ray.remote(**options)(type("StageActor", (StageActor,), methods))

"""Links: the conformance suite on each back-end, and the mailbox."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import backlink_ray as bl
from backlink_ray.errors import LinkAbortedError, LinkError
from backlink_ray.pipeline.exchange import CAPACITY, Kind, Mailbox, QueueLink, flatten, unflatten
from tests.examples import job
from tests.pipeline.links import RULES, Pair

CPU = torch.device("cpu")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_queue_link(rule: Callable[[Pair], None]) -> None:
    here, there = Mailbox(), Mailbox()
    rule((QueueLink(here, there, CPU, 0.5), QueueLink(there, here, CPU, 0.5)))


class End:
    """A stage actor's end of a link, used from the test."""

    def __init__(self, actor: Any, side: str) -> None:
        self._actor, self._side = actor, side

    def _call(self, name: str, *arguments: Any) -> Any:
        import ray

        side = self._side
        done = self._actor.__ray_call__.remote(lambda a: getattr(getattr(a._stage, side), name)(*arguments))
        try:
            return ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise LinkError(str(error.cause)) from error

    def send(self, kind: Kind, step: int, tensor: torch.Tensor) -> None:
        self._call("send", kind, step, tensor)

    def receive(self, kind: Kind, step: int) -> torch.Tensor:
        return self._call("receive", kind, step).clone()  # type: ignore[no-any-return]

    def receive_any(self, kind: Kind) -> tuple[int, torch.Tensor]:
        step, tensor = self._call("receive_any", kind)
        return step, tensor.clone()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", ["objectstore", "collective"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_links_between_actors(rule: Callable[[Pair], None], transport: str, ray_here: None) -> None:
    """Between the pipeline's actors, whose threads keep messages in order."""
    from backlink_ray.pipeline.actors import RayExecutor
    from tests.pipeline.pool import shared_pool

    pool = shared_pool()
    RayExecutor(job(bl.GLL(), 2, stage_timeout_s=0.5, transport=transport), pool)
    left, right, *_ = pool.actors
    rule((End(left, "_next"), End(right, "_previous")))


def test_a_full_mailbox_makes_the_sender_wait() -> None:
    box = Mailbox()
    for step in range(CAPACITY):
        box.deliver(Kind.ACTIVATION, step, None, 0.1)
    with pytest.raises(LinkError, match=rf"{Kind.ACTIVATION} of step {CAPACITY} .* 0\.1 s"):
        box.deliver(Kind.ACTIVATION, CAPACITY, None, 0.1)
    threading.Timer(0.1, box.take, (Kind.ACTIVATION, 0, 1.0)).start()
    box.deliver(Kind.ACTIVATION, CAPACITY, None, 5.0)


@pytest.mark.timeout(20)
def test_abort_ends_every_wait() -> None:
    box = Mailbox()
    threading.Timer(0.05, box.abort, ("stage 2 failed",)).start()
    with pytest.raises(LinkAbortedError, match="stage 2 failed"):
        box.take(Kind.ACTIVATION, 0, 60.0)
    with pytest.raises(LinkAbortedError):
        box.deliver(Kind.ACTIVATION, 0, None, 60.0)


def test_flatten_and_back() -> None:
    tensors = [torch.randn(2, 3), torch.randn(4), torch.randn(1, 1, 5)]
    back = unflatten(flatten(tensors), tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, back, strict=True))
    assert unflatten(flatten([]), []) == []

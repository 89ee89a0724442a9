"""Links: the conformance suite on each back-end, and the mailbox."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from backlink_ray.errors import LinkAbortedError, LinkError
from backlink_ray.pipeline.exchange import CAPACITY, Kind, Mailbox, NoLink, QueueLink, flatten, unflatten
from tests.pipeline.links import RULES, Pair

CPU = torch.device("cpu")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_queue_link(rule: Callable[[Pair], None]) -> None:
    here, there = Mailbox(), Mailbox()
    rule((QueueLink(here, there, CPU, 0.5), QueueLink(there, here, CPU, 0.5)))


class Peer:
    """An actor that owns a mailbox, as a stage does, and the other end of the link."""

    def __init__(self) -> None:
        self.box = Mailbox()

    def connect(self, other: Any, side: str) -> None:
        from backlink_ray.pipeline.objectstore import ObjectStoreLink

        self.link = ObjectStoreLink(other, side, self.box, CPU, 0.5)

    def deliver_previous(self, kind: str, step: int, payload: Any) -> None:
        self.box.deliver(Kind(kind), step, payload, 0.5)

    def deliver_following(self, kind: str, step: int, payload: Any) -> None:
        self.box.deliver(Kind(kind), step, payload, 0.5)

    def send(self, kind: str, step: int, tensor: torch.Tensor) -> None:
        self.link.send(Kind(kind), step, tensor)

    def receive(self, kind: str, step: int) -> torch.Tensor:
        return self.link.receive(Kind(kind), step).clone()

    def receive_any(self, kind: str) -> tuple[int, torch.Tensor]:
        return self.link.receive_any(Kind(kind))

    def has(self, kind: str) -> bool:
        return self.link.has(Kind(kind))


class Remote:
    """An actor's end of a link, called from the test."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def send(self, kind: Kind, step: int, tensor: torch.Tensor) -> None:
        import ray

        ray.get(self.actor.send.remote(str(kind), step, tensor))

    def receive(self, kind: Kind, step: int) -> torch.Tensor:
        import ray

        try:
            return ray.get(self.actor.receive.remote(str(kind), step)).clone()  # type: ignore[no-any-return]
        except ray.exceptions.RayTaskError as error:
            raise LinkError(str(error.cause)) from error

    def receive_any(self, kind: Kind) -> tuple[int, torch.Tensor]:
        import ray

        step, tensor = ray.get(self.actor.receive_any.remote(str(kind)))
        return step, tensor.clone()

    def has(self, kind: Kind) -> bool:
        import ray

        return bool(ray.get(self.actor.has.remote(str(kind))))


@pytest.fixture(scope="module")
def peers(ray_here: None) -> list[Any]:
    import ray

    cls = ray.remote(num_cpus=0.1, max_concurrency=4)(Peer)
    return [cls.remote(), cls.remote()]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_object_store_link(rule: Callable[[Pair], None], peers: list[Any]) -> None:
    import ray

    left, right = peers
    ray.get([left.__ray_call__.remote(lambda p: setattr(p, "box", Mailbox())) for p in (left,)])
    ray.get([right.__ray_call__.remote(lambda p: setattr(p, "box", Mailbox())) for p in (right,)])
    ray.get([left.connect.remote(right, "previous"), right.connect.remote(left, "following")])
    rule((Remote(left), Remote(right)))


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


def test_nobody_is_beyond_the_ends() -> None:
    with pytest.raises(AssertionError):
        NoLink().send(Kind.ACTIVATION, 0, torch.empty(0))
    with pytest.raises(AssertionError):
        NoLink().receive(Kind.ACTIVATION, 0)

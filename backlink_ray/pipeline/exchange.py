"""Exchange: what travels between two stages, and the link that carries it."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from backlink_ray.errors import LinkAbortedError, LinkError
from backlink_ray.pipeline.progress import wait_patiently
from backlink_ray.pipeline.queues import FifoQueue, ReplayQueue


class Kind(StrEnum):
    """What a message is.

    The activation at a cut, its error, and the parameter gradients of a tail from either side of the link; between stages
    that do not keep step, an activation that may be used more than once; between the stages of one module, what each has
    computed from its part of the batch.
    """

    ACTIVATION = "activation"
    LOCAL_GRADIENT = "local_gradient"
    LINK_GRADIENT = "link_gradient"
    ERROR = "error"
    FRESH_ACTIVATION = "fresh_activation"
    PART = "part"


# How many messages of one kind may wait for a stage. Two keep a fast sender busy while the receiver computes; more would
# only hold more activations in memory.
CAPACITY = 2


class Mailbox:
    """Messages waiting for one stage from one neighbour; bounded, each kind in its own order.

    Args:
        replay_size: number of activations kept for a stage that does not keep step.

    Attributes:
        replay: these activations.
        aborted: why every wait ends; "" if it does not.
    """

    def __init__(self, replay_size: int = 1) -> None:
        self._queues: dict[Kind, FifoQueue | ReplayQueue] = {kind: FifoQueue(CAPACITY) for kind in Kind}
        self._queues[Kind.FRESH_ACTIVATION] = self.replay = ReplayQueue(replay_size)
        self._changed = threading.Condition()
        self.aborted = ""

    def deliver(self, kind: Kind, step: int, payload: Any, timeout_s: float) -> None:
        """Add a message; waits while there is no room, LinkError after `timeout_s`."""
        with self._changed:
            self._wait(self._queues[kind].has_room, f"{kind} of step {step} had no room", timeout_s)
            self._queues[kind].put((step, payload))
            self._changed.notify_all()

    def take(self, kind: Kind, step: int, timeout_s: float) -> Any:
        """Return the payload of the next message of a kind; LinkError if none arrives in time or it is of another step."""
        found, payload = self._next(kind, f"{kind} of step {step} did not arrive", timeout_s)
        if found != step:
            raise LinkError(f"{kind} of step {step} was expected, but that of step {found} arrived")
        return payload

    def take_any(self, kind: Kind, timeout_s: float) -> tuple[int, Any]:
        """Return the next message of a kind, whatever its step, as (step, payload); LinkError if none arrives in time."""
        return self._next(kind, f"{kind} did not arrive", timeout_s)

    def _next(self, kind: Kind, what: str, timeout_s: float) -> tuple[int, Any]:
        with self._changed:
            self._wait(lambda: len(self._queues[kind]) > 0, what, timeout_s)
            message = self._queues[kind].take()
            self._changed.notify_all()
        return message

    def abort(self, reason: str) -> None:
        """End every present and future wait with LinkAbortedError."""
        with self._changed:
            self.aborted = reason
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool], what: str, timeout_s: float) -> None:
        def is_over() -> bool:
            return ready() or bool(self.aborted)

        is_in_time = wait_patiently(lambda seconds: self._changed.wait_for(is_over, seconds), timeout_s)
        if self.aborted:
            raise LinkAbortedError(f"{what}: {self.aborted}")
        if not is_in_time:
            raise LinkError(f"{what} within {timeout_s:g} s; the neighbour is slower than that, hangs or is gone")


class Link(ABC):
    """One stage's connection to one neighbour. Back-ends: `QueueLink` here, `ObjectStoreLink` and `CollectiveLink` over Ray."""

    def close(self) -> None:  # noqa: B027 most have nothing to end
        """End what the link has started; nothing is sent or received any more."""

    @abstractmethod
    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        """Send a tensor, which the sender must not change afterwards; returns before it is received."""

    @abstractmethod
    def receive(self, kind: Kind, step: int) -> Tensor:
        """Return the tensor of this kind and step on this stage's device; LinkError if it does not arrive in time."""

    @abstractmethod
    def receive_any(self, kind: Kind) -> tuple[int, Tensor]:
        """Return the next tensor of this kind with its step; LinkError if none arrives in time."""


class QueueLink(Link):
    """Between threads of one process: the tensor itself is passed on, and copied only to another device.

    Args:
        inbox: where the neighbour's messages arrive.
        outbox: where this stage's messages go.
        device: of this stage.
        timeout_s: longest wait for a message or for room.
    """

    def __init__(self, inbox: Mailbox, outbox: Mailbox, device: torch.device, timeout_s: float) -> None:
        self._inbox, self._outbox, self._device, self._timeout_s = inbox, outbox, device, timeout_s

    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        self._outbox.deliver(kind, step, (tensor.detach(), record_event(tensor)), self._timeout_s)

    def receive(self, kind: Kind, step: int) -> Tensor:
        return self._to_device(*self._inbox.take(kind, step, self._timeout_s))

    def receive_any(self, kind: Kind) -> tuple[int, Tensor]:
        step, (tensor, ready) = self._inbox.take_any(kind, self._timeout_s)
        return step, self._to_device(tensor, ready).clone()  # the mailbox keeps the original

    def _to_device(self, tensor: Tensor, ready: "torch.cuda.Event | None") -> Tensor:
        if ready is not None:
            torch.cuda.current_stream(tensor.device).wait_event(ready)
        return tensor.to(self._device, non_blocking=self._device.type == "cuda")


class NoLink(Link):
    """Stands for the missing neighbour of the first and the last stage."""

    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        raise AssertionError(f"{kind} of step {step} has no receiver")

    def receive(self, kind: Kind, step: int) -> Tensor:
        raise AssertionError(f"{kind} of step {step} has no sender")

    def receive_any(self, kind: Kind) -> tuple[int, Tensor]:
        raise AssertionError(f"{kind} has no sender")


def record_event(tensor: Tensor) -> "torch.cuda.Event | None":
    """Return, on CUDA, what the receiver's stream waits for: the sender's stream may still be computing the tensor."""
    if tensor.device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return event


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return one vector of the bytes of all tensors, of any types, so that they travel as one message."""
    parts = [tensors[i].detach().reshape(-1).view(torch.uint8) for i in _widest_first(tensors)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Undo `flatten`, with the shapes and types of `like`; the tensors share the vector's memory."""
    order = _widest_first(like)
    parts = dict(zip(order, vector.split([like[i].nbytes for i in order]) if like else (), strict=True))
    return [parts[i].view(t.dtype).view(t.shape) for i, t in enumerate(like)]


def _widest_first(tensors: Sequence[Tensor]) -> list[int]:
    """Return the places of tensors in an order in which each begins where its type may."""
    return sorted(range(len(tensors)), key=lambda i: -tensors[i].itemsize)

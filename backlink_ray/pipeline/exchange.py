"""Exchange: what travels between two stages, and the link that carries it."""

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor


class Kind(StrEnum):
    """What a message is: the cut's activation, its error, or parameter gradients of a tail from either side of the link."""

    ACTIVATION = "activation"
    LOCAL_GRADIENT = "local_gradient"
    LINK_GRADIENT = "link_gradient"
    ERROR = "error"


# How many messages of one kind may wait for a stage. Two keep a fast sender busy while the receiver computes; more would
# only hold more activations in memory.
CAPACITY = 2


class LinkError(RuntimeError):
    """A message did not come or could not be sent: names the kind, the step and the time waited, never the data."""


class LinkAbortedError(LinkError):
    """Another stage failed, so this one was told to stop waiting."""


class Mailbox:
    """Messages waiting for one stage from one neighbour; bounded, in order for each kind."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._waiting: dict[Kind, deque[tuple[int, Any]]] = {kind: deque() for kind in Kind}
        self._changed = threading.Condition()
        self._aborted = ""

    def deliver(self, kind: Kind, step: int, payload: Any, timeout_s: float) -> None:
        """Put a message in; waits while the box is full, LinkError after `timeout_s`."""
        with self._changed:
            self._wait(
                lambda: len(self._waiting[kind]) < self._capacity, f"{kind} of step {step} had no room", timeout_s
            )
            self._waiting[kind].append((step, payload))
            self._changed.notify_all()

    def take(self, kind: Kind, step: int, timeout_s: float) -> Any:
        """Take the next message of a kind out; LinkError if none comes in time or it is not the step's."""
        with self._changed:
            self._wait(lambda: bool(self._waiting[kind]), f"{kind} of step {step} did not come", timeout_s)
            found, payload = self._waiting[kind].popleft()
            self._changed.notify_all()
        if found != step:
            raise LinkError(f"{kind} of step {step} was expected, that of step {found} came")
        return payload

    def abort(self, reason: str) -> None:
        """Make every present and future wait end with LinkAbortedError."""
        with self._changed:
            self._aborted = reason
            self._changed.notify_all()

    def _wait(self, ready: Any, what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready() or self._aborted:
            if self._aborted:
                raise LinkAbortedError(f"{what}: {self._aborted}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise LinkError(f"{what} within {timeout_s:g} s; the neighbour is slower than that, hangs or is gone")
            self._changed.wait(left)


class Link(ABC):
    """One stage's connection to one neighbour. Back-ends: `QueueLink` here, `ObjectStoreLink` between Ray actors."""

    @abstractmethod
    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        """Send a tensor, which the sender must not change afterwards; returns before it is received."""

    @abstractmethod
    def receive(self, kind: Kind, step: int) -> Tensor:
        """Return the tensor of this kind and step on this stage's device; LinkError if it does not come in time."""


class QueueLink(Link):
    """Between threads of one process: the tensor itself is handed over, and copied only to another device.

    Args:
        mine: where the neighbour's messages arrive.
        theirs: where this stage's messages go.
        device: this stage's.
        timeout_s: longest wait for a message or for room.
    """

    def __init__(self, mine: Mailbox, theirs: Mailbox, device: torch.device, timeout_s: float) -> None:
        self._mine = mine
        self._theirs = theirs
        self._device = device
        self._timeout_s = timeout_s

    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        """Put the tensor into the neighbour's mailbox."""
        ready = _record_event(tensor)
        self._theirs.deliver(kind, step, (tensor.detach(), ready), self._timeout_s)

    def receive(self, kind: Kind, step: int) -> Tensor:
        """Take the tensor out of this stage's mailbox."""
        tensor, ready = self._mine.take(kind, step, self._timeout_s)
        if ready is not None:
            torch.cuda.current_stream(tensor.device).wait_event(ready)
        return tensor.to(self._device, non_blocking=self._device.type == "cuda")  # type: ignore[no-any-return]


class NoLink(Link):
    """The missing neighbour of the first and of the last stage: nothing is ever sent there."""

    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        """There is nobody to send to: a fault of the schedule."""
        raise AssertionError(f"{kind} of step {step} has no receiver")

    def receive(self, kind: Kind, step: int) -> Tensor:
        """There is nobody to receive from: a fault of the schedule."""
        raise AssertionError(f"{kind} of step {step} has no sender")


def _record_event(tensor: Tensor) -> "torch.cuda.Event | None":
    """On CUDA the receiver's stream must wait until the sender's has computed the tensor."""
    if tensor.device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return event


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return one vector of all elements, so that the gradients of a whole tail are one message."""
    return torch.cat([t.reshape(-1) for t in tensors]) if tensors else torch.empty(0)


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Undo `flatten`, with the shapes and types of `like`."""
    parts = vector.split([t.numel() for t in like]) if like else ()
    return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, like, strict=True)]

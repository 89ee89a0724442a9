"""ObjectStoreLink: messages between Ray actors through Ray's object store."""

from collections import deque
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from backlink_ray.errors import LinkError
from backlink_ray.pipeline.exchange import CAPACITY, Kind, Link, Mailbox
from backlink_ray.pipeline.message import Layout, pack, unpack
from backlink_ray.pipeline.progress import wait_patiently


class ObjectStoreLink(Link):
    """One stage's connection to a neighbouring actor.

    A message has a numpy view of the tensor: Ray copies it once, into the store, which the receiver maps read-only and copies
    it out of once, on CPUs; a torch tensor would be copied twice. A separate thread of the receiving actor puts it into the
    mailbox.

    Args:
        deliver: calls the neighbour actor's method that takes this stage's messages.
        attempt: number of this attempt at the run; the neighbour drops a message of another one.
        inbox: where the neighbour's messages arrive.
        device: of this stage.
        timeout_s: longest wait for a message or for the neighbour to accept one.
    """

    def __init__(self, deliver: Any, attempt: int, inbox: Mailbox, device: torch.device, timeout_s: float) -> None:
        self._deliver, self._attempt, self._inbox = deliver, attempt, inbox
        self._device, self._timeout_s = device, timeout_s
        self._pending: dict[Kind, deque[tuple[int, Any]]] = {kind: deque() for kind in Kind}

    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        pending = self._pending[kind]
        pending.append((step, self._deliver(self._attempt, str(kind), step, _to_message(tensor))))
        while len(pending) > CAPACITY:
            self._confirm(kind, *pending.popleft())

    def _confirm(self, kind: Kind, step: int, delivery: Any) -> None:
        try:
            is_taken = wait_patiently(lambda seconds: _is_taken(delivery, seconds), self._timeout_s)
        except LinkError:  # raised by the neighbour: its mailbox had no room
            raise
        except ray.exceptions.RayError as error:
            raise LinkError(f"{kind} of step {step} could not be delivered: the neighbour is gone") from error
        if not is_taken:
            raise LinkError(f"{kind} of step {step} was not taken within {self._timeout_s:g} s")

    def receive(self, kind: Kind, step: int) -> Tensor:
        return _to_tensor(self._inbox.take(kind, step, self._timeout_s), self._device)

    def receive_any(self, kind: Kind) -> tuple[int, Tensor]:
        step, message = self._inbox.take_any(kind, self._timeout_s)
        return step, _to_tensor(message, self._device)


def _is_taken(delivery: Any, timeout_s: float) -> bool:
    try:
        ray.get(delivery, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        return False
    return True


# Bytes, and how they lie.
Message = tuple["np.ndarray[Any, Any]", Layout]


def _to_message(tensor: Tensor) -> Message:
    data, layout = pack(tensor.cpu())
    return data.numpy(), layout


def _to_tensor(message: Message, device: torch.device) -> Tensor:
    array, layout = message
    return unpack(torch.tensor(array, device=device), layout)  # a copy: the store's memory is read-only

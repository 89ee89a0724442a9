"""ObjectStoreLink: messages between Ray actors through Ray's object store."""

from collections import deque
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from backlink_ray.errors import LinkError
from backlink_ray.pipeline.exchange import CAPACITY, Kind, Link, Mailbox


class ObjectStoreLink(Link):
    """One stage's connection to a neighbouring actor.

    A message is a numpy view of the tensor: Ray copies it once, into the store, and the receiver maps it read-only; a
    torch tensor would be copied twice. A separate thread of the receiving actor puts it into the mailbox.

    Args:
        deliver: the neighbour actor's method that takes this stage's messages.
        inbox: where the neighbour's messages arrive.
        device: of this stage.
        timeout_s: longest wait for a message or for the neighbour to accept one.
    """

    def __init__(self, deliver: Any, inbox: Mailbox, device: torch.device, timeout_s: float) -> None:
        self._deliver, self._inbox, self._device, self._timeout_s = deliver, inbox, device, timeout_s
        self._pending: dict[Kind, deque[tuple[int, Any]]] = {kind: deque() for kind in Kind}

    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        array = tensor.detach().cpu().contiguous().numpy()
        pending = self._pending[kind]
        pending.append((step, self._deliver.remote(str(kind), step, array)))
        while len(pending) > CAPACITY:
            self._confirm(kind, *pending.popleft())

    def _confirm(self, kind: Kind, step: int, delivery: Any) -> None:
        try:
            ray.get(delivery, timeout=self._timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise LinkError(f"{kind} of step {step} was not taken within {self._timeout_s:g} s") from error
        except LinkError:  # raised by the neighbour: its mailbox had no room
            raise
        except ray.exceptions.RayError as error:
            raise LinkError(f"{kind} of step {step} could not be delivered: the neighbour is gone") from error

    def receive(self, kind: Kind, step: int) -> Tensor:
        return self._to_tensor(self._inbox.take(kind, step, self._timeout_s))

    def receive_any(self, kind: Kind) -> tuple[int, Tensor]:
        step, array = self._inbox.take_any(kind, self._timeout_s)
        return step, self._to_tensor(array)

    def _to_tensor(self, array: "np.ndarray[Any, Any]") -> Tensor:
        return torch.tensor(array, device=self._device)  # a copy: the store's memory is read-only

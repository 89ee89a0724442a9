"""ObjectStoreLink: messages between Ray actors through Ray's object store."""

import warnings
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

    A message is a numpy view of the tensor: Ray stores it with one copy and lends it to the receiver without any, while a
    torch tensor would be copied twice. The receiving actor puts it into its mailbox from a thread of its own.

    Args:
        peer: handle of the neighbour's actor.
        side: where this stage stands seen from the neighbour, "previous" or "following".
        mine: where the neighbour's messages arrive.
        device: this stage's.
        timeout_s: longest wait for a message or for the neighbour to take one.
    """

    def __init__(self, peer: Any, side: str, mine: Mailbox, device: torch.device, timeout_s: float) -> None:
        self._peer = peer
        self._side = side
        self._mine = mine
        self._device = device
        self._timeout_s = timeout_s
        self._under_way: dict[Kind, deque[tuple[int, Any]]] = {kind: deque() for kind in Kind}

    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        array = tensor.detach().cpu().contiguous().numpy()
        method = self._peer.deliver_previous if self._side == "previous" else self._peer.deliver_following
        under_way = self._under_way[kind]
        under_way.append((step, method.remote(str(kind), step, array)))
        while len(under_way) > CAPACITY:
            self._confirm(kind, *under_way.popleft())

    def _confirm(self, kind: Kind, step: int, taken: Any) -> None:
        try:
            ray.get(taken, timeout=self._timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise LinkError(f"{kind} of step {step} was not taken within {self._timeout_s:g} s") from error
        except LinkError:  # the neighbour's own word: it had no room
            raise
        except ray.exceptions.RayError as error:
            raise LinkError(f"{kind} of step {step} could not be delivered: the neighbour is gone") from error

    def receive(self, kind: Kind, step: int) -> Tensor:
        return self._private(self._mine.take(kind, step, self._timeout_s))

    def receive_any(self, kind: Kind) -> tuple[int, Tensor]:
        step, array = self._mine.take_any(kind, self._timeout_s)
        return step, self._private(array)

    def has(self, kind: Kind) -> bool:
        return self._mine.has(kind)

    def _private(self, array: "np.ndarray[Any, Any]") -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only memory; it is copied at once
            lent = torch.from_numpy(array)
        return lent.clone() if self._device.type == "cpu" else lent.to(self._device)

"""Cost: the memory of a training step, counted on any device, and its time."""

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


class SavedTensors(AbstractContextManager["SavedTensors"]):
    """Counts the tensors that autograd saves for the backward of what runs inside `with`, as bytes of distinct storages.

    A storage counts once, however many graph nodes save it or a view of it, and only while one of them lives, so a freed
    graph counts nothing. Works on every device, including "meta", where nothing is computed. Tensors held by Python alone,
    such as the input of a tail that is recomputed, are not counted.

    Args:
        apart_from: tensors that do not count because they live anyway: parameters and buffers.

    Attributes:
        alive_bytes: saved now.
        peak_bytes: the most that was saved at once.
        storages: bytes of each storage that was ever saved; an address is used again once its storage is free.
    """

    def __init__(self, apart_from: Iterable[Tensor] = ()) -> None:
        self.alive_bytes = self.peak_bytes = 0
        self.storages: dict[int, int] = {}
        self._apart_from = {_storage(tensor) for tensor in apart_from}
        self._savers: Counter[int] = Counter()  # graph nodes by storage
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(self, tensor), _unpack)

    def __enter__(self) -> "SavedTensors":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def count(self, tensor: Tensor, change: int) -> None:
        """Count one graph node more (1) or less (-1) that saves a tensor."""
        key = _storage(tensor)
        if key in self._apart_from:
            return
        if self._savers[key] == 0 or self._savers[key] + change == 0:
            self.storages[key] = tensor.untyped_storage().nbytes()
            self.alive_bytes += change * self.storages[key]
            self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
        self._savers[key] += change


class _Saved:
    """A saved tensor in its graph node; it is deleted with the node, which ends the count."""

    __slots__ = ("_owner", "tensor")

    def __init__(self, owner: SavedTensors, tensor: Tensor) -> None:
        # A node's own result refers to the node: without detach, the two would keep each other alive.
        self._owner, self.tensor = owner, tensor.detach()
        owner.count(tensor, 1)

    def __del__(self) -> None:
        self._owner.count(self.tensor, -1)


def _unpack(saved: _Saved) -> Tensor:
    return saved.tensor


def _storage(tensor: Tensor) -> int:
    # The address of the storage object; that of its data is 0 for every tensor on "meta".
    return int(tensor.untyped_storage()._cdata)


def training_bytes(modules: Iterable[nn.Module], saved_bytes: int) -> int:
    """Return the bytes of a training step: parameters with gradient and momentum, buffers, and saved tensors."""
    tensors = [(t, 3) for m in modules for t in m.parameters()] + [(t, 1) for m in modules for t in m.buffers()]
    return saved_bytes + sum(copies * tensor_bytes(tensor) for tensor, copies in tensors)


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def now(x: Tensor) -> float:
    """Return the time in seconds once all work on the device of x is done."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


class Stopwatch(AbstractContextManager["Stopwatch"]):
    """Times what is done inside `with`, again and again, without waiting for a GPU: its stream notes the times.

    Args:
        device: on which it is done; with CUDA not run yet.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._marks = device, list[Any]()

    def __enter__(self) -> "Stopwatch":
        self._marks.append(self._mark())
        return self

    def __exit__(self, *_error: object) -> None:
        self._marks.append(self._mark())

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    @property
    def seconds(self) -> list[float]:
        """Return the seconds of each time, in order; waits for the device."""
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        if self._device.type != "cuda":
            return [end - start for start, end in pairs]
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]

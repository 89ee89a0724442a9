"""Cost: time and memory of units, modules and stages, and the memory of a training step, counted on any device."""

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from backlink_ray.nets.network import Network


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
    """

    def __init__(self, apart_from: Iterable[Tensor] = ()) -> None:
        self.alive_bytes = self.peak_bytes = 0
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
            self.alive_bytes += change * tensor.untyped_storage().nbytes()
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a unit, module or stage costs per training step; costs can be added.

    Attributes:
        forward_s, backward_s: seconds, medians.
        saved_bytes: saved between forward and backward.
        parameter_bytes: of the parameters alone.
    """

    forward_s: float = 0.0
    backward_s: float = 0.0
    saved_bytes: int = 0
    parameter_bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        total: dict[str, Any] = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Cost(**total)

    @property
    def seconds(self) -> float:
        """Return forward and backward together."""
        return self.forward_s + self.backward_s


def unit_costs(network: Network, batch_size: int, repeats: int = 3) -> list[Cost]:
    """Measure each unit alone, in training mode, on the network's device.

    Args:
        network: its parameters and buffers do not change.
        batch_size: images per step.
        repeats: timed runs of each unit, after an untimed one.
    """
    x, found = network.example(batch_size), []
    if x.is_floating_point():
        x = torch.rand_like(x)  # some processors are faster on zeros
    for unit in network.units:
        cost, x = _unit_cost(unit, x, repeats)
        found.append(cost)
    return found


def _unit_cost(unit: nn.Module, x: Tensor, repeats: int) -> tuple[Cost, Tensor]:
    buffers = {name: buffer.clone() for name, buffer in unit.named_buffers()}
    times, saved, output = [], 0, x
    for _ in range(repeats + 1):
        # A float input gets a gradient, as it does inside a module; token indices have none.
        given = x.detach().requires_grad_(x.is_floating_point())
        with SavedTensors([*unit.parameters(), *buffers.values()]) as counted:
            start = now(x)
            output = torch.func.functional_call(unit, buffers, (given,))
            middle = now(x)
            saved = counted.peak_bytes
            output.sum().backward(inputs=[t for t in (given, *unit.parameters()) if t.requires_grad])
        times.append((middle - start, now(x) - middle))
        unit.zero_grad(set_to_none=True)
    forward_s, backward_s = (statistics.median(column) for column in zip(*times[1:], strict=True))
    parameters = sum(tensor_bytes(p) for p in unit.parameters())
    cost = Cost(forward_s=forward_s, backward_s=backward_s, saved_bytes=saved, parameter_bytes=parameters)
    return cost, output.detach()


def now(x: Tensor) -> float:
    """Return the time in seconds once all work on the device of x is done."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def module_costs(units: Sequence[Cost], sizes: Sequence[int]) -> list[Cost]:
    """Return the costs of K consecutive groups of units, without their heads."""
    return [sum(units[stop - size : stop], Cost()) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def stage_costs(units: Sequence[Cost], sizes: Sequence[int], propagation_length: int) -> list[Cost]:
    """Return the costs of K stages: each its module and, from the second on, the replica of the previous tail."""
    modules, starts = module_costs(units, sizes), [0, *accumulate(sizes)]
    replicas = [sum(units[start - propagation_length : start], Cost()) for start in starts[1:-1]]
    return [module + replica for module, replica in zip(modules, [Cost(), *replicas], strict=True)]

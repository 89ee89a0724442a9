"""Tape: a CPU's CUDA graph: the operations of a recording are done again, on the same memory, without its Python."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from backlink_ray.train.recorder import Recorder

T = TypeVar("T")


class Tape(TorchDispatchMode):
    """Notes operations on aliases of their tensors, which do not count as new versions of them, as a replay does not."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self._own: dict[int, Tensor] = {}  # memory of the recording, by address
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # other memory that it changed, and what was there

    def __torch_dispatch__(self, operation: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        if "_local_scalar_dense" in str(operation):
            raise RuntimeError("operation not permitted when stream is capturing: it waits for a number")
        options = options or {}
        given = {_address(t) for t in tree_leaves((arguments, options)) if isinstance(t, Tensor)}
        for written in _written(operation, arguments, options):
            if _address(written) not in self._own:
                self._before.setdefault(written.data_ptr(), (written.data, written.data.clone()))
        result = operation(*arguments, **options)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _address(tensor) not in given:
                self._own[_address(tensor)] = tensor.data  # kept, so that no other memory gets its address
        self._noted.append(tree_map_only(Tensor, lambda t: t.data, (operation, arguments, options, result)))
        return result

    @torch.no_grad()
    def undo(self) -> None:
        """Leave the memory as if nothing had been computed yet."""
        for tensor in self._own.values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        for tensor, value in self._before.values():
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for operation, arguments, options, result in self._noted:
            again = operation(*arguments, **options)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and _address(old) != _address(new):
                    old.copy_(new)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _written(operation: Any, arguments: Any, options: Any) -> list[Tensor]:
    schema = operation._schema.arguments
    named = {**dict(zip((a.name for a in schema), arguments, strict=False)), **options}
    marked = {a.name for a in schema if a.alias_info is not None and a.alias_info.is_write}
    # Which a batch norm updates, and does not say.
    found = [named.get(a.name) for a in schema if a.name in {*marked, "running_mean", "running_var"}]
    return [tensor for tensor in tree_leaves(found) if isinstance(tensor, Tensor)]


class TapeRecorder(Recorder):
    """Records on tapes."""

    def __init__(self) -> None:
        self.recorded = 0

    def call(self, part: Callable[[], T]) -> T:
        return part()

    def record(self, part: Callable[[], T]) -> tuple[Callable[[], None], T]:
        tape = Tape()
        with tape:
            found = part()
        tape.undo()
        self.recorded += 1
        return tape.replay, found


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return SGD as `train.optim.Sgd` makes it on a GPU: with its lr in a tensor."""
    made = torch.optim.SGD(parameters, torch.zeros(()), 0.9, weight_decay=1e-4, nesterov=True, fused=True)
    for parameter in parameters:
        made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return made

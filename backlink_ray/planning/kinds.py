"""Kinds: which units of a network cost the same, so that one of a thousand units is measured in the time of sixty."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from backlink_ray.local.module import LocalModule

# Units of one kind in a row that are measured: more than the 18 of ResNet110, which is measured as a whole.
MEASURED = 20


def stand_ins(modules: Sequence[LocalModule], measured: int = MEASURED) -> list[int]:
    """Return for each unit the index of the one that is measured for it: itself, or in a long row of one kind an earlier one.

    Those measured for others take turns, so that the row costs what they do on average; the first one, whose neighbour is of
    another kind, stands for itself alone, and so does the network's last unit, whose head is the classifier.

    Args:
        modules: of one unit each.
        measured: units of one kind in a row that are measured, 2 or more.
    """
    found, first = list[int](), 0
    inputs = [modules[0].spec.input_shape, *(module.spec.feature_shape for module in modules)]
    kinds = [_kind(module, shape) for module, shape in zip(modules, inputs, strict=False)]
    for k, kind in enumerate(kinds):
        if kind != kinds[first]:
            first = k
        found.append(first if k == first else first + 1 + (k - first - 1) % (measured - 1))
    return found


def _kind(module: LocalModule, input_shape: tuple[int, ...]) -> tuple[Any, ...]:
    tensors = chain(module.parameters(), module.buffers())
    shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
    return repr(module.chain.units), repr(module.head), module.is_last, input_shape, module.spec.feature_shape, shapes

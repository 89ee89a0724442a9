"""Sharing: units, classifier and heads are trained apart, so no two of them may hold the same memory."""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from backlink_ray.errors import ConfigError


def check_apart(places: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse modules, each with the name of its place, that share memory.

    Raises:
        ConfigError: a parameter or buffer of one place is, or overlaps, one of another place, or another one of its own;
            both are named.
    """
    seen: dict[object, list[tuple[int, int, str]]] = {}
    for place, module in places:
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            storage, start, stop = _memory(tensor)
            here, others = f"{place}.{name}", seen.setdefault(storage, [])
            for first, last, there in others:
                if start < last and first < stop:
                    raise ConfigError(
                        f"{there} and {here} share memory, so they cannot be trained apart, copied or saved; give each its "
                        "own (tensor.clone(), copy.deepcopy(module)), or put what shares it into one unit, as one object"
                    )
            others.append((start, stop, here))


def _memory(tensor: Tensor) -> tuple[object, int, int]:
    """Return the storage of a tensor, and the elements in bytes that it spans there: start and stop."""
    if not tensor.numel() or tensor.layout is not torch.strided:
        return id(tensor), 0, 1
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.storage_offset()
    return tensor.untyped_storage()._cdata, *(tensor.element_size() * at for at in (start, start + last + 1))

"""Descent: how well a method's mean gradient descends the loss of the whole network (the paper's Assumption 1, Fig. 3)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

ALL = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """A gradient g compared with the gradient of the whole network's loss L, over the same parameters.

    Attributes:
        constant: grad L . g / |grad L|^2, the sufficient direction constant; above 0 if a step along -g descends.
        norm_ratio: |g| / |grad L|, bounded by Assumption 1.
    """

    constant: float
    norm_ratio: float


class MeanGradients:
    """The mean of gradients by name, summed in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the gradients of one batch; every batch has the same names."""
        for name, gradient in gradients.items():
            total = self._sums.setdefault(name, torch.zeros_like(gradient, dtype=torch.float64))
            total += gradient
        self._count += 1

    def mean(self) -> dict[str, Tensor]:
        """Return the means by name, float64, of one batch or more."""
        return {name: total / self._count for name, total in self._sums.items()}


def descent(whole: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Descent:
    """Compare a method's gradients with those of the whole network's loss, over the parameters of all units.

    Heads and helpers do not count, since the whole network's loss depends on the last head only.

    Args:
        whole: gradients of the last head's loss by name.
        found: the method's gradients by name, with every unit of `whole`.

    Returns:
        Both ratios; NaN if the whole gradient is 0.

    Raises:
        ValueError: there is no gradient of a unit, or `found` lacks one.
    """
    return _compare(whole, found, ("units.",))


def descent_by_module(
    whole: Mapping[str, Tensor], found: Mapping[str, Tensor], sizes: Sequence[int]
) -> dict[int, Descent]:
    """Return descent over all units (key ALL, -1) and over the units of each module k (key k).

    In the last module the gradient is that of the whole loss itself, which favours ALL.
    """
    result = {ALL: descent(whole, found)}
    for k, stop in enumerate(accumulate(sizes)):
        prefixes = tuple(f"units.{index}." for index in range(stop - sizes[k], stop))
        result[k] = _compare(whole, found, prefixes)
    return result


def _compare(whole: Mapping[str, Tensor], found: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> Descent:
    names = [name for name in whole if name.startswith(prefixes)]
    missing = [name for name in names if name not in found]
    if missing or not names:
        raise ValueError(f"gradients of {missing[:3] or prefixes[:3]} are missing; give those of every unit, by name")
    pairs = [(whole[name].double().flatten(), found[name].double().flatten()) for name in names]
    product, whole_square, found_square = (
        sum(float(pair[i] @ pair[j]) for pair in pairs) for i, j in ((0, 1), (0, 0), (1, 1))
    )
    if not whole_square:
        return Descent(constant=math.nan, norm_ratio=math.nan)
    return Descent(constant=product / whole_square, norm_ratio=math.sqrt(found_square / whole_square))

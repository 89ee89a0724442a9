"""Checks: what users give as inputs and labels, read and refused before anything is trained on it."""

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from backlink_ray.errors import ConfigError

# What every operation of torch takes; numpy's other integers become int64.
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def read_pair(which: str, found: Any) -> tuple[Any, Any]:
    """Return inputs and labels of the set `which`, as given; ConfigError if they are no pair."""
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise ConfigError(f"{which} is a {type(found).__name__}; allowed: a pair (inputs, labels)")
    return found[0], found[1]


def read_inputs(which: str, found: Any) -> Tensor:
    """Return the inputs of the set `which`, (N, ...), on the CPU; ConfigError if they are no numbers, empty or not finite."""
    inputs = _tensor(f"{which} inputs", found)
    if inputs.dtype == torch.bool:
        raise ConfigError(
            f"{which} inputs are {inputs.dtype}; allowed: floating-point numbers or integers, as x.float() or x.long() gives"
        )
    if not inputs.numel():
        raise ConfigError(f"{which} inputs are empty, of shape {tuple(inputs.shape)}; allowed: one example or more")
    _check_finite(f"{which} inputs", inputs)
    return inputs if inputs.is_floating_point() or inputs.dtype in _INTEGERS else inputs.long()


def read_labels(
    given: dict[str, Any], lengths: Sequence[int], class_names: tuple[str, ...]
) -> tuple[tuple[Tensor, Tensor], tuple[str, ...]]:
    """Return the labels of "train" and "test", int64 (N,) or floating-point (N, D), and the classes' names, () for targets.

    Raises:
        ConfigError: another type, shape or length, a label out of range, a class without training examples and without a
            name, or a target that is not finite.
    """
    labels = {which: _tensor(f"{which} labels", found) for which, found in given.items()}
    for (which, y), length in zip(labels.items(), lengths, strict=True):
        if len(y) != length:
            raise ConfigError(f"{which} has {length} inputs and {len(y)} labels; allowed: one label per input")
    kinds = {which: y.is_floating_point() for which, y in labels.items()}
    if kinds["train"] != kinds["test"]:
        raise ConfigError(
            f"train labels are {labels['train'].dtype}, test labels {labels['test'].dtype}; allowed: integers in both, for "
            "classes, or floating-point numbers in both, for targets"
        )
    if kinds["train"]:
        return _targets(labels, class_names), ()
    return _classes(labels, class_names)


def _targets(labels: dict[str, Tensor], class_names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    if class_names:
        raise ConfigError(
            f"labels are {labels['train'].dtype}, targets of a regression, but there are class_names; allowed: integers "
            "0..C-1 for classes, as y.long() gives"
        )
    for which, y in labels.items():
        if y.dim() not in (1, 2):
            raise ConfigError(f"{which} labels have shape {tuple(y.shape)}; allowed for targets: (N,) or (N, D)")
        _check_finite(f"{which} labels", y)
    train, test = (y[:, None] if y.dim() == 1 else y for y in labels.values())
    if train.shape[1] != test.shape[1]:
        raise ConfigError(
            f"train labels have {train.shape[1]} columns, test labels {test.shape[1]}; allowed: equal numbers"
        )
    return train, test


def _classes(labels: dict[str, Tensor], class_names: tuple[str, ...]) -> tuple[tuple[Tensor, Tensor], tuple[str, ...]]:
    for which, y in labels.items():
        if y.dim() != 1:
            raise ConfigError(
                f"{which} labels have shape {tuple(y.shape)}; allowed for classes: (N,), which y.flatten() makes of a column, "
                "and y.argmax(1) of one-hot rows; several at once are floats, y.float(), for a loss of their own"
            )
    train, test = (y.long() for y in labels.values())
    count = len(class_names) or max(0, int(train.max())) + 1
    for which, y in (("train", train), ("test", test)):
        check_classes(which, y, count)
    present = train.unique()  # sorted; a largest label of 10^12 costs no memory
    if len(present) < count and not class_names:
        missing = next(i for i, label in enumerate(present.tolist()) if label != i)
        raise ConfigError(
            f"no train label is {missing}, and the largest is {count - 1}; number the classes from 0 without a gap, or give "
            "class_names"
        )
    return (train, test), class_names or tuple(map(str, range(count)))


def check_classes(which: str, labels: Tensor, num_classes: int) -> None:
    """Raise ConfigError unless integer labels are in 0..num_classes-1; the message names the first that is not."""
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        at = wrong[0].tolist()
        raise ConfigError(
            f"{which} labels hold {int(labels[tuple(at)])} at {at}; allowed: classes 0..{num_classes - 1}"
        )


def are_images(inputs: Tensor) -> bool:
    """Return whether inputs are uint8 images (N, C, H, W)."""
    return inputs.dtype == torch.uint8 and inputs.dim() == 4


def check_inputs(which: str, inputs: Tensor, shape: tuple[int, ...], integers: bool) -> None:
    """Raise ConfigError unless a network takes inputs (N, *shape) of this type; `integers`: whether it takes integers."""
    found = tuple(inputs.shape[1:])
    if found != shape:
        raise ConfigError(
            f"the {which} inputs have shape {found}, but the network was built for {shape}; build it with an example of that "
            "shape"
        )
    is_images = are_images(inputs)
    if (is_images or inputs.is_floating_point()) == integers:
        reach = f"the {which} inputs are {inputs.dtype}" + ", images, which a network gets as floats" * is_images
        takes = "integers" if integers else "floating-point numbers"
        raise ConfigError(
            f"{reach}, but the network takes {takes}, as its example says; convert the inputs or the example"
        )


def check_normalisation(mean: Sequence[float], std: Sequence[float], inputs: Tensor) -> None:
    """Raise ConfigError unless mean and std are both empty, or fit the inputs' channels, dimension 1."""
    if not mean and not std:
        return
    given = f"mean={tuple(mean)}, std={tuple(std)}"
    if inputs.dim() < 2 or not (inputs.is_floating_point() or are_images(inputs)):
        raise ConfigError(f"{given} have no meaning for {inputs.dtype} inputs of shape {tuple(inputs.shape)}")
    channels = inputs.shape[1]
    if (
        len(mean) != len(std)
        or len(mean) not in (1, channels)
        or not all(isfinite(m) and 0 < s < inf for m, s in zip(mean, std, strict=True))
    ):
        raise ConfigError(
            f"{given} do not fit {channels} channels; allowed: 1 or {channels} of both, finite, std above 0"
        )


def _tensor(what: str, found: Any) -> Tensor:
    import numpy as np

    try:
        # torch takes no reversed arrays, and no tables.
        if not isinstance(found, Tensor) and hasattr(found, "__array__"):
            found = torch.from_numpy(np.array(found, order="C"))
        tensor = torch.as_tensor(found).detach().cpu().contiguous()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{what} are a {type(found).__name__} ({error}); allowed: a tensor or an array of numbers"
        ) from error
    if tensor.is_complex():
        raise ConfigError(f"{what} are {tensor.dtype}; allowed: floating-point numbers or integers")
    if not tensor.dim() or not len(tensor):
        raise ConfigError(f"{what} are empty, of shape {tuple(tensor.shape)}; allowed: one example or more")
    return tensor


def _check_finite(what: str, found: Tensor) -> None:
    if found.is_floating_point() and not (finite := found.isfinite()).all():
        at = (~finite).nonzero()[0].tolist()
        raise ConfigError(f"{what} hold {float(found[tuple(at)])} at {at}; allowed: finite numbers")

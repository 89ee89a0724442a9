"""Weights: tensors by name, checked before they are copied into modules."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from backlink_ray.errors import ConfigError
from backlink_ray.local.module import LocalModule
from backlink_ray.output import say

SHOWN = 3  # tensors that an error names


def state_of(modules: Sequence[LocalModule]) -> dict[str, Tensor]:
    """Return every parameter and buffer of the modules by name; the tensors are the live ones."""
    return {name: tensor.detach() for module in modules for name, tensor in module.named_state()}


def check_weights(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], allowed: str, *, exact: bool = False
) -> None:
    """Refuse weights that do not fit, before anything is copied.

    Args:
        own: the tensors to be loaded.
        weights: what is to be copied into them.
        allowed: what would fit, in words.
        exact: refuse weights of another name, too.

    Raises:
        ConfigError: a tensor is missing, or has another shape; the first ones are named.
    """
    wrong = list(_misfits(own, weights, exact))
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ConfigError(f"these weights do not fit: {', '.join(wrong[:SHOWN])}{more}; allowed: {allowed}")


def _misfits(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], exact: bool) -> Iterable[str]:
    for name, tensor in own.items():
        if name not in weights:
            yield f"{name} is missing"
        elif weights[name].shape != tensor.shape:
            yield f"{name} has shape {tuple(weights[name].shape)}, here {tuple(tensor.shape)}"
    if exact:
        yield from (f"{name} is unknown here" for name in weights if name not in own)


def copy_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copy weights that fit; torch itself would repeat a tensor of one element or row to fill a larger one."""
    with torch.no_grad():
        for name, tensor in own.items():
            assert weights[name].shape == tensor.shape, (name, weights[name].shape, tensor.shape)
            tensor.copy_(weights[name])


def load_units(modules: Sequence[LocalModule], weights: Mapping[str, Tensor]) -> list[str]:
    """Load the units of a network that was split in any way, and its classifier if it fits.

    The other heads belong to the places where the modules ended, and helpers to their method, so they stay as they are.

    Args:
        modules: all modules of the same network, from `split`.
        weights: such as a `Trainer.state_dict()`; names of anything but weights are ignored.

    Returns:
        What stays as it was, also written to stderr: for example ["heads.0", "heads.1"].

    Raises:
        ConfigError: a unit's tensor is missing, unknown or of another shape; nothing is changed.
    """
    state = state_of(modules)
    units = {name: tensor for name, tensor in state.items() if name.startswith("units.")}
    classifier = {name: tensor for name, tensor in state.items() if name.startswith("classifier.")}
    given = {name: tensor for name, tensor in weights.items() if name.startswith("units.")}
    check_weights(units, given, "weights of a network with the same units", exact=True)
    fits = not list(_misfits(classifier, weights, exact=False))
    copy_weights({**units, **classifier} if fits else units, weights)
    loaded = {"units", "classifier"} if fits else {"units"}
    left = dict.fromkeys(_part(name) for name in state if name.partition(".")[0] not in loaded)
    if left:
        say(f"load_units: {', '.join(left)} do not come from these weights and stay as they were")
    return list(left)


def _part(name: str) -> str:
    """Return "classifier", "heads.<module index>" or "helpers.<module index>"."""
    kind, index, *_ = name.split(".")
    return kind if kind == "classifier" else f"{kind}.{index}"

"""Predict: the logits of a trained network, from the network itself or from its modules."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backlink_ray.data.tensors import cast
from backlink_ray.errors import ConfigError
from backlink_ray.local.module import LocalModule, StepSeed
from backlink_ray.nets.network import dtype_and_device
from backlink_ray.nets.probe import in_mode
from backlink_ray.options import POSITIVE


def predict(model: nn.Module | Sequence[LocalModule], inputs: Tensor, batch_size: int = 512) -> Tensor:
    """Return logits without dropout, with the batch norms' statistics, and without gradients.

    Args:
        model: a network, or all of its modules; every part is left in the mode it was found in.
        inputs: (N, ...), on any device, as in training (`dataset.test.prepared()`); floats are taken to the network's type.
        batch_size: inputs at a time, 1 or more.

    Returns:
        (N, classes), in the network's type, on the device of the inputs.

    Raises:
        ConfigError: batch_size is out of range, or the modules lack the last one.
    """
    size = POSITIVE.read("batch_size", batch_size)
    if not isinstance(model, nn.Module) and not (model and model[-1].is_last):
        raise ConfigError(f"the last module is missing among {list(model)}; give all modules of the network")
    return torch.cat([_logits(model, x).to(inputs.device) for x in inputs.split(size)])


def _logits(model: nn.Module | Sequence[LocalModule], x: Tensor) -> Tensor:
    dtype, device = dtype_and_device(*([model] if isinstance(model, nn.Module) else model))
    x = cast(x.to(device), dtype)
    if not isinstance(model, nn.Module):
        return forward_for_evaluation(model, x)
    with in_mode(False, model), torch.no_grad():
        return model(x)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def forward_for_evaluation(modules: Sequence[LocalModule], x: Tensor) -> Tensor:
    """Return the last head's logits (N, classes), or the last unit's output if `modules` lacks the last module."""
    with in_mode(False, *modules), torch.no_grad():
        for module in modules:
            x = module.chain(x, StepSeed())
        return modules[-1].logits(x, StepSeed()) if modules[-1].is_last else x

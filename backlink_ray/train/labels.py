"""Labels: checked together with method and loss before anything moves."""

import warnings

import torch
from torch import Tensor, nn

from backlink_ray.data.checks import check_classes
from backlink_ray.data.tensors import cast
from backlink_ray.errors import ConfigError
from backlink_ray.local.module import LocalModule
from backlink_ray.methods.base import Loss, Method
from backlink_ray.nets.network import dtype_and_device
from backlink_ray.nets.probe import same
from backlink_ray.seeds import generator_states, seeded


def check_labels(which: str, labels: Tensor, method: Method, num_classes: int) -> None:
    """Raise ConfigError for labels that a method, and a network with logits (N, num_classes), cannot learn.

    The range of classes is checked on a CPU only, where it costs no wait.
    """
    if labels.is_floating_point():
        if method.needs_classes:
            raise ConfigError(
                f"method {method.name} needs classes, but the {which} labels are {labels.dtype}, targets of a regression; "
                "allowed: integers (N,), or another method"
            )
    elif labels.dim() != 1:
        raise ConfigError(
            f"the {which} labels are {labels.dtype} of shape {tuple(labels.shape)}; allowed: integers (N,), which are "
            "classes, or floats (N, ...), targets"
        )
    elif labels.device.type == "cpu":
        check_classes(which, labels, num_classes)


def _check_probabilities(loss: Loss, labels: Tensor) -> None:
    """Refuse numbers to predict under cross-entropy, which takes them for probabilities: with one output it is always 0."""
    is_cross_entropy = loss is nn.functional.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)
    if not (labels.is_floating_point() and is_cross_entropy):
        return
    sums = labels.sum(dim=1) if labels.dim() == 2 and labels.shape[1] > 1 else labels.new_zeros(1)
    # bfloat16 rounds by 0.004.
    if labels.min() < 0 or not torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=0.02):
        raise ConfigError(
            f"cross-entropy cannot learn labels {tuple(labels.shape)} {labels.dtype} that are no rows of probabilities; give "
            "integers (N,) for classes, or another loss: torch.nn.functional.mse_loss for numbers, "
            "binary_cross_entropy_with_logits for several classes at once"
        )


def check_loss(loss: Loss, labels: Tensor, module: LocalModule) -> None:
    """Raise ConfigError unless loss(logits, labels) is one number with a gradient, the same in every stage, and no sum.

    It is tried on logits of zeros as the module's head gives them; parameters of its own, which nothing would train,
    are refused.
    """
    if isinstance(loss, type):
        raise ConfigError(f"the loss is the class {loss.__name__}; allowed: an object of it, or a function")
    dtype, _ = dtype_and_device(module)
    logits = torch.zeros(len(labels), module.spec.num_classes, dtype=dtype, device=labels.device).requires_grad_()
    shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} {labels.dtype}"
    try:
        with warnings.catch_warnings(), torch.enable_grad(), seeded(0, "probe"):
            warnings.filterwarnings("error", "Using a target size")  # (N,) beside (N, 1) would be compared as (N, N)
            before, found = generator_states(), loss(logits, labels)
            repeats = generator_states() == before and same(found, loss(logits, labels))
            of_twice = loss(torch.cat([logits, logits]), torch.cat([labels, labels]))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, UserWarning) as error:
        raise ConfigError(f"the loss cannot take {shapes}: {error}") from error
    _check_probabilities(loss, labels)
    if not isinstance(found, Tensor) or found.dim() or not found.requires_grad:
        given = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ConfigError(
            f"the loss returns {given} for {shapes}; allowed: a tensor without dimensions that depends on the logits, the "
            "mean over the samples"
        )
    if not repeats:
        raise ConfigError(
            "the loss draws random numbers, or answers differently to the same logits and labels, so stages would disagree; "
            "allowed: a function of logits and labels alone"
        )
    if same(of_twice, 2 * found) and not same(of_twice, found):
        raise ConfigError(
            "the loss is a sum over the samples; allowed: the mean (reduction='mean'), whatever the batch"
        )
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ConfigError(
            f"the loss, a {type(loss).__name__}, has parameters, which no optimizer gets; freeze them "
            "(loss.requires_grad_(False)), or train them as the helper of a method of your own"
        )


def check_mean(loss: Loss, labels: Tensor, module: LocalModule, batch_size: int, replicas: int) -> None:
    """Raise ConfigError unless the loss of a batch is the mean of those of its equal parts, as of weighted classes it is not."""
    dtype = torch.promote_types(dtype_and_device(module)[0], torch.float32)
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(labels), generator=generator)[:batch_size]
    labels = cast(labels[some[: len(some) // replicas * replicas]], dtype)
    # In 0..1, where every loss is defined.
    logits = torch.rand(len(labels), module.spec.num_classes, generator=generator).to(labels.device, dtype)
    parts = zip(logits.chunk(replicas), labels.chunk(replicas), strict=True)
    with torch.no_grad():
        found, of_parts = loss(logits, labels), torch.stack([loss(*part) for part in parts]).mean()
    if not torch.allclose(found, of_parts, rtol=100 * torch.finfo(dtype).eps, equal_nan=True):
        raise ConfigError(
            f"batch_norm='whole' with a loss of {float(found):g} for a batch, and {float(of_parts):g} as the mean over its "
            f"{replicas} parts; allowed: the plain mean over the samples (no weights, nothing left out), or batch_norm='part'"
        )

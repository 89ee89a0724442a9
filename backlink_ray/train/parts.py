"""Parts: a step's batch in equal parts, one for each replica of the stages, and the mean of what the parts give."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backlink_ray.errors import ConfigError
from backlink_ray.local.engine import EngineOptions
from backlink_ray.local.module import LocalModule
from backlink_ray.methods.base import Batch, Method


def check_replicas(replicas: int, method: Method, engine: EngineOptions) -> None:
    """Raise ConfigError if a method or an engine cannot train in several replicas."""
    if replicas < 1:
        raise ConfigError(f"replicas={replicas} is out of range; allowed 1 or more")
    late = method.link_kind == "delayed" or method.is_stale or method.replay_size
    if replicas > 1 and late:
        how = f" in mode={vars(method)['mode']!r}" if "mode" in vars(method) else ""
        raise ConfigError(
            f"replicas={replicas} with method={method.name!r}{how}, whose errors arrive in a later step; allowed: 1, or a "
            "method whose steps are whole (mode exact)"
        )
    if replicas > 1 and engine.graph:
        raise ConfigError(f"replicas={replicas} with graph=True, which captures no average; allowed: 1, or graph=False")


def check_whole(method: Method, engine: EngineOptions, replicas: int) -> None:
    """Raise ConfigError unless a step by parts, with batch norms of the whole batch, is a step without parts."""
    if replicas == 1:
        raise ConfigError("batch_norm='whole' has no meaning with replicas=1; allowed with 2 or more")
    own: Method = getattr(method, "base", method)  # BackLink's losses are its base's
    if type(own).loss is not Method.loss or type(own).local_backward is not Method.local_backward:
        raise ConfigError(
            f"batch_norm='whole' does not go with the losses of {own.name!r}, which compare or add up samples; allowed: part, or "
            "bp, gll, dgl, and backlink on them"
        )
    if engine.compile != "none":
        raise ConfigError(
            f"batch_norm='whole' does not go with compile={engine.compile!r}; allowed: part, or compile='none'"
        )


def check_norms(modules: Sequence[LocalModule]) -> None:
    """Raise ConfigError unless every batch norm can take the statistics of the whole batch in place of its own."""
    norms = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
    for norm in norms:
        if type(norm).forward is not _BatchNorm.forward or "forward" in vars(norm):
            raise ConfigError(
                f"batch_norm='whole' with a {type(norm).__name__} that has a forward of its own; allowed: torch's BatchNorm1d, "
                "BatchNorm2d and BatchNorm3d, or batch_norm='part'"
            )
    if len({*map(id, norms)}) < len(norms):
        raise ConfigError("batch_norm='whole' with a batch norm that several modules share; allowed: one for each")


def check_in_one_process(modules: Sequence[LocalModule], devices: Sequence[str], stages: int) -> None:
    """Raise ConfigError if parts would wait for another while they hold what that needs: generators, a GPU's autograd thread."""
    if any(module.head_uses_rng or any(module.chain.uses_rng) for module in modules):
        raise ConfigError(
            "batch_norm='whole' with units or heads that draw (dropout) needs the parts at the same time, in a process each; "
            "allowed: executor ray, or batch_norm='part'"
        )
    if devices[0] != "cpu" and len(devices) < stages:
        raise ConfigError(
            f"batch_norm='whole' with {stages} stages as threads on {len(devices)} GPUs would wait for itself; allowed: executor "
            "ray, a GPU for each stage, or batch_norm='part'"
        )


def part_size(batch_size: int, replicas: int) -> int:
    """Return the size of a part; ConfigError if the batch has no equal parts."""
    if batch_size % replicas:
        raise ConfigError(
            f"a batch of {batch_size} has no replicas={replicas} equal parts; allowed: a batch_size that {replicas} divides"
        )
    return batch_size // replicas


def parts_of(batch: Batch, replicas: int) -> list[Batch]:
    """Return the parts of a batch in order; each draws its own masks."""
    size, seed = part_size(len(batch.labels), replicas), batch.step_seed
    pairs = zip(batch.inputs.split(size), batch.labels.split(size), strict=True)
    return [replace(batch, inputs=x, labels=y, step_seed=replace(seed, part=d)) for d, (x, y) in enumerate(pairs)]


def mean(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the mean of each tensor over the parts, summed up in their order, so that every process rounds alike."""
    first, *others = parts
    if not others or not first:
        return list(first)
    total = list(torch._foreach_add(list(first), list(others[0])))
    for other in others[1:]:
        torch._foreach_add_(total, list(other))
    torch._foreach_div_(total, len(parts))
    return total


def merged(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return what becomes of buffers of which every part leaves its own: the mean of floats where parts differ, else the first's.

    Where nothing differs nothing may move: a mean of equal numbers is not always that number, and their sum may overflow.
    """
    return [_merged(each) if each[0].is_floating_point() else each[0] for each in zip(*parts, strict=True)]


def _merged(each: Sequence[Tensor]) -> Tensor:
    differs = torch.stack([other != each[0] for other in each[1:]]).any(dim=0)
    return torch.where(differs, mean([[own] for own in each])[0], each[0])


def used(parameters: Iterable[nn.Parameter]) -> list[bool]:
    """Return for each parameter whether a gradient has just flowed to it; a frozen one needs none."""
    return [not (p.requires_grad and getattr(p, "idle", False)) for p in parameters]


def mark_used(parameters: Iterable[nn.Parameter], parts: Sequence[Sequence[bool]]) -> None:
    """Mark as idle, see `differentiate`, what no part has used: every part then takes the same steps."""
    for parameter, *uses in zip(parameters, *parts, strict=True):
        parameter.idle = not any(uses)


def overwrite(buffers: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Copy values into buffers, of which graphs that still wait for an error know: what they read of them is not used."""
    for buffer, value in zip(buffers, values, strict=True):
        buffer.data.copy_(value)

"""Learner: one local module in training, and one pass of a batch through all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backlink_ray.local.graph import NOTHING
from backlink_ray.local.module import LocalModule
from backlink_ray.methods.base import Batch, LocalResult, Method
from backlink_ray.methods.state import MethodState
from backlink_ray.train.parts import mark_used, mean, merged, overwrite, parts_of, used


@dataclass(frozen=True, slots=True)
class Learner:
    """One module in training: the names of the parameters that its gradients are for, and its method's state."""

    module: LocalModule
    local: tuple[str, ...]
    linked: tuple[str, ...]
    state: MethodState

    @classmethod
    def of(cls, method: Method, module: LocalModule) -> "Learner":
        """Return a module that begins to learn."""
        local, linked = (
            tuple(name for name, _ in named(module)) for named in (method.local_parameters, method.linked_parameters)
        )
        return cls(module, local, linked, MethodState())


def one_pass(
    learners: Sequence[Learner], method: Method, batch: Batch, replicas: int = 1
) -> tuple[dict[str, Tensor], Tensor]:
    """Return gradients by name and local losses (K,); updates batch norm statistics and method states by one step.

    At most one module's graph is alive at any time, and the tail of the previous module. With replicas, each part of the batch
    passes by itself, from the same weights and statistics, and gradients, losses and statistics are means over the parts.
    """
    found: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    before: tuple[Learner, list[LocalResult]] | None = None
    parts = parts_of(batch, replicas)
    xs = [part.inputs for part in parts]
    for learner in learners:
        results, xs = _local_passes(method, learner, xs, parts)
        found.update(_by_name(learner.local, mean([result.local or [] for result in results])))
        if before is not None:
            found.update(_apply_link(method, *before, [result.error for result in results]))
        # Drop the errors now: they would hold one more activation during the next module's forward.
        results = [replace(result, error=NOTHING) for result in results]
        before = (learner, results) if method.has_link(learner.module) else None
        losses += mean([[result.loss] for result in results])
    return found, torch.stack(losses)


def _local_passes(
    method: Method, learner: Learner, xs: Sequence[Tensor], parts: Sequence[Batch]
) -> tuple[list[LocalResult], list[Tensor]]:
    """Return every part's result of a module's own loss, and the module's outputs."""
    if len(parts) == 1:
        result, x = _local_pass(method, learner, xs[0], parts[0])
        return [result], [x]
    parameters, buffers = list(learner.module.parameters()), list(learner.module.buffers())
    start = [b.clone() for b in buffers]
    found, moved, use = [], [], []
    for x, part in zip(xs, parts, strict=True):
        overwrite(buffers, start)
        found.append(_local_pass(method, learner, x, part))
        moved.append([b.clone() for b in buffers])
        use.append(used(parameters))
    overwrite(buffers, merged(moved))
    mark_used(parameters, use)
    return [result for result, _ in found], [x for _, x in found]


def _local_pass(method: Method, learner: Learner, x: Tensor, batch: Batch) -> tuple[LocalResult, Tensor]:
    """Return the result of a module's own loss, and the module's output."""
    module = learner.module
    body = method.forward_body(module, x, batch.step_seed)
    tail = method.forward_tail(module, body.output, batch.step_seed)
    retain = method.has_link(module) and method.retains_tail
    return method.local_backward(module, body, tail, batch, learner.state, retain=retain), tail.output


def _apply_link(
    method: Method, learner: Learner, results: Sequence[LocalResult], errors: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Apply the next module's errors, one for each part, to a module; return the gradients for this step's update."""
    if method.link_kind == "delayed":
        (learner.state.error,) = errors
        return {}
    tail = learner.module.tail(method.tail_length(learner.module))
    links, use = [], []
    for result, error in zip(results, errors, strict=True):
        links.append(method.link_backward(result.graph, error))
        use.append(used(tail.weights))
    mark_used(tail.weights, use)
    link = mean(links)
    local = mean([result.linked for result in results])
    return _by_name(learner.linked, method.mix(tail, local, method.link_gradients_to_mix(learner.state, link)))


def _by_name(names: Sequence[str], gradients: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(names, gradients, strict=True)) if gradients else {}

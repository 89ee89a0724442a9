"""Trainer: every local module, one after another, in one process; the reference that the pipeline must equal."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from backlink_ray.errors import ConfigError
from backlink_ray.local.module import LocalModule, StepSeed, load_named
from backlink_ray.methods.base import Batch, LocalResult, Method, Named
from backlink_ray.methods.state import MethodState
from backlink_ray.options import LARGEST_FLOAT, Option
from backlink_ray.seeds import SEED
from backlink_ray.train.optim import LearningRate, Recipe, Updater

_LR = Option(default=0.5, high=LARGEST_FLOAT, allowed="at least 0, finite")


@dataclass(frozen=True, slots=True)
class TrainState:
    """Everything a run needs to go on: tensors by name, and the next step.

    Random draws need no state: they follow from the seed and the step. In mode async what waits at the cuts is left out: a
    run goes on with empty buffers, and not as it would have without the stop.

    Attributes:
        weights: parameters and buffers.
        momentum: of the optimizers.
        step: how many steps were taken.
        method_state: what methods whose errors come late take from one step into the next.
    """

    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    step: int
    method_state: dict[str, Tensor] = field(default_factory=dict)


def gradients(
    modules: Sequence[LocalModule], method: Method, images: Tensor, labels: Tensor, step_seed: StepSeed | None = None
) -> dict[str, Tensor]:
    """Return the method's gradient of every parameter by name; no parameter and no statistic changes.

    It is the first step's: what only a later step can know (of DDG, the modules before the last) is 0, and in mode stale
    the tail's is the local gradient, since no link gradient has come yet.

    Args:
        modules: from `split`.
        method: for example BackLink(propagation_length=2, alpha=0.5).
        images: float (N, C, H, W), or whatever the first unit takes.
        labels: int64 (N,).
        step_seed: source of dropout masks; seed 0, step 0 if not given.

    Raises:
        ConfigError: the method cannot train these modules (a propagation length beyond the smallest one), or mode async.
    """
    prepared = _prepare(modules, method)
    kept = [(b, b.clone()) for module in prepared for b in module.buffers()]
    try:
        found, _ = one_pass(
            prepared, method, images, labels, step_seed or StepSeed(), [MethodState() for _ in prepared]
        )
        named = [pair for m in prepared for pair in (*method.local_parameters(m), *method.linked_parameters(m))]
        return {name: found[name] if name in found else torch.zeros_like(p) for name, p in named}
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def _prepare(modules: Sequence[LocalModule], method: Method) -> list[LocalModule]:
    if method.replay_size:
        raise ConfigError("mode='async' does not keep step, and a Trainer does; use an executor, or mode exact")
    return method.prepare(modules)


def one_pass(
    modules: Sequence[LocalModule],
    method: Method,
    images: Tensor,
    labels: Tensor,
    step_seed: StepSeed,
    method_states: Sequence[MethodState],
) -> tuple[dict[str, Tensor], Tensor]:
    """Return gradients by name and the local losses (K,); batch norm statistics move once, and the method states advance a step.

    At any time at most one module's graph is alive, and the tail of the one before it.
    """
    found: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    before: tuple[LocalModule, LocalResult, MethodState] | None = None
    batch, x = Batch(images, labels, step_seed), images
    for module, method_state in zip(modules, method_states, strict=True):
        result, x = _local_pass(method, module, x, batch, method_state)
        found.update(_by_name(method.local_parameters(module), result.rest or []))
        if before is not None:
            found.update(_apply_link(method, *before, result.error))
        # Drop the error now: it would hold one more activation during the next module's forward.
        result = replace(result, error=result.error.new_empty(0))
        before = (module, result, method_state) if method.has_link(module) else None
        losses.append(result.loss)
    return found, torch.stack(losses)


def _local_pass(
    method: Method, module: LocalModule, x: Tensor, batch: Batch, method_state: MethodState
) -> tuple[LocalResult, Tensor]:
    """Return what a module's own loss gave, and its output."""
    body = method.forward_body(module, x, batch.step_seed)
    tail = method.forward_tail(module, body.output, batch.step_seed)
    keep = method.has_link(module) and method.keeps_tail()
    return method.local_backward(module, body, tail, batch, method_state, keep_tail=keep), tail.output


def _apply_link(
    method: Method, module: LocalModule, result: LocalResult, method_state: MethodState, error: Tensor
) -> dict[str, Tensor]:
    """Apply the next module's error to a module; return the gradients of this step's update."""
    if method.link_kind == "delayed":
        method_state.error = error
        return {}
    tail = module.tail(method.tail_length(module))
    link = method.link_gradients_to_mix(method_state, method.link_backward(result.graph, error))
    return _by_name(method.linked_parameters(module), method.mix(tail, result.linked, link))


def _by_name(named: Named, gradients: list[Tensor]) -> dict[str, Tensor]:
    return {name: gradient for (name, _), gradient in zip(named, gradients, strict=bool(gradients))}


class Trainer:
    """Trains local modules step by step in one process.

    Args:
        modules: from `split`, put into training mode; shared, so the network itself learns.
        method: what their gradients are.
        lr: eta, a number or a function of the step.
        recipe: momentum, weight decay, Nesterov.
        seed: of dropout masks.

    Raises:
        ConfigError: the method cannot train these modules, or lr or seed is no such number.
    """

    def __init__(
        self,
        modules: Sequence[LocalModule],
        method: Method,
        lr: float | LearningRate = 0.5,
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        self.modules = _prepare(modules, method)
        self.method = method
        self.step_index = 0
        self._seed = SEED.read("seed", seed)
        self._lr = lr if callable(lr) else _LR.read("lr", lr)
        self._updaters = [
            Updater((pair for m in self.modules for pair in method.local_parameters(m)), recipe or Recipe()),
            Updater(
                (pair for m in self.modules for pair in method.linked_parameters(m)),
                recipe or Recipe(),
                method.helper_lr,
            ),
        ]
        self._method_states = [MethodState() for _ in self.modules]
        for module in self.modules:
            module.train()

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on one batch, images (N, C, H, W) and labels (N,), and return the local losses (K,) before the update."""
        step_seed = StepSeed(self._seed, self.step_index)
        found, losses = one_pass(self.modules, self.method, images, labels, step_seed, self._method_states)
        lr = self._lr(self.step_index) if callable(self._lr) else self._lr
        for updater in self._updaters:
            updater.update([found.get(name) for name in updater.names], lr)
        self.step_index += 1
        return losses

    def state(self) -> TrainState:
        """Return weights, batch norm statistics, momentum and step; the tensors are the live ones."""
        weights = {n: t.detach() for module in self.modules for n, t in module.named_state()}
        momentum = {n: t for updater in self._updaters for n, t in updater.momentum().items()}
        method_state = {
            n: t
            for m, kept in zip(self.modules, self._method_states, strict=True)
            for n, t in kept.tensors(m.module_index)
        }
        return TrainState(weights, momentum, self.step_index, method_state)

    def load(self, state: TrainState) -> None:
        """Go on from a state; a tensor that is missing is a KeyError by its name."""
        load_named(self.modules, state.weights)
        for updater in self._updaters:
            updater.load_momentum(state.momentum)
        for module, method_state in zip(self.modules, self._method_states, strict=True):
            method_state.load(module.module_index, state.method_state, module.chain, self._seed)
        self.step_index = state.step

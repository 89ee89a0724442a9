"""Trainer: every local module, one after another, in one process; the reference that the pipeline must equal."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backlink_ray.local.graph import Graph
from backlink_ray.local.module import Draws, LocalModule, load_named
from backlink_ray.methods.base import LocalResult, Method
from backlink_ray.train.optim import LearningRate, Recipe, Updater


@dataclass(frozen=True, slots=True)
class TrainState:
    """Everything a run needs to go on: tensors by name, and the next step.

    Random draws need no state: they follow from the seed and the step.
    """

    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    step: int


def gradients(
    modules: Sequence[LocalModule], method: Method, images: Tensor, labels: Tensor, draws: Draws | None = None
) -> dict[str, Tensor]:
    """Return the method's gradient of every parameter by name; no parameter and no statistic changes.

    Args:
        modules: from `split`.
        method: for example BackLink(propagation_length=2, alpha=0.5).
        images: float (N, C, H, W), or whatever the first unit takes.
        labels: int64 (N,).
        draws: source of dropout masks; seed 0, step 0 if not given.

    Raises:
        ConfigError: the method cannot train these modules (a propagation length beyond the smallest one).
    """
    arranged = method.arrange(modules)
    kept = [(b, b.clone()) for module in arranged for b in module.buffers()]
    try:
        return one_pass(arranged, method, images, labels, draws or Draws())[0]
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def one_pass(
    modules: Sequence[LocalModule], method: Method, images: Tensor, labels: Tensor, draws: Draws
) -> tuple[dict[str, Tensor], Tensor]:
    """Return gradients by name and the local losses (K,); batch norm statistics move once.

    At any time at most one module's graph is alive, and the tail of the one before it.
    """
    found: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    before: tuple[LocalModule, Graph, LocalResult] | None = None
    x = images
    for module in modules:
        body = method.forward_body(module, x, draws)
        tail = method.forward_tail(module, body.output, draws)
        linked = method.tail_length(module) > 0
        result = method.local_backward(module, body, tail, labels, draws, keep_tail=linked and method.keeps_tail())
        found.update(_rest(module, method, result))
        if before is not None:
            found.update(_linked(method, *before, result.error))
        before = (module, tail, result) if linked else None
        losses.append(result.loss)
        x = tail.output
    return found, torch.stack(losses)


def _rest(module: LocalModule, method: Method, result: LocalResult) -> dict[str, Tensor]:
    names = [n for n, _ in module.body(method.tail_length(module)).named()] + [n for n, _ in module.head_named()]
    return dict(zip(names, result.rest, strict=True))


def _linked(method: Method, module: LocalModule, tail: Graph, result: LocalResult, error: Tensor) -> dict[str, Tensor]:
    chain = module.tail(method.tail_length(module))
    mixed = method.mix(chain, result.tail, method.link_backward(tail, error))
    return dict(zip((n for n, _ in chain.named()), mixed, strict=True))


class Trainer:
    """Trains local modules step by step in one process.

    Args:
        modules: from `split`, put into training mode; shared, so the network itself learns.
        method: what their gradients are.
        lr: eta, a number or a function of the step.
        recipe: momentum, weight decay, Nesterov.
        seed: of dropout masks.

    Raises:
        ConfigError: the method cannot train these modules.
    """

    def __init__(
        self,
        modules: Sequence[LocalModule],
        method: Method,
        lr: float | LearningRate = 0.5,
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        self.modules = method.arrange(modules)
        self.method = method
        self.step_index = 0
        self._seed = seed
        self._lr = lr
        self._named = dict(pair for module in self.modules for pair in module.named())
        self._updater = Updater(self._named.items(), recipe or Recipe())
        for module in self.modules:
            module.train()

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on one batch, images (N, C, H, W) and labels (N,), and return the local losses (K,) before the update."""
        found, losses = one_pass(self.modules, self.method, images, labels, Draws(self._seed, self.step_index))
        lr = self._lr(self.step_index) if callable(self._lr) else self._lr
        self._updater.update([found[name] for name in self._named], lr)
        self.step_index += 1
        return losses

    def state(self) -> TrainState:
        """Return weights, batch norm statistics, momentum and step; the tensors are the live ones."""
        weights = {n: t.detach() for module in self.modules for n, t in module.named_state()}
        return TrainState(weights, self._updater.momentum(), self.step_index)

    def load(self, state: TrainState) -> None:
        """Go on from a state; a tensor that is missing is a KeyError by its name."""
        load_named(self.modules, state.weights)
        self._updater.load_momentum(state.momentum)
        self.step_index = state.step

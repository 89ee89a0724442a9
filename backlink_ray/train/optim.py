"""Updater: SGD over named parameters whose gradients come as a list, and the learning rate of the recipe."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LearningRate = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """lr(step): linear from 0 to the peak over the warm-up, then a half cosine to 0 at the run's end.

    Args:
        lr: the peak, eta.
        num_steps: steps of the whole run.
        warmup_fraction: part of the run, 0..1, that warms up.
    """

    lr: float
    num_steps: int
    warmup_fraction: float = 0.05

    def __call__(self, step: int) -> float:
        """Return the learning rate of one step, from 0."""
        warmup = round(self.num_steps * self.warmup_fraction)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.num_steps - warmup)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """SGD as the paper states it: momentum 0.9, weight decay 1e-4 on everything; Nesterov is this library's decision."""

    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = True


class Updater:
    """SGD over some named parameters.

    Updating a module in parts (body and head, tail, a tail's replica) gives the same bits as updating it at once, because
    SGD treats each element alone; that is what lets a stage update its body before the tail's gradient has arrived.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], recipe: Recipe) -> None:
        self._named = dict(named)
        self._sgd = torch.optim.SGD(
            list(self._named.values()) or [torch.empty(0)],
            lr=0.0,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0,
        )

    def update(self, gradients: Sequence[Tensor], lr: float) -> None:
        """Take one step along gradients, one for each parameter in order."""
        self._sgd.param_groups[0]["lr"] = lr
        for parameter, gradient in zip(self._named.values(), gradients, strict=True):
            if parameter.requires_grad:  # a frozen parameter does not even decay
                parameter.grad = gradient
        self._sgd.step()
        self._sgd.zero_grad(set_to_none=True)

    def momentum(self) -> dict[str, Tensor]:
        """Return the momentum of every parameter that has taken a step, by the parameter's name."""
        states = ((name, self._sgd.state[p].get("momentum_buffer")) for name, p in self._named.items())
        return {name: buffer for name, buffer in states if buffer is not None}

    def load_momentum(self, state: dict[str, Tensor]) -> None:
        """Put momentum back by name; a parameter without an entry starts without."""
        for name, parameter in self._named.items():
            self._sgd.state[parameter].clear()
            if name in state:
                self._sgd.state[parameter]["momentum_buffer"] = state[name].detach().clone().to(parameter.device)

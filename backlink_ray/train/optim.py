"""Updater: SGD over named parameters whose gradients come as a list, and the recipe's learning rate."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlink_ray.options import check_options, flag, number

LearningRate = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """lr(step): linear from 0 to the peak over the warm-up, then a half cosine to 0 at the run's end.

    Args:
        lr: the peak, eta.
        num_steps: steps of the whole run.
        warmup_fraction: fraction of the run, 0..1, spent on the warm-up.
    """

    lr: float
    num_steps: int
    warmup_fraction: float = 0.05

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup = round(self.num_steps * self.warmup_fraction)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.num_steps - warmup)))


@dataclass(frozen=True, kw_only=True)
class SgdOptions:
    """SGD as the paper states it."""

    momentum: float = number(0.9, 0.0, math.nextafter(1.0, 0.0), "0..1, 1 excluded")
    """Nesterov momentum, 0..1 (1 excluded)."""
    weight_decay: float = number(1e-4)
    """L2 penalty on every parameter, once per update."""


@dataclass(frozen=True, kw_only=True)
class Recipe(SgdOptions):
    """How a run updates its parameters; Nesterov is this library's choice."""

    nesterov: bool = flag(True)
    """Nesterov's form of momentum."""

    def __post_init__(self) -> None:
        check_options(self)


class Updater:
    """SGD, or Adam for helpers that need it, over named parameters.

    Both are elementwise, so updating a module in parts (body and head, tail, a tail's replica) gives the same bits as
    updating it at once; a stage can therefore update its body before the tail's gradient has arrived.

    Args:
        named: the parameters; a frozen one does not even decay.
        recipe: of SGD.
        adam_lr: constant learning rate of Adam, without decay; 0 for SGD.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], recipe: Recipe, adam_lr: float = 0.0) -> None:
        self._named = dict(named)
        self._adam_lr = adam_lr
        parameters: list[Tensor] = [*self._named.values()] or [torch.empty(0)]
        self._optimizer: torch.optim.Optimizer
        if adam_lr:
            self._optimizer = torch.optim.Adam(parameters, lr=adam_lr)
        else:
            decay, nesterov = recipe.weight_decay, recipe.nesterov and recipe.momentum > 0
            self._optimizer = torch.optim.SGD(parameters, 0.0, recipe.momentum, weight_decay=decay, nesterov=nesterov)

    @property
    def names(self) -> list[str]:
        """Return the parameters' names in order."""
        return list(self._named)

    def update(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        """Take one step along the gradients, one per parameter in order (None: no update); lr is for SGD."""
        self._optimizer.param_groups[0]["lr"] = self._adam_lr or lr
        for parameter, gradient in zip(self._named.values(), gradients, strict=True):
            if parameter.requires_grad:
                parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def momentum(self) -> dict[str, Tensor]:
        """Return momentum by name, and Adam's state as "<name>/<part>", of every parameter that was updated at least once."""
        return {
            name if part == _MOMENTUM else f"{name}/{part}": tensor
            for name, parameter in self._named.items()
            for part, tensor in self._optimizer.state[parameter].items()
            if tensor is not None
        }

    def load_momentum(self, state: dict[str, Tensor]) -> None:
        """Restore momentum by name; a parameter without an entry starts without."""
        for name, parameter in self._named.items():
            own = {part: state[key].detach().clone() for part, key in self._keys(name) if key in state}
            # Adam's step count stays on the CPU, wherever the parameter is.
            self._optimizer.state[parameter] = {
                part: tensor if part == "step" else tensor.to(parameter.device) for part, tensor in own.items()
            }

    def _keys(self, name: str) -> list[tuple[str, str]]:
        return [(part, f"{name}/{part}") for part in _ADAM] if self._adam_lr else [(_MOMENTUM, name)]


_MOMENTUM, _ADAM = "momentum_buffer", ("step", "exp_avg", "exp_avg_sq")

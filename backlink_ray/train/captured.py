"""Captured: a training step whose work on a GPU is recorded once and replayed, instead of launched operation by operation.

A ResNet-32 at K = 16 is about a thousand small operations a step, which a GPU finishes faster than Python launches them.
Draws on the GPU follow from (seed, step), in the order of the step: a graph cannot be seeded unit by unit.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from backlink_ray.errors import ConfigError
from backlink_ray.local.module import LocalModule
from backlink_ray.methods.base import Method
from backlink_ray.nets.network import dtype_and_device
from backlink_ray.seeds import seeded
from backlink_ray.train.optim import Updater
from backlink_ray.train.recorder import Recorder

# Steps before the capture, on a stream of their own: momentum and workspaces are allocated, kernels chosen.
WARM_UP = 3


class Captured:
    """Calls step(inputs, labels), which returns losses (K,): eagerly at first, then as a CUDA graph.

    Args:
        step: everything between the inputs and the updated weights; what it reads else must stay where it is in memory.
        modules: that it trains, all on one GPU.
        seed: of the run.

    Raises:
        ConfigError: at a call: a unit draws random numbers on the processor, or the step cannot be captured.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], modules: Sequence[LocalModule], seed: int) -> None:
        self._step, self._seed = step, seed
        self._draws = draw(modules)
        self._device = dtype_and_device(*modules)[1]
        self._recorder = Recorder(self._device)
        self._shapes: tuple[torch.Size, ...] = ()  # of the first batch; others are trained on eagerly
        self._replay: Callable[[], None] | None = None
        self._calls = 0

    def __call__(self, inputs: Tensor, labels: Tensor, step_index: int) -> Tensor:
        """Take one step; the losses (K,) are the caller's own."""
        shapes = (inputs.shape, labels.shape)
        self._calls, self._shapes = self._calls + 1, self._shapes or shapes
        with torch.cuda.device(self._device), self._drawing(step_index):
            if self._calls <= WARM_UP or shapes != self._shapes:
                return self._recorder.call(lambda: self._step(inputs, labels))
            replay = self._replay or self._record(inputs, labels)
            self._inputs.copy_(inputs)
            self._labels.copy_(labels)
            replay()
            return self._losses.clone()

    def _drawing(self, step_index: int) -> AbstractContextManager[None]:
        return seeded(self._seed, "step", step_index) if self._draws else nullcontext()

    def _record(self, inputs: Tensor, labels: Tensor) -> Callable[[], None]:
        self._inputs, self._labels = inputs.clone(), labels.clone()
        self._replay, self._losses = self._recorder.record(lambda: self._step(self._inputs, self._labels))
        return self._replay


def draw(modules: Sequence[LocalModule]) -> bool:
    """Return whether a unit or head draws random numbers."""
    return any(any(module.chain.uses_rng) or module.head_uses_rng for module in modules)


def check_capture(
    method: Method, modules: Sequence[LocalModule], updaters: Sequence[Updater] = (), *, in_stages: bool = False
) -> None:
    """Raise ConfigError, with the reason, if a step of this method and these optimizers cannot be captured.

    Args:
        in_stages: the modules train in stages, which must agree without drawing the same numbers.
    """
    tails = [module.tail(method.tail_length(module)) for module in modules]
    tails_draw = any(any(tail.uses_rng) for tail in tails)
    has_replicas = in_stages and method.link_kind == "replica"
    reason = ""
    if method.is_stale or method.link_kind == "delayed":
        reason = f"method {method.name} here carries gradients from one step to the next"
    elif method.replay_size:
        reason = f"method {method.name} in mode async uses activations of any step"
    elif method.helper_lr or not all(updater.can_be_captured for updater in updaters):
        reason = (
            "an optimizer computes its update, or has its lr, on the processor (allowed: sgd, or "
            "capturable=True and a tensor as lr)"
        )
    elif tails_draw and not method.retains_tail:
        reason = "a tail that is recomputed would draw other random numbers than before (allowed: tail_memory retain)"
    elif tails_draw and has_replicas:
        reason = (
            "a replica would draw other random numbers than the tail itself (allowed: link error, or executor local)"
        )
    elif has_replicas and any(len({p.dtype for p in tail.weights}) > 1 for tail in tails):
        reason = "gradients of a tail with weights of several types are converted between stages (allowed: link error)"
    if reason:
        raise ConfigError(f"graph=True cannot capture this step: {reason}; use graph=False")

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
from backlink_ray.seeds import host_states, seeded
from backlink_ray.train.optim import Updater

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
        self._stream = torch.cuda.Stream(self._device)
        self._shapes: tuple[torch.Size, ...] = ()  # of the first batch; others are trained on eagerly
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, inputs: Tensor, labels: Tensor, step_index: int) -> Tensor:
        """Take one step; the losses (K,) are the caller's own."""
        shapes = (inputs.shape, labels.shape)
        self._calls, self._shapes = self._calls + 1, self._shapes or shapes
        with torch.cuda.device(self._device), self._drawing(step_index):
            if self._calls <= WARM_UP or shapes != self._shapes:
                return self._eager(inputs, labels)
            graph = self._graph or self._capture(inputs, labels)
            self._inputs.copy_(inputs)
            self._labels.copy_(labels)
            graph.replay()
            return self._losses.clone()

    def _drawing(self, step_index: int) -> AbstractContextManager[None]:
        return seeded(self._seed, "step", step_index) if self._draws else nullcontext()

    def _eager(self, inputs: Tensor, labels: Tensor) -> Tensor:
        before, here = host_states(), torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            losses = self._step(inputs, labels)
        here.wait_stream(self._stream)
        if host_states() != before:
            raise ConfigError(
                "a unit draws random numbers on the processor, and a captured step would repeat the first ones for ever; "
                "draw on the GPU, or use graph=False"
            )
        return losses

    def _capture(self, inputs: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        self._inputs, self._labels, graph = inputs.clone(), labels.clone(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._losses = self._step(self._inputs, self._labels)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"the step cannot be captured as a CUDA graph ({reason}); use graph=False") from error
        self._graph = graph
        return graph


def draw(modules: Sequence[LocalModule]) -> bool:
    """Return whether a unit or head draws random numbers."""
    return any(any(module.chain.uses_rng) or module.head_uses_rng for module in modules)


def check_capture(method: Method, modules: Sequence[LocalModule], updaters: Sequence[Updater]) -> None:
    """Raise ConfigError, with the reason, if a step of this method and optimizer cannot be captured."""
    reason = ""
    if method.is_stale or method.link_kind == "delayed":
        reason = f"method {method.name} here carries gradients from one step to the next"
    elif not all(updater.can_be_captured for updater in updaters):
        reason = (
            "an optimizer computes its update, or has its lr, on the processor (allowed: sgd, or "
            "capturable=True and a tensor as lr)"
        )
    elif not method.retains_tail and draw(modules):
        reason = "a tail that is recomputed would draw other random numbers than before (allowed: tail_memory retain)"
    if reason:
        raise ConfigError(f"graph=True cannot capture this step: {reason}; use graph=False")

"""Graph: one forward of a module, detached at both ends, through which an error can be backpropagated later."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.local.copying import copy_chain
from backlink_ray.local.module import Chain, StepSeed
from backlink_ray.local.weights import copy_weights
from backlink_ray.seeds import turn

# In the place of an error that nobody wants.
NOTHING = torch.empty(0)


class Graph:
    """The forward of a chain, or of a helper, on x, with its autograd graph.

    Detaching both ends is what makes learning local: no error passes unless it is passed on explicitly. A backward without
    a graph (freed by an earlier backward, or never recorded) repeats the forward with the buffers of the first one, so batch
    norm statistics are updated once; that is why a graph that is to be repeated keeps them.

    Args:
        module: called with x and context; an empty chain returns its input.
        x: input (N, ...), detached here.
        context: a chain's `StepSeed`, a synthesizer's labels.
        wants_input_gradient: whether `backward` can also return the gradient at x.
        recompute: record no graph now.
        repeatable: allow a backward after the graph was freed.
        copies_weights: forward with a copy of the parameters, so that they may be updated before the backward.
    """

    def __init__(
        self,
        module: nn.Module,
        x: Tensor,
        context: Any,
        *,
        wants_input_gradient: bool,
        recompute: bool = False,
        repeatable: bool = False,
        copies_weights: bool = False,
    ) -> None:
        self._module, self._context = module, context
        self._trained = module  # whose parameters the gradients are for
        self._input = x.detach().requires_grad_(wants_input_gradient)
        self._repeatable = recompute or repeatable
        kept = module.named_buffers() if self._repeatable else ()
        self._buffers = {n: b.clone() for n, b in kept}
        copied = module.named_parameters() if copies_weights else ()
        self._weights = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in copied}
        # Compiled without gradients, the forward might round otherwise than with them.
        with torch.set_grad_enabled(not recompute or self._is_compiled):
            output = self._forward({})
        self.output = output.detach()
        self._recorded: Tensor | None = None if recompute else output

    @property
    def _is_compiled(self) -> bool:
        return isinstance(self._context, StepSeed) and self._context.engine.compile != "none"

    def _forward(self, buffers: Mapping[str, Tensor]) -> Tensor:
        replaced = {**self._weights, **buffers}
        if not replaced:
            return self._module(self._input, self._context)  # type: ignore[no-any-return]
        return torch.func.functional_call(self._module, replaced, (self._input, self._context))  # type: ignore[no-any-return]

    def backward(self, error: Tensor, *, retain: bool = False, to_input: bool = True) -> tuple[list[Tensor], Tensor]:
        """Backpropagate d loss / d output.

        Args:
            error: gradient at the output, of its shape.
            retain: keep the graph for another backward.
            to_input: also compute the gradient at the input, if it was wanted.

        Returns:
            Gradients of the module's parameters in their order, and the gradient at the input (empty if not wanted).
        """
        if isinstance(self._module, Chain) and not len(self._module):
            return [], error
        if self._recorded is None and not self._repeatable:
            raise ConfigError(
                "a graph was freed by an earlier backward; allowed: backward(..., retain=True) before another one"
            )
        # Clones, since a batch norm updates the buffers it is called with.
        clones = {n: b.clone() for n, b in self._buffers.items()} if self._recorded is None else {}
        output = self._forward(clones) if self._recorded is None else self._recorded
        if not retain:
            self._recorded = None
        parameters = list(self._weights.values()) or _parameters(self._module)
        inputs = [self._input] if self._input.requires_grad and to_input else []
        gradients = self._differentiate(output, [*parameters, *inputs], _laid_out(error, output), retain)
        for parameter, copied in zip(_parameters(self._trained), parameters, strict=True) if self._weights else ():
            parameter.idle = copied.idle  # type: ignore[attr-defined]
        return gradients[: len(parameters)], gradients[-1] if inputs else NOTHING

    def _differentiate(self, output: Tensor, inputs: Sequence[Tensor], error: Tensor, retain: bool) -> list[Tensor]:
        buffers = list(self._module.buffers())
        before = [b._version for b in buffers]
        draws = isinstance(self._module, Chain) and any(self._module.uses_rng)
        try:
            with turn() if draws else nullcontext():
                gradients = self._with_weights(lambda: differentiate(output, inputs, error, retain=retain))
        except RuntimeError as failure:
            if "donated buffer" not in str(failure):
                raise
            raise ConfigError(
                "a compiled unit frees its graph in the first of two backward passes; allowed here: tail_memory='recompute'"
            ) from failure
        if before != [b._version for b in buffers]:
            raise ConfigError(
                "a unit repeats its forward in its backward (torch.utils.checkpoint), which updates its batch norms' "
                "statistics again; leave batch norms out of what is checkpointed"
            )
        return gradients

    def _with_weights(self, call: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return call(), with the copied weights in place: a checkpointed unit repeats its forward in the backward."""
        if not self._weights:
            return call()
        weights = {f"module.{name}": weight for name, weight in self._weights.items()}
        return torch.func.functional_call(_Calls(self._module), weights, (call,))  # type: ignore[no-any-return]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what `restored` needs from a forward that copied its weights: input, step, weights."""
        yield "input", self._input.detach()
        # A checkpoint keeps no strides.
        yield "input.channels_last", torch.tensor(int(_is_channels_last(self._input)))
        yield "input.wanted", torch.tensor(int(self._input.requires_grad))
        yield "step", torch.tensor(self._context.step)
        yield from ((f"weights.{name}", tensor.detach()) for name, tensor in self._weights.items())

    @classmethod
    def restored(cls, chain: Chain, tensors: Mapping[str, Tensor], step_seed: StepSeed) -> "Graph":
        """Compute again the forward that gave `tensors`; the chain's own weights and statistics do not change."""
        own = copy_chain(chain)
        weights = {name: tensors[f"weights.{name}"] for name, _ in own.named_parameters()}
        copy_weights(dict(own.named_parameters()), weights)
        wanted, x = bool(tensors["input.wanted"]), tensors["input"]
        x = x.contiguous(memory_format=torch.channels_last) if tensors["input.channels_last"] else x
        graph = cls(own, x, step_seed, wants_input_gradient=wanted, copies_weights=True)
        graph._trained = chain
        return graph


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _laid_out(error: Tensor, output: Tensor) -> Tensor:
    """Return the error in the type and memory format of the output: elementwise backwards are many times slower across two."""
    if (error.dtype, error.stride()) == (output.dtype, output.stride()):
        return error
    return torch.empty_like(output, requires_grad=False).copy_(error)


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    return module.weights if isinstance(module, Chain) else list(module.parameters())


class _Calls(nn.Module):
    """Holds a module while something is called."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, call: Callable[[], list[Tensor]]) -> list[Tensor]:
        return call()


def differentiate(
    output: Tensor, inputs: Sequence[Tensor], error: Tensor | None = None, *, retain: bool = False
) -> list[Tensor]:
    """Return the gradient of output at each input; zeros for inputs that are frozen or that output does not depend on.

    Those are marked `idle`, so that a parameter to which no gradient flows does not even decay, as in torch.
    """
    live = [x for x in inputs if x.requires_grad]
    by_id: dict[int, Tensor | None] = {}
    if live and output.requires_grad:
        found = torch.autograd.grad(output, live, error, retain_graph=retain, allow_unused=True)
        by_id = {id(x): gradient for x, gradient in zip(live, found, strict=True)}
    for x in inputs:
        x.idle = by_id.get(id(x)) is None  # type: ignore[attr-defined]
    return [torch.zeros_like(x) if (gradient := by_id.get(id(x))) is None else gradient for x in inputs]

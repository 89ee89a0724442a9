"""DDG: decoupled parallel backpropagation with delayed gradients; each module applies the error of a different batch.

Card
    paper       Huo, Gu, Yang, Huang, "Decoupled Parallel Backpropagation with Convergence Guarantee", ICML 2018, Alg. 1
    rule        at step t module k applies the error of batch t - (K - k), with the weights and activations of that step
    crosses     activations forward in the same step; backward the error, one module per step
    stash       an update invalidates the saved graphs of its parameters, so each pending forward runs on a copy of the
                weights: K - k copies in module k
    loss        CE at the end; the other modules have no loss of their own, and theirs is reported as 0
    deviations  module k updates nothing in its first K - k steps, for which there is no error yet
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backlink_ray.local.graph import NOTHING, Graph
from backlink_ray.local.module import LocalModule, StepSeed
from backlink_ray.methods.base import Batch, LocalResult, Method, Named
from backlink_ray.methods.state import MethodState


@dataclass(frozen=True, kw_only=True)
class DDG(Method):
    """Decoupled parallel backpropagation with delayed gradients."""

    name: ClassVar[str] = "ddg"

    @property
    def link_kind(self) -> str:
        return "delayed"

    def local_parameters(self, module: LocalModule) -> Named:
        """Yield the units, and the head of the last module; no other head has a loss."""
        return module.network_named()

    def forward_body(self, module: LocalModule, x: Tensor, step_seed: StepSeed) -> Graph:
        wanted = self.wants_error(module)
        return Graph(module.body(0), x, step_seed, wants_input_gradient=wanted, copies_weights=not module.is_last)

    def local_backward(
        self, module: LocalModule, body: Graph, tail: Graph, batch: Batch, state: MethodState, *, retain: bool = False
    ) -> LocalResult:
        """Backpropagate the delayed error through the oldest pending forward; in the last module, its loss."""
        if module.is_last:
            return super().local_backward(module, body, tail, batch, state)
        state.stash.append(body)
        no_loss, nothing = tail.output.new_zeros(()), NOTHING
        if not state.error.numel():
            return LocalResult(no_loss, None, [], nothing, tail)
        delayed, state.error = state.error, nothing
        gradients, error = state.stash.popleft().backward(delayed)
        return LocalResult(no_loss, gradients, [], error, tail)

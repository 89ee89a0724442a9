"""DDG: decoupled parallel backpropagation with delayed gradients: every module works on another batch's error.

Card
    paper       Huo, Gu, Yang, Huang, "Decoupled Parallel Backpropagation with Convergence Guarantee", ICML 2018, Alg. 1
    rule        module k applies at step t the error of batch t - (K - k), with the weights and activations of that step
    crosses     activations forward in the same step; backward the error, one module a step
    stash       a saved graph does not survive an update of its own parameters, so each waiting forward is made with a copy
                of the weights: K - k copies in module k
    loss        CE at the end; the other modules have none of their own, so theirs is reported as 0
    deviations  module k updates nothing in its first K - k steps, for which no error has come back
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backlink_ray.local.graph import Graph
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
        """Yield the units, and the head of the last module: no other head has a loss."""
        return module.network_named()

    def forward_body(self, module: LocalModule, x: Tensor, step_seed: StepSeed) -> Graph:
        wanted = self.wants_error(module)
        return Graph(module.body(0), x, step_seed, wants_input_gradient=wanted, copies_weights=not module.is_last)

    def local_backward(
        self,
        module: LocalModule,
        body: Graph,
        tail: Graph,
        batch: Batch,
        method_state: MethodState,
        *,
        keep_tail: bool = False,
    ) -> LocalResult:
        """Walk the oldest waiting forward back from the error that came for it; in the last module from the loss."""
        if module.is_last:
            return super().local_backward(module, body, tail, batch, method_state)
        method_state.stash.append(body)
        no_loss, nothing = tail.output.new_zeros(()), tail.output.new_empty(0)
        if not method_state.error.numel():
            return LocalResult(no_loss, None, [], nothing, tail)
        late, method_state.error = method_state.error, nothing
        gradients, error = method_state.stash.popleft().backward(late)
        return LocalResult(no_loss, gradients, [], error, tail)

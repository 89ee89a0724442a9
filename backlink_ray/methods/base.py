"""Method: what a training rule does with one local module and one batch, in calls small enough to be spread over stages.

    x ──▶ body ──▶ a ──▶ tail ──▶ y ──▶ head ──▶ loss
               cut          cut
Both executors make the same calls in the same order for each module, which is why their weights are equal bit for bit:
forward_body, forward_tail, local_backward, and where there is a link: link_backward and mix.
The base class is a complete method by itself: every module learns from its own loss, and nothing crosses a cut.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from backlink_ray.local.graph import Graph, differentiate
from backlink_ray.local.losses import cross_entropy
from backlink_ray.local.module import Chain, LocalModule, ModuleSpec, NoHelper, StepSeed
from backlink_ray.local.sizes import check_propagation
from backlink_ray.methods.state import MethodState
from backlink_ray.options import check_needs, check_options
from backlink_ray.seeds import seeded

Named = Iterator[tuple[str, nn.Parameter]]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's data as a local loss sees it.

    Attributes:
        images: the network's input (N, ...); empty where the method has no use for it (`Method.wants_images`).
        labels: int64 (N,).
        step_seed: source of random draws.
    """

    images: Tensor
    labels: Tensor
    step_seed: StepSeed


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What one module's own loss gave.

    Attributes:
        loss: scalar, detached; 0 where the module has no loss of its own.
        rest: gradients of `Method.local_parameters`, ready for the update; None leaves these parameters as they are.
        linked: local gradients of `Method.linked_parameters`, not mixed yet.
        error: gradient at the module's input (empty if not wanted).
        graph: what the next module's error goes back through (the tail's, unless a method says otherwise).
    """

    loss: Tensor
    rest: list[Tensor] | None
    linked: list[Tensor]
    error: Tensor
    graph: Graph


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training rule. Subclasses say how long the tail is, how its gradients mix, and what the local loss is."""

    name: ClassVar[str] = "method"
    can_be_base: ClassVar[bool] = False  # BackLink may build on its local losses

    def __post_init__(self) -> None:
        check_options(self)
        check_needs(self)

    @property
    def linked_units(self) -> int:
        """Return the number of tail units in every module but the last (the propagation length, where there is one)."""
        return 0

    @property
    def link_kind(self) -> str:
        """Return how the next module's error comes back over a pipeline.

        "": it does not; "replica": it goes through a copy of the tail in the next stage; "error": it is sent back, and the
        step ends with it; "delayed": it is sent back for the next step.
        """
        return ""

    @property
    def is_stale(self) -> bool:
        """Tell whether the tail's link gradients are those of the step before."""
        return False

    @property
    def replay_size(self) -> int:
        """Return how many activations stay at every cut for stages that do not keep step; 0 where they keep step."""
        return 0

    @property
    def wants_images(self) -> bool:
        """Tell whether the local loss looks at the network's input."""
        return False

    @property
    def helper_lr(self) -> float:
        """Return the constant learning rate of Adam for linked helpers; 0 where SGD moves every parameter."""
        return 0.0

    def prepare(self, modules: Sequence[LocalModule]) -> list[LocalModule]:
        """Return the modules this method trains, with its helpers; ConfigError where it cannot train them."""
        check_propagation(self.linked_units, [len(m.units) for m in modules])
        return [self._with_helper(module) for module in modules]

    def _with_helper(self, module: LocalModule) -> LocalModule:
        spec = module.spec
        with seeded(spec.seed, "init/helper", spec.module_index):
            helper = NoHelper() if module.is_last else self.build_helper(spec)
        kept = _form(helper) == _form(module.helper)  # it may have learned already
        return module if kept else module.with_helper(helper)

    def build_helper(self, spec: ModuleSpec) -> nn.Module:
        """Return a new helper, as torch starts it, for a module but the last; ConfigError where its features do not suit."""
        return NoHelper()

    def tail_length(self, module: LocalModule) -> int:
        """Return how many units of this module get the next module's error."""
        return 0 if module.is_last else self.linked_units

    def has_link(self, module: LocalModule) -> bool:
        """Tell whether the next module's error reaches this module."""
        return bool(self.link_kind) and not module.is_last

    def wants_error(self, module: LocalModule) -> bool:
        """Tell whether the module before needs the error at this module's input."""
        return bool(self.link_kind) and module.module_index > 0

    def local_parameters(self, module: LocalModule) -> Named:
        """Yield the parameters that this module's own loss trains alone: body, head, helper."""
        yield from module.body(self.tail_length(module)).named()
        yield from module.head_named()
        yield from module.helper_named()

    def linked_parameters(self, module: LocalModule) -> Named:
        """Yield the parameters whose update waits for the next module's error: the tail's."""
        yield from module.tail(self.tail_length(module)).named()

    def forward_body(self, module: LocalModule, x: Tensor, step_seed: StepSeed) -> Graph:
        """Forward the body on x (N, ...); its output is what may leave the module at once."""
        return Graph(module.body(self.tail_length(module)), x, step_seed, wants_input_gradient=self.wants_error(module))

    def forward_tail(self, module: LocalModule, a: Tensor, step_seed: StepSeed) -> Graph:
        """Forward the module's own tail on the body's output a."""
        tail = module.tail(self.tail_length(module))
        wanted = len(tail) < len(module.units) or self.wants_error(module)
        return Graph(tail, a, step_seed, wants_input_gradient=wanted)

    def forward_replica(self, replica: Chain, a: Tensor, step_seed: StepSeed) -> Graph:
        """Forward the copy of the previous module's tail; its only backward is the link's."""
        return Graph(replica, a, step_seed, wants_input_gradient=False)

    def keeps_tail(self) -> bool:
        """Tell whether a tail keeps its graph for the next module's error."""
        return True

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
        """Backpropagate the module's own loss through head, tail and body; frees the body's graph, and the tail's unless kept."""
        features = tail.output.detach().requires_grad_()
        loss = self.loss(module, features, batch)
        *own, error = differentiate(loss, [*module.head.parameters(), *module.helper.parameters(), features])
        tail_gradients, error = tail.backward(error, keep=keep_tail)
        body_gradients, error = body.backward(error)
        rest = [*self.scale_body(module, body_gradients), *own]
        return LocalResult(loss.detach(), rest, tail_gradients, error, tail)

    def loss(self, module: LocalModule, features: Tensor, batch: Batch) -> Tensor:
        """Return the local loss of the module's features (N, ...)."""
        return cross_entropy(module.logits(features, batch.step_seed), batch.labels)

    def scale_body(self, module: LocalModule, gradients: list[Tensor]) -> list[Tensor]:
        """Return the body's gradients as the update takes them."""
        return gradients

    def link_backward(self, graph: Graph, error: Tensor) -> list[Tensor]:
        """Return the linked parameters' gradients from the next module's error at this module's output."""
        return graph.backward(error, to_input=False)[0]

    def link_gradients_to_mix(self, method_state: MethodState, link: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the link gradients that this step mixes: these, or (stale) those of the step before, none in the first."""
        if not self.is_stale:
            return link
        before, method_state.link = method_state.link, list(link)
        return before

    def mix(self, tail: Chain, local: Sequence[Tensor], link: Sequence[Tensor]) -> list[Tensor]:
        """Return the linked parameters' gradients from their own (local) and the next module's (link, empty before any came)."""
        raise AssertionError(f"{self.name} has no link to mix")


def _form(helper: nn.Module) -> tuple[type[nn.Module], dict[str, torch.Size]]:
    return type(helper), {name: tensor.shape for name, tensor in helper.state_dict().items()}

"""Method: what a training rule does with one local module and one batch, in calls small enough to be spread over stages.

    x ──▶ body ──▶ a ──▶ tail ──▶ y ──▶ head ──▶ loss
               cut          cut
Both executors make the same calls in the same order for each module, which is why their weights are equal bit for bit:
forward_body, forward_tail, local_backward, and where there is a link: link_backward and mix.
The base class is a complete method by itself: every module learns from its own loss, and nothing crosses a cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from backlink_ray.config import check_propagation
from backlink_ray.local.graph import Graph, differentiate
from backlink_ray.local.losses import cross_entropy
from backlink_ray.local.module import Chain, Draws, LocalModule


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What one module's own loss gave.

    Attributes:
        loss: scalar, detached.
        rest: gradients of the body's parameters, then the head's.
        tail: local gradients of the tail's parameters, not mixed yet.
        error: gradient at the module's input (empty if not wanted).
    """

    loss: Tensor
    rest: list[Tensor]
    tail: list[Tensor]
    error: Tensor


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training rule. Subclasses say how long the tail is, how its gradients mix, and what the local loss is."""

    name: ClassVar[str] = "method"

    @property
    def linked_units(self) -> int:
        """Return the number of tail units in every module but the last (the propagation length, where there is one)."""
        return 0

    def arrange(self, modules: Sequence[LocalModule]) -> list[LocalModule]:
        """Return the modules this method trains, checked; ConfigError where it cannot train them."""
        check_propagation(self.linked_units, [len(m.units) for m in modules])
        return list(modules)

    def tail_length(self, module: LocalModule) -> int:
        """Return how many units of this module hear the next module's error."""
        return 0 if module.is_last else self.linked_units

    def wants_error(self, module: LocalModule) -> bool:
        """Tell whether the module before needs the error at this module's input."""
        return module.module_index > 0 and self.linked_units > 0

    def forward_body(self, module: LocalModule, x: Tensor, draws: Draws) -> Graph:
        """Forward the body on x (N, ...); its output is what may leave the module at once."""
        return Graph(module.body(self.tail_length(module)), x, draws, wants_input_gradient=self.wants_error(module))

    def forward_tail(self, module: LocalModule, a: Tensor, draws: Draws) -> Graph:
        """Forward the module's own tail on the body's output a."""
        tail = module.tail(self.tail_length(module))
        wanted = len(tail) < len(module.units) or self.wants_error(module)
        return Graph(tail, a, draws, wants_input_gradient=wanted)

    def forward_replica(self, replica: Chain, a: Tensor, draws: Draws) -> Graph:
        """Forward the copy of the previous module's tail; its only backward is the link's."""
        return Graph(replica, a, draws, wants_input_gradient=False)

    def keeps_tail(self) -> bool:
        """Tell whether a tail that the next module's error will walk again keeps its graph for it."""
        return True

    def local_backward(
        self, module: LocalModule, body: Graph, tail: Graph, labels: Tensor, draws: Draws, *, keep_tail: bool = False
    ) -> LocalResult:
        """Walk back from the module's own loss through head, tail and body; the body's graph is freed, the tail's unless kept."""
        features = tail.output.detach().requires_grad_()
        loss = self.loss(module, features, labels, draws)
        *head, error = differentiate(loss, [*module.head.parameters(), features])
        tail_gradients, error = tail.backward(error, keep=keep_tail)
        body_gradients, error = body.backward(error)
        rest = [*self.scale_body(module, body_gradients), *head]
        return LocalResult(loss.detach(), rest, tail_gradients, error)

    def loss(self, module: LocalModule, features: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Return the local loss of features (N, ...) for labels (N,)."""
        return cross_entropy(module.logits(features, draws), labels)

    def scale_body(self, module: LocalModule, gradients: list[Tensor]) -> list[Tensor]:
        """Return the body's gradients as the update takes them."""
        return gradients

    def link_backward(self, tail: Graph, error: Tensor) -> list[Tensor]:
        """Return the tail's parameter gradients from the next module's error at the tail's output."""
        return tail.backward(error, to_input=False)[0]

    def mix(self, tail: Chain, local: Sequence[Tensor], link: Sequence[Tensor]) -> list[Tensor]:
        """Return the tail's gradients from its own module's (local) and the next module's (link)."""
        raise AssertionError(f"{self.name} has no link to mix")

"""Method: what a training rule does with one local module and one batch, in calls small enough to run on separate stages.

    x ──▶ body ──▶ a ──▶ tail ──▶ y ──▶ head ──▶ loss
               cut          cut
All executors make the same calls in the same order for each module, so their weights are equal bit for bit: forward_body,
forward_tail, local_backward, and with a link: link_backward and mix.
The base class is a complete method: every module learns from its own loss, and no error crosses a cut.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backlink_ray.data.tensors import LabelledSet
from backlink_ray.errors import ConfigError
from backlink_ray.local.graph import Graph, differentiate
from backlink_ray.local.module import Chain, LocalModule, ModuleSpec, NoHelper, StepSeed, explaining_view
from backlink_ray.local.sizes import check_propagation
from backlink_ray.methods.state import MethodState
from backlink_ray.options import check_needs, check_options
from backlink_ray.seeds import seeded

Named = Iterator[tuple[str, nn.Parameter]]
# Called with logits (N, width) and labels; returns a scalar, the mean over the samples.
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's data as a local loss sees it.

    Attributes:
        inputs: the network's (N, ...); empty if the method does not need them (`Method.wants_inputs`).
        labels: int64 (N,), classes; or floats (N, ...), targets of a regression.
        step_seed: source of random draws.
        loss: of the job, called with a head's logits and the labels.
    """

    inputs: Tensor
    labels: Tensor
    step_seed: StepSeed
    loss: Loss = F.cross_entropy


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What one module's own loss gives.

    Attributes:
        loss: scalar, detached; 0 if the module has no loss of its own.
        local: gradients of `Method.local_parameters`, ready for the update; None: no update.
        linked: local gradients of `Method.linked_parameters`, not mixed yet.
        error: gradient at the module's input (empty if not wanted).
        graph: what the next module's error is propagated through: the tail's, or DNI's synthesizer's.
    """

    loss: Tensor
    local: list[Tensor] | None
    linked: list[Tensor]
    error: Tensor
    graph: Graph


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training rule. Subclasses define the length of the tail, how its gradients are mixed, and the local loss.

    A method of your own is a subclass, `@dataclass(frozen=True, kw_only=True)`, whose fields are its options. One that
    changes no more than `loss`, `build_helper`, `wants_inputs`, `needs_classes` and `for_data` can be BackLink's base.

    Raises:
        ConfigError: where a subclass is defined that overrides a part by a name of earlier versions.
    """

    name: ClassVar[str] = "method"

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for old in _RENAMED.keys() & vars(cls).keys():
            raise ConfigError(
                f"{cls.__name__}.{old} is called {_RENAMED[old]} now, and would never be called by its old name"
            )

    def __post_init__(self) -> None:
        check_options(self)
        check_needs(self)

    @property
    def linked_units(self) -> int:
        """Return the number of tail units in every module but the last: the propagation length, or 0."""
        return 0

    @property
    def link_kind(self) -> str:
        """Return how the next module's error reaches this one in a pipeline.

        "": not at all; "replica": through a copy of the tail in the next stage; "error": it is sent back within the step;
        "delayed": it is sent back for the next step.
        """
        return ""

    @property
    def is_stale(self) -> bool:
        """Return whether the tail's link gradients are those of the previous step."""
        return False

    @property
    def replay_size(self) -> int:
        """Return how many activations are kept at every cut if stages do not keep step; 0 if they do."""
        return 0

    @property
    def wants_inputs(self) -> bool:
        """Return whether the local loss needs the network's input."""
        return False

    @property
    def needs_classes(self) -> bool:
        """Return whether the local loss needs classes as labels, so that there is no regression."""
        return False

    @property
    def helper_lr(self) -> float:
        """Return the constant learning rate of Adam for linked helpers; 0 if the optimizer updates every parameter."""
        return 0.0

    def for_data(self, train: LabelledSet) -> "Method":
        """Return the method for a training set, with what it needs to know of it; ConfigError if it cannot use it."""
        return self

    def prepare(self, modules: Sequence[LocalModule]) -> list[LocalModule]:
        """Return the modules this method trains, with its helpers; ConfigError if it cannot train them."""
        check_propagation(self.linked_units, [len(m.units) for m in modules])
        return [self._with_helper(module) for module in modules]

    def _with_helper(self, module: LocalModule) -> LocalModule:
        spec = module.spec
        with seeded(spec.seed, "init/helper", spec.module_index):
            helper = NoHelper() if module.is_last else self.build_helper(spec)
        same = _shapes(helper) == _shapes(module.helper)  # then keep the old one, which may be trained
        return module if same else module.with_helper(helper)

    def build_helper(self, spec: ModuleSpec) -> nn.Module:
        """Return a new helper with torch's initial weights, for any module but the last; ConfigError for unsuitable features."""
        return NoHelper()

    def tail_length(self, module: LocalModule) -> int:
        """Return how many units of this module get the next module's error."""
        return 0 if module.is_last else self.linked_units

    def has_link(self, module: LocalModule) -> bool:
        """Return whether the next module's error reaches this module."""
        return bool(self.link_kind) and not module.is_last

    def wants_error(self, module: LocalModule) -> bool:
        """Return whether the previous module needs the error at this module's input."""
        return bool(self.link_kind) and module.module_index > 0

    def local_parameters(self, module: LocalModule) -> Named:
        """Yield the parameters that only this module's own loss trains: body, head, helper."""
        body = module.body(self.tail_length(module))
        return itertools.chain(body.named(), module.head_named(), module.helper_named())

    def linked_parameters(self, module: LocalModule) -> Named:
        """Yield the parameters whose update waits for the next module's error: the tail's."""
        return module.tail(self.tail_length(module)).named()

    def forward_body(self, module: LocalModule, x: Tensor, step_seed: StepSeed) -> Graph:
        """Forward the body on x (N, ...)."""
        return Graph(module.body(self.tail_length(module)), x, step_seed, wants_input_gradient=self.wants_error(module))

    def forward_tail(self, module: LocalModule, a: Tensor, step_seed: StepSeed) -> Graph:
        """Forward the module's own tail on the body's output a."""
        tail = module.tail(self.tail_length(module))
        wanted = len(tail) < len(module.units) or self.wants_error(module)
        again = self.has_link(module) and not self.retains_tail
        return Graph(tail, a, step_seed, wants_input_gradient=wanted, repeatable=again)

    def forward_replica(self, replica: Chain, a: Tensor, step_seed: StepSeed) -> Graph:
        """Forward the copy of the previous module's tail; its only backward is the link's."""
        return Graph(replica, a, step_seed, wants_input_gradient=False, recompute=not self.retains_tail)

    @property
    def retains_tail(self) -> bool:
        """Return whether a tail retains its graph for the next module's error."""
        return True

    def local_backward(
        self, module: LocalModule, body: Graph, tail: Graph, batch: Batch, state: MethodState, *, retain: bool = False
    ) -> LocalResult:
        """Backpropagate the module's own loss through head, tail and body; frees the graphs, but with `retain` not the tail's."""
        features, engine = tail.output.detach().requires_grad_(), batch.step_seed.engine
        with engine.autocast(features.device), explaining_view(f"the helper or loss of module {module.module_index}"):
            loss = self.loss(module, features, replace(batch, loss=engine.in_float32(batch.loss)))
        *own, error = differentiate(loss, [*module.head.parameters(), *module.helper.parameters(), features])
        tail_gradients, error = tail.backward(error, retain=retain)
        body_gradients, error = body.backward(error)
        local = [*self.scale_body(module, body_gradients), *own]
        return LocalResult(loss.detach(), local, tail_gradients, error, tail)

    def loss(self, module: LocalModule, features: Tensor, batch: Batch) -> Tensor:
        """Return the local loss of the module's features (N, ...); called within torch's autocast if precision is bf16."""
        return batch.loss(module.logits(features, batch.step_seed), batch.labels)

    def scale_body(self, module: LocalModule, gradients: list[Tensor]) -> list[Tensor]:
        """Return the body's gradients as the update uses them."""
        return gradients

    def link_backward(self, graph: Graph, error: Tensor) -> list[Tensor]:
        """Return the linked parameters' gradients from the next module's error at this module's output."""
        return graph.backward(error, to_input=False)[0]

    def link_gradients_to_mix(self, state: MethodState, link: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the link gradients that this step mixes: these or, if stale, those of the previous step, if any."""
        if not self.is_stale:
            return link
        before, state.link = state.link, list(link)
        return before

    def mix(self, tail: Chain, local: Sequence[Tensor], link: Sequence[Tensor]) -> list[Tensor]:
        """Return the linked parameters' gradients, mixed from the local and the link ones (empty before the first arrive)."""
        raise AssertionError(f"{self.name} has no link to mix")


_RENAMED = {
    "arrange": "prepare",
    "rest_named": "local_parameters",
    "linked_named": "linked_parameters",
    "settle": "link_gradients_to_mix",
    "keeps_tail": "retains_tail",
    "wants_images": "wants_inputs",
}
# What BackLink takes over from its base.
OF_A_BASE = ("loss", "build_helper", "wants_inputs", "needs_classes", "for_data")


def changed_parts(method: Method) -> list[str]:
    """Return what a method changes in `Method` besides what BackLink takes over from its base; [] for a base.

    A property counts if its value differs, so that DGL is a base in mode exact and none in mode async.
    """
    plain, kind, found = Method(), type(method), []
    for name, part in vars(Method).items():
        if name.startswith("_") or name == "name" or name in OF_A_BASE:
            continue
        same = getattr(kind, name) is part
        if not same and isinstance(part, property):
            same = getattr(method, name) == getattr(plain, name)
        if not same:
            found.append(name)
    return found


def _shapes(helper: nn.Module) -> tuple[type[nn.Module], dict[str, torch.Size]]:
    return type(helper), {name: tensor.shape for name, tensor in helper.state_dict().items()}

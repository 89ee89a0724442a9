"""BackLink: local learning in which the last l units of a module also get the next module's error.

Card
    paper       Guo, Fouda, Eltawil, Salama, "BackLink: Supervised Local Training with Backward Links", IEEE TAI 2023,
                Eqs. (4)-(6) and Algorithm 1
    rule        tail unit at depth d from its module's end:  g = alpha^e local + (1 - alpha)^e link
                e = 1 (alpha_mode once) or e = d (compound); every other unit and every head: the local gradient
    crosses     activations forward; backward the next module's error, through the tail and no further
    base        the method whose local losses and helpers are used: GLL, or DGL, PredSim, InfoPro for the combination that
                the paper proposes in section V.A
    links       replica: the next stage holds a copy of the tail, and the two exchange parameter gradients (the paper's
                "local network unfolding"); error: the next stage sends back its error at the tail's output
    modes       exact: both gradients come from the same batch; stale: the link gradient is one batch older, so that no
                stage waits (the other reading of Fig. 8)
    defaults    l = 2, base GLL, link replica, mode exact, alpha_mode once, body_scale one, tail_memory retain
    deviations  read literally, Eqs. (4)-(5) apply alpha again at every unit, so alpha = 0, which is in the paper's search
                range, would leave every body untrained: that reading is alpha_mode compound with body_scale alpha
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from backlink_ray.data.tensors import LabelledSet
from backlink_ray.errors import ConfigError
from backlink_ray.local.module import Chain, LocalModule, ModuleSpec
from backlink_ray.methods.base import OF_A_BASE, Batch, Method, changed_parts
from backlink_ray.methods.greedy import GLL
from backlink_ray.options import choice, number, whole


@dataclass(frozen=True, kw_only=True)
class BackLinkOptions:
    """Options of BackLink."""

    propagation_length: int = whole(2, allowed="0..smallest module", unused=0)
    """l: units of a module that also get the next module's error; 0 (GLL) to the size of the smallest module but the last."""
    alpha: float = number(0.5, 0.0, 1.0, unused=1.0)
    """Weight of the local error in those units, 0..1 (1: as GLL); the weight of the next module's error is 1 - alpha."""
    alpha_mode: str = choice("once", "compound")
    """once: every linked unit applies alpha once; compound: again at each unit, as Eqs. (4)-(5) read literally."""
    body_scale: str = choice("one", "alpha")
    """one: units before the linked ones use the local gradient unscaled; alpha: scaled as in the deepest linked unit."""
    tail_memory: str = choice("retain", "recompute")
    """retain the graph of the linked units until the next module's error arrives, or recompute it then."""
    link: str = choice("replica", "error")
    """What stages exchange: parameter gradients, with a replica of the tail, or the error. The result is the same."""
    mode: str = choice("exact", "stale")
    """exact: both gradients from the same batch; stale: the next module's is one batch older."""


@dataclass(frozen=True, kw_only=True)
class BackLink(BackLinkOptions, Method):
    """BackLink.

    Args:
        base: provides the local losses: GLL(), DGL(), PredSim(), InfoPro() or one of your own that changes nothing but
            `loss`, `build_helper`, `wants_inputs`, `needs_classes` and `for_data`.
    """

    name: ClassVar[str] = "backlink"
    base: Method = field(default_factory=GLL)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode != "exact" and self.link != "replica":
            # The update that comes before the error would invalidate the tail's graph.
            raise ConfigError(
                f"mode={self.mode!r} with link={self.link!r} has no graph of the tail; allowed: link replica, or mode exact"
            )
        if not isinstance(self.base, Method):
            raise ConfigError(f"base={self.base!r} is no method; allowed: a method such as GLL() or InfoPro()")
        changed = changed_parts(self.base)
        if changed:
            raise ConfigError(
                f"base={self.base.name!r} changes {', '.join(changed)}, which BackLink decides itself; allowed: a method "
                f"that changes only {', '.join(OF_A_BASE)}, such as GLL() or InfoPro()"
            )

    @property
    def link_kind(self) -> str:
        return self.link if self.propagation_length else ""

    @property
    def is_stale(self) -> bool:
        return self.mode == "stale"

    @property
    def wants_inputs(self) -> bool:
        return self.base.wants_inputs

    def for_data(self, train: LabelledSet) -> Method:
        return replace(self, base=self.base.for_data(train))

    @property
    def needs_classes(self) -> bool:
        return self.base.needs_classes

    def build_helper(self, spec: ModuleSpec) -> nn.Module:
        return self.base.build_helper(spec)

    def loss(self, module: LocalModule, features: Tensor, batch: Batch) -> Tensor:
        return self.base.loss(module, features, batch)

    @property
    def linked_units(self) -> int:
        return self.propagation_length

    @property
    def retains_tail(self) -> bool:
        return self.tail_memory == "retain"

    def scale_body(self, module: LocalModule, gradients: list[Tensor]) -> list[Tensor]:
        """Return the gradients unscaled, or (body_scale alpha, with a tail) scaled by alpha^e of the tail's first unit."""
        length = self.tail_length(module)
        if self.body_scale == "one" or not length:
            return gradients
        return [self.alpha ** self._exponent(length) * g for g in gradients]

    def mix(self, tail: Chain, local: Sequence[Tensor], link: Sequence[Tensor]) -> list[Tensor]:
        """Return alpha^e local + (1 - alpha)^e link for each parameter; local, unscaled, before the first link gradient."""
        if not link:
            return list(local)
        if self.alpha_mode == "once":
            return list(torch._foreach_lerp(list(link), list(local), self.alpha))
        depths = [len(tail) - i for i, unit in enumerate(tail.units) for _ in unit.parameters()]
        mixed = torch._foreach_mul(list(link), [(1 - self.alpha) ** d for d in depths])
        torch._foreach_add_(mixed, torch._foreach_mul(list(local), [self.alpha**d for d in depths]))
        return list(mixed)

    def _exponent(self, depth: int) -> int:
        return depth if self.alpha_mode == "compound" else 1

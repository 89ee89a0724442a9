"""BackLink: local learning in which the last l units of a module also hear the next module's error.

Card
    paper       Guo, Fouda, Eltawil, Salama, "BackLink: Supervised Local Training with Backward Links", IEEE TAI 2023,
                Eqs. (4)-(6) and Algorithm 1
    rule        tail unit at depth d from its module's end:  g = alpha^e local + (1 - alpha)^e link
                e = 1 (alpha_mode once) or e = d (compound); every other unit and every head: the local gradient
    crosses     activations forward; backward the next module's error, through the tail and no further
    base        whose local losses and helpers are used: GLL's; DGL's, PredSim's or InfoPro's for the combination that the
                paper proposes in section V.A
    links       replica: the next stage holds a copy of the tail, and the two exchange parameter gradients (the paper's
                "local network unfolding"); error: the next stage sends its error at the tail's output back
    modes       exact: the gradients of both errors are those of one batch; stale: the link's are one batch older, so that no
                stage waits (the other reading of Fig. 8); async: stages do not keep step at all, as in DGL's Algorithm 2,
                and a tail hears the newest link gradients that have come
    defaults    base GLL, link replica, mode exact, alpha_mode once, body_scale one, tail_memory retain
    deviations  read literally, Eqs. (4)-(5) apply alpha again at every unit, so that alpha = 0, which the paper tunes over,
                would leave every body untrained: that reading is alpha_mode compound with body_scale alpha
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.local.graph import Graph
from backlink_ray.local.module import Chain, LocalModule, ModuleSpec, StepSeed
from backlink_ray.methods.base import Batch, Method
from backlink_ray.methods.greedy import GLL

# Methods whose local losses it may build on.
BASES = ("gll", "dgl", "predsim", "infopro")


@dataclass(frozen=True, kw_only=True)
class BackLink(Method):
    """BackLink.

    Args:
        propagation_length: l, from 0 (GLL) to the size of the smallest module but the last.
        alpha: weight of the local error in the tail, 0..1 (1 gives GLL's weights, at BackLink's cost).
        alpha_mode: "once", or "compound" (alpha to the power of the unit's depth from the module's end).
        body_scale: "one", or "alpha": the body's local gradient is scaled as the deepest tail unit's is.
        tail_memory: "retain" the tail's graph until the next module's error is there, or "recompute" it then.
        link: "replica" or "error": what two stages of a pipeline exchange; the result is the same.
        mode: "exact", "stale" or "async"; the latter two need the link "replica".
        buffer_size: activations kept at every cut in mode async, 1 or more.
        base: GLL(), DGL(), PredSim() or InfoPro(): the local losses.
    """

    name: ClassVar[str] = "backlink"
    propagation_length: int = 1
    alpha: float = 0.5
    alpha_mode: str = "once"
    body_scale: str = "one"
    tail_memory: str = "retain"
    link: str = "replica"
    mode: str = "exact"
    buffer_size: int = 2
    base: Method = field(default_factory=GLL)

    def __post_init__(self) -> None:
        if not isinstance(self.propagation_length, int) or self.propagation_length < 0:
            raise ConfigError(
                f"propagation_length={self.propagation_length!r} is no number of units; allowed 0..smallest module"
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha={self.alpha} is out of range; allowed 0..1")
        for option, allowed in _OPTIONS.items():
            if getattr(self, option) not in allowed:
                raise ConfigError(f"{option}={getattr(self, option)!r} is not known; allowed: {', '.join(allowed)}")
        check_mode(self.mode, self.link)
        if self.buffer_size < 1:
            raise ConfigError(f"buffer_size={self.buffer_size} keeps nothing; allowed 1 or more")
        if not isinstance(self.base, Method) or self.base.name not in BASES:
            raise ConfigError(
                f"base={getattr(self.base, 'name', self.base)!r} has no local losses to build on; allowed: {', '.join(BASES)}"
            )
        if self.base.replay_size:
            raise ConfigError(
                "the base's mode='async' gives losses only, no mode; allowed: mode='async' of BackLink itself"
            )

    @property
    def link_kind(self) -> str:
        return self.link if self.propagation_length else ""

    @property
    def replay_size(self) -> int:
        return self.buffer_size if self.mode == "async" else 0

    @property
    def is_stale(self) -> bool:
        return self.mode == "stale"

    @property
    def wants_images(self) -> bool:
        return self.base.wants_images

    def build_helper(self, spec: ModuleSpec) -> nn.Module:
        """Return the base's helper."""
        return self.base.build_helper(spec)

    def loss(self, module: LocalModule, features: Tensor, batch: Batch) -> Tensor:
        """Return the base's local loss."""
        return self.base.loss(module, features, batch)

    @property
    def linked_units(self) -> int:
        return self.propagation_length

    def forward_replica(self, replica: Chain, a: Tensor, step_seed: StepSeed) -> Graph:
        """Forward the replica; under recompute without a graph until its backward comes."""
        return Graph(replica, a, step_seed, wants_input_gradient=False, recompute=not self.keeps_tail())

    def keeps_tail(self) -> bool:
        return self.tail_memory == "retain"

    def scale_body(self, module: LocalModule, gradients: list[Tensor]) -> list[Tensor]:
        """Return the gradients as they are, or (body_scale alpha, in a module with a tail) times alpha^e of its first unit."""
        length = self.tail_length(module)
        if self.body_scale == "one" or not length:
            return gradients
        return [self.alpha ** self._exponent(length) * g for g in gradients]

    def mix(self, tail: Chain, local: Sequence[Tensor], link: Sequence[Tensor]) -> list[Tensor]:
        """Return alpha^e local + (1 - alpha)^e link for each parameter of the tail, in its order."""
        depths = [len(tail) - i for i, unit in enumerate(tail.units) for _ in unit.parameters()]
        return [
            self.alpha ** self._exponent(d) * a + (1 - self.alpha) ** self._exponent(d) * b
            for d, a, b in zip(depths, local, link, strict=True)
        ]

    def _exponent(self, depth: int) -> int:
        return depth if self.alpha_mode == "compound" else 1


_OPTIONS = {
    "alpha_mode": ("once", "compound"),
    "body_scale": ("one", "alpha"),
    "tail_memory": ("retain", "recompute"),
    "link": ("replica", "error"),
    "mode": ("exact", "stale", "async"),
}


def check_mode(mode: str, link: str) -> None:
    """Refuse a late link over "error": the tail's graph would not survive the update that comes before the error."""
    if mode != "exact" and link != "replica":
        raise ConfigError(
            f"mode={mode!r} with link={link!r} has no tail to walk back; allowed: link replica, or mode exact"
        )

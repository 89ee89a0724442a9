"""BP: end-to-end backpropagation, the baseline.

Card
    paper       the baseline of the BackLink paper; K = 1, l = 0 in its tables
    crosses     everything: the network is one module with the last module's head
    update      every unit and the last head: the gradient of the final loss
    deviations  the auxiliary heads of a split network get no gradient and stay as they are
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from backlink_ray.local.module import Chain, LocalModule
from backlink_ray.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class BP(Method):
    """Backpropagation through all units of all modules to the last head."""

    name: ClassVar[str] = "bp"

    def prepare(self, modules: Sequence[LocalModule]) -> list[LocalModule]:
        """Return all units as one module with the last module's head and its index."""
        units = [unit for module in modules for unit in module.units]
        uses_rng = [flag for module in modules for flag in module.chain.uses_rng]
        last = modules[-1]
        return [LocalModule(Chain(units, 0, uses_rng), last.head, last.head_uses_rng, last.spec)]

    def wants_error(self, module: LocalModule) -> bool:
        return False

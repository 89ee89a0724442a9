"""DGL: decoupled greedy learning, that is, greedy local learning whose modules need not wait for each other.

Card
    paper       Belilovsky, Eickenberg, Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020, Algorithms 1 and 2
    crosses     activations forward; nothing backward
    update      every unit and head: the gradient of its module's loss; the published heads are "mlp-sr" or "conv"
    modes       exact (Algorithm 1, synchronous): GLL with its own heads; async (Algorithm 2): a replay buffer at every cut
                keeps the last M activations, and a module uses the newest of the least used ones, so none waits
    defaults    exact; M = 2
    resuming    checkpoints leave out the buffers (M activations per cut): a resumed run starts with empty ones, and its
                first step runs from the first stage to the last
    deviations  in one process, modules take turns in an order drawn from the seed
"""

from dataclasses import dataclass
from typing import ClassVar

from backlink_ray.methods.base import Method
from backlink_ray.options import choice, whole


@dataclass(frozen=True, kw_only=True)
class DGLOptions:
    """Options of DGL."""

    mode: str = choice("exact", "async")
    """exact: synchronous; async: no module waits for another."""
    buffer_size: int = whole(2, 1, needs=("mode", "async"))
    """mode async: M, activations kept at every cut, of which a module uses the newest of the least used."""


@dataclass(frozen=True, kw_only=True)
class DGL(DGLOptions, Method):
    """Decoupled greedy learning."""

    name: ClassVar[str] = "dgl"

    @property
    def replay_size(self) -> int:
        return self.buffer_size if self.mode == "async" else 0

"""DGL: decoupled greedy learning, greedy local learning whose modules need not wait for each other.

Card
    paper       Belilovsky, Eickenberg, Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020, Algorithms 1 and 2
    crosses     activations forward; nothing backward
    update      every unit and head: the gradient of its module's loss; the published heads are "mlp-sr" or "conv"
    modes       exact (Algorithm 1, synchronous): it is GLL with its own heads; async (Algorithm 2): a replay buffer at every
                cut keeps the last M activations, and a module takes the freshest among the least used, so none waits
    defaults    exact; M = 2
    resuming    what waits in the buffers is in no checkpoint (M activations a cut, for every one kept): a resumed run starts
                with empty ones, its first turn in order
    deviations  one process runs the asynchronous form in turns whose order is drawn from the seed
"""

from dataclasses import dataclass
from typing import ClassVar

from backlink_ray.methods.base import Method
from backlink_ray.options import choice, whole


@dataclass(frozen=True, kw_only=True)
class AsyncOptions:
    """Options of methods whose modules need not wait for each other."""

    mode: str = choice("exact", "async")
    """exact: synchronous; async: no module waits for another."""
    buffer_size: int = whole(2, 1, needs=("mode", "async"))
    """mode async: M, activations kept at every cut, of which a module takes the freshest among the least used."""

    @property
    def replay_size(self) -> int:
        """Return how many activations stay at every cut; 0 where the modules keep step."""
        return self.buffer_size if self.mode == "async" else 0


@dataclass(frozen=True, kw_only=True)
class DGL(AsyncOptions, Method):
    """Decoupled greedy learning."""

    name: ClassVar[str] = "dgl"
    can_be_base: ClassVar[bool] = True

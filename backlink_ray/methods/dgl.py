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

from backlink_ray.errors import ConfigError
from backlink_ray.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class DGL(Method):
    """Decoupled greedy learning.

    Args:
        mode: "exact" (synchronous) or "async".
        buffer_size: M, activations kept at every cut in mode async, 1 or more.
    """

    name: ClassVar[str] = "dgl"
    mode: str = "exact"
    buffer_size: int = 2

    def __post_init__(self) -> None:
        if self.mode not in ("exact", "async"):
            raise ConfigError(f"mode={self.mode!r} is not one of dgl's; allowed: exact, async")
        if self.buffer_size < 1:
            raise ConfigError(f"buffer_size={self.buffer_size} keeps nothing; allowed 1 or more")

    @property
    def replay_size(self) -> int:
        return self.buffer_size if self.mode == "async" else 0

"""DGL: decoupled greedy learning, greedy local learning whose modules need not wait for each other.

Card
    paper       Belilovsky, Eickenberg, Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020, Algorithms 1 and 2
    crosses     activations forward; nothing backward
    update      every unit and head: the gradient of its module's loss; with heads "mlp-sr" or "conv"
    deviations  in step (synchronous) it is GLL with its own heads
"""

from dataclasses import dataclass
from typing import ClassVar

from backlink_ray.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class DGL(Method):
    """Decoupled greedy learning, synchronous."""

    name: ClassVar[str] = "dgl"

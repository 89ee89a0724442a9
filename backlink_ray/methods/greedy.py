"""GLL: greedy local learning, every module from its own loss alone.

Card
    paper       Belilovsky et al. (2019); the baseline of the BackLink paper, section II.A
    crosses     activations forward; nothing backward
    update      every unit and head: the gradient of its module's loss
    deviations  none
"""

from dataclasses import dataclass
from typing import ClassVar

from backlink_ray.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class GLL(Method):
    """Greedy local learning; equals BackLink with l = 0 or alpha = 1."""

    name: ClassVar[str] = "gll"

"""Catalogue: every method by its name; whatever needs a list of methods or of their options takes it from here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from backlink_ray.methods.backlink import BackLink, BackLinkOptions
from backlink_ray.methods.backprop import BP
from backlink_ray.methods.base import Method
from backlink_ray.methods.ddg import DDG
from backlink_ray.methods.dgl import DGL
from backlink_ray.methods.dni import DNI, DNIOptions
from backlink_ray.methods.greedy import GLL
from backlink_ray.methods.infopro import InfoPro, InfoProOptions
from backlink_ray.methods.predsim import PredSim, PredSimOptions

METHODS: dict[str, type[Method]] = {m.name: m for m in (BP, GLL, BackLink, DGL, PredSim, InfoPro, DDG, DNI)}
# Methods whose local losses BackLink may build on.
BASES: dict[str, type[Method]] = {name: method for name, method in METHODS.items() if method.can_be_base}


@dataclass(frozen=True, kw_only=True)
class MethodOptions(DNIOptions, InfoProOptions, PredSimOptions, BackLinkOptions):
    """The options of all methods, as a RunConfig has them; the last class's come first."""


@cache
def takes(method: str) -> frozenset[str]:
    """Return the names of what a method is made from: its options, and a base or facts about the data where it wants any."""
    return frozenset(f.name for f in fields(METHODS[method])) if method in METHODS else frozenset()


def make_method(method: str, base: str, values: Mapping[str, Any]) -> Method:
    """Return a method by its name, made from those of the values that it takes.

    Args:
        method: a name in METHODS.
        base: a name in BASES, for a method that builds on another; of an option that both have, the base keeps its default.
        values: options by name, and "mean" and "std" of the images' normalisation, per channel; the others do not matter.

    Raises:
        ConfigError: a value that the method refuses.
    """
    own = {name: values[name] for name in takes(method) & values.keys()}
    if "base" in takes(method):
        own["base"] = make_method(base, "", {name: v for name, v in values.items() if name not in own})
    return METHODS[method](**own)

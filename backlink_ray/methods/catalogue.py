"""Catalogue: every method by name, and the options of all methods."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from backlink_ray.methods.backlink import BackLink, BackLinkOptions
from backlink_ray.methods.backprop import BP
from backlink_ray.methods.base import Method, changed_parts
from backlink_ray.methods.ddg import DDG
from backlink_ray.methods.dgl import DGL, DGLOptions
from backlink_ray.methods.dni import DNI, DNIOptions
from backlink_ray.methods.greedy import GLL
from backlink_ray.methods.infopro import InfoPro, InfoProOptions
from backlink_ray.methods.predsim import PredSim, PredSimOptions
from backlink_ray.options import choice

METHODS: dict[str, type[Method]] = {m.name: m for m in (BP, GLL, BackLink, DGL, PredSim, InfoPro, DDG, DNI)}
# Methods whose local losses BackLink can use.
BASES: dict[str, type[Method]] = {name: method for name, method in METHODS.items() if not changed_parts(method())}


@dataclass(frozen=True, kw_only=True)
class MethodOptions(DNIOptions, InfoProOptions, PredSimOptions, DGLOptions, BackLinkOptions):
    """The options of all methods, as a RunConfig has them; the fields of the last class come first."""

    mode: str = choice("exact", "stale", "async")
    """backlink: exact (both gradients from the same batch), stale (the next module's one batch older); dgl: exact, async."""


@cache
def takes(method: str) -> frozenset[str]:
    """Return the names of a method's arguments: its options and, if any, the base."""
    return frozenset(f.name for f in fields(METHODS[method])) if method in METHODS else frozenset()


def make_method(method: str, base: str, values: Mapping[str, Any]) -> Method:
    """Return a method by name, made from those of the values that it takes.

    Args:
        method: a name in METHODS.
        base: a name in BASES, for a method that has a base; an option of both is the method's, and the base's stays default.
        values: options by name; other entries are ignored.

    Raises:
        ConfigError: the method does not allow a value.
    """
    own = {name: values[name] for name in takes(method) & values.keys()}
    if "base" in takes(method):
        own["base"] = make_method(base, "", {name: v for name, v in values.items() if name not in own})
    return METHODS[method](**own)

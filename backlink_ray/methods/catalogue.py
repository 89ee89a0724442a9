"""Catalogue: every method by name, and the options of all methods."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any

from backlink_ray.errors import ConfigError
from backlink_ray.importing import is_path, load
from backlink_ray.methods.backlink import BackLink, BackLinkOptions
from backlink_ray.methods.backprop import BP
from backlink_ray.methods.base import Method, changed_parts
from backlink_ray.methods.ddg import DDG
from backlink_ray.methods.dgl import DGL, DGLOptions
from backlink_ray.methods.dni import DNI, DNIOptions
from backlink_ray.methods.greedy import GLL
from backlink_ray.methods.infopro import InfoPro, InfoProOptions
from backlink_ray.methods.predsim import PredSim, PredSimOptions
from backlink_ray.options import LARGEST_FLOAT, Option, choice, default_of, options_of

METHODS: dict[str, type[Method]] = {m.name: m for m in (BP, GLL, BackLink, DGL, PredSim, InfoPro, DDG, DNI)}
# Methods whose local losses BackLink can use.
BASES: dict[str, type[Method]] = {name: method for name, method in METHODS.items() if not changed_parts(method())}


@dataclass(frozen=True, kw_only=True)
class MethodOptions(DNIOptions, InfoProOptions, PredSimOptions, DGLOptions, BackLinkOptions):
    """The options of all methods, as a RunConfig has them; the fields of the last class come first."""

    mode: str = choice("exact", "stale", "async")
    """backlink: exact (both gradients from the same batch), stale (the next module's one batch older); dgl: exact, async."""


# What methods take from a run's own fields; any other field of a method of the user's is its own option.
_SHARED = {*options_of(MethodOptions), "base"}


def method_class(name: str, field: str = "method") -> type[Method]:
    """Return a method by its name in METHODS or its import path; ConfigError names `field`."""
    found = load(name, field) if is_path(name) else METHODS[name]
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"{field}={name!r} is no method; give a subclass of backlink_ray.Method")
    return found


def takes(method: str, field: str = "method") -> frozenset[str]:
    """Return the names of a method's arguments: its options and, if any, the base."""
    known = is_path(method) or method in METHODS
    return frozenset(f.name for f in fields(method_class(method, field))) if known else frozenset()


def own_options(method: str, base: str) -> dict[str, Option]:
    """Return the options that a run's method or its base has and no built-in method has, by name, in the order of their fields.

    An option without a declared range is checked for its type alone.
    """
    named = {"base": base} if "base" in takes(method) else {}
    return {n: o for field, name in ({"method": method} | named).items() for n, o in _own(name, field).items()}


@cache
def _own(method: str, field: str) -> dict[str, Option]:
    if not is_path(method):
        return {}
    made: Any = method_class(method, field)
    declared = options_of(made)
    for each in (each for each in fields(made) if each.name in options_of(MethodOptions)):
        own, default = default_of(each), options_of(MethodOptions)[each.name].default
        if own not in (MISSING, default):
            raise ConfigError(
                f"{field}={method!r} has the field {each.name}={own!r}, but every run has one of that name, {default!r} by "
                "default; give it another name, or that default"
            )
    found = {}
    for each in (each for each in fields(made) if each.name not in _SHARED):
        default = default_of(each)
        if default is MISSING:
            raise ConfigError(f"{field}={method!r} has no default value for its field {each.name!r}; give it one")
        if each.name in declared:
            found[each.name] = declared[each.name]
        elif isinstance(default, bool | int | float | str):
            kind = float if each.type in (float, "float") else type(default)
            found[each.name] = Option(default=kind(default), low=-LARGEST_FLOAT, high=LARGEST_FLOAT, allowed="finite")
    return found


def make_method(method: str, base: str, values: Mapping[str, Any], field: str = "method") -> Method:
    """Return a method by name, made from those of the values that it takes.

    Args:
        method: a name in METHODS, or an import path.
        base: a name in BASES or an import path, for a method that has a base; an option of both is the method's, and the
            base's stays default.
        values: options by name; other entries are ignored.
        field: of the run that names the method.

    Raises:
        ConfigError: it cannot be imported, or does not allow a value.
    """
    own = {name: values[name] for name in takes(method, field) & values.keys()}
    if "base" in takes(method, field):
        own["base"] = make_method(base, "", {name: v for name, v in values.items() if name not in own}, "base")
    return method_class(method, field)(**own)

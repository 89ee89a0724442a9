"""Copying: what a unit, head or helper must be so that a copy, in another stage or process, does the same."""

import copy
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any, TypeVar

from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.local.module import Chain, LocalModule

_Part = TypeVar("_Part", Chain, LocalModule)
_ALLOWED = "allowed: what copy.deepcopy takes (replicas=1 and, in BackLink, link='error' copy nothing)"


def copy_chain(chain: Chain) -> Chain:
    """Return a deep copy of a chain; ConfigError if it has no copy that does the same."""
    return _copied(chain, _units(chain))


def copy_module(module: LocalModule) -> LocalModule:
    """Return a deep copy of a module; ConfigError if its units, head or helper have no copy that does the same."""
    rest = {module.head_name: module.head, f"helpers.{module.module_index}": module.helper}
    return _copied(module, {**_units(module.chain), **rest})


def _units(chain: Chain) -> dict[str, nn.Module]:
    return {f"units[{index}]": unit for index, unit in enumerate(chain.units, chain.first_index)}


def _copied(whole: _Part, parts: dict[str, nn.Module]) -> _Part:
    for name, part in parts.items():
        for attribute in (found for each in part.modules() for found in _refers_outside(vars(each))):
            raise ConfigError(
                f"{name} holds a function, {attribute}, that refers to a module or tensor, and in a copy would go on "
                f"using that one; make it a method; {_ALLOWED}"
            )
    try:
        return copy.deepcopy(whole)
    except (TypeError, RuntimeError, AttributeError, copy.Error) as error:
        ends = dict.fromkeys([next(iter(parts)), next(reversed(parts))])
        raise ConfigError(f"{' to '.join(ends)} cannot be copied: {error}; {_ALLOWED}") from error


def _refers_outside(attributes: Mapping[Any, Any]) -> Iterator[Any]:
    """Yield the names of functions, hooks included, whose closures hold a module or tensor: a deep copy keeps them."""
    for name, value in attributes.items():
        if isinstance(value, Mapping) and any(_refers_outside(value)):
            yield name
        elif isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            if any(isinstance(content, (nn.Module, Tensor)) for content in cells):
                yield name

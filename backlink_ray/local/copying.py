"""Copying: what a unit must be so that a copy, in another stage or process, does the same as the unit."""

import copy
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any, TypeVar

from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.local.module import Chain, LocalModule

_Part = TypeVar("_Part", Chain, LocalModule)


def copy_chain(chain: Chain) -> Chain:
    """Return a deep copy of a chain; ConfigError if it has no copy that does the same."""
    return _copied(chain, chain)


def copy_module(module: LocalModule) -> LocalModule:
    """Return a deep copy of a module; ConfigError if its units have no copy that does the same."""
    return _copied(module, module.chain)


def _copied(part: _Part, chain: Chain) -> _Part:
    allowed = "allowed: units that copy.deepcopy takes (replicas=1 and, in BackLink, link='error' copy none)"
    for index, unit in enumerate(chain.units, chain.first_index):
        for attribute in (found for part in unit.modules() for found in _refers_outside(vars(part))):
            raise ConfigError(
                f"units[{index}] holds a function, {attribute}, that refers to a module or tensor, and in a copy would go on "
                f"using that one; make it a method; {allowed}"
            )
    try:
        return copy.deepcopy(part)
    except (TypeError, RuntimeError, AttributeError, copy.Error) as error:
        last = chain.first_index + len(chain) - 1
        raise ConfigError(f"units[{chain.first_index}..{last}] cannot be copied: {error}; {allowed}") from error


def _refers_outside(attributes: Mapping[Any, Any]) -> Iterator[Any]:
    """Yield the names of functions, hooks included, whose closures hold a module or tensor: a deep copy keeps them."""
    for name, value in attributes.items():
        if isinstance(value, Mapping) and any(_refers_outside(value)):
            yield name
        elif isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            if any(isinstance(content, (nn.Module, Tensor)) for content in cells):
                yield name

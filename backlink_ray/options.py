"""Options: dataclass fields that state their allowed values, and the one check that reads them."""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from numbers import Integral, Real
from typing import Any, TypeVar

from backlink_ray.errors import ConfigError
from backlink_ray.importing import is_path

T = TypeVar("T")

# numpy registers its integers and reals as these, but not its bool, which is called bool_ before numpy 2.
_ACCEPTED: dict[type, type] = {int: Integral, float: Real, str: str}
_BOOLS = ("bool", "bool_")
_LARGEST = 2**63 - 1  # of an int64
LARGEST_FLOAT = sys.float_info.max


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What one field allows.

    Attributes:
        default: the default value, whose type is the option's.
        choices: every allowed value, including the default; empty if a range applies.
        importable: an import path is allowed as well, see `importing.load`.
        low, high: the range of a number, both ends included.
        allowed: the range in words.
        needs: name and value of another option without which this one has no meaning.
        unused: the value that stands for "the method has no such option"; None: the default.
    """

    default: Any
    choices: tuple[Any, ...] = ()
    importable: bool = False
    low: float = 0
    high: float = _LARGEST
    allowed: str = ""
    needs: tuple[str, str] | None = None
    unused: Any = None

    def read(self, name: str, value: object) -> Any:
        """Return the value as Python's own type; ConfigError gives value, rule and what is allowed."""
        kind, is_bool = type(self.default), type(value).__name__ in _BOOLS
        if kind is tuple and isinstance(value, list | tuple):
            return tuple(POSITIVE.read(name, each) for each in value)
        if kind is dict and isinstance(value, Mapping):
            return {key: _plain(f"{name}[{key!r}]", value[key]) for key in sorted(value, key=str)}
        if not (is_bool if kind is bool else isinstance(value, _ACCEPTED.get(kind, ())) and not is_bool):
            raise ConfigError(f"{name}={value!r} is a {type(value).__name__}; allowed: {kind.__name__}")
        try:
            own = kind(value)
        except OverflowError as error:
            raise ConfigError(f"{name}={value!r} is out of range; allowed {self.allowed}") from error
        if self.choices and own not in self.choices and not (self.importable and is_path(own)):
            more = ", or an import path MODULE:NAME" * self.importable
            raise ConfigError(f"{name}={own!r} is not known; allowed: {', '.join(map(str, self.choices))}{more}")
        if kind in (int, float) and not self.low <= own <= self.high:
            raise ConfigError(f"{name}={own!r} is out of range; allowed {self.allowed}")
        return own

    def has_meaning(self, values: Mapping[str, object]) -> bool:
        """Return whether the option that this one needs, if any, has the required value."""
        return self.needs is None or values.get(self.needs[0]) == self.needs[1]


def number(
    default: float, low: float = 0.0, high: float = LARGEST_FLOAT, allowed: str = "", unused: float | None = None
) -> float:
    """Declare a finite real number in low..high; `allowed` overrides the range in words."""
    words = f"{low:g}..{high:g}" if high < LARGEST_FLOAT else f"at least {low:g}, finite"
    return _declare(default, low=low, high=high, allowed=allowed or words, unused=unused)


def whole(
    default: int,
    low: int = 0,
    high: int = _LARGEST,
    allowed: str = "",
    needs: tuple[str, str] | None = None,
    unused: int | None = None,
) -> int:
    """Declare a whole number in low..high."""
    words = f"{low}..{high}" if high < _LARGEST else f"{low} or more"
    return _declare(default, low=low, high=high, allowed=allowed or words, needs=needs, unused=unused)


def choice(*choices: str, default: str = "", importable: bool = False) -> str:
    """Declare one of some names, or an import path; the first is the default unless another is given."""
    return _declare(default or choices[0], choices=choices, importable=importable)


def flag(default: bool) -> bool:
    """Declare yes or no."""
    return _declare(default, choices=(default, not default))


def text(default: str) -> str:
    """Declare a name that is checked elsewhere."""
    return _declare(default)


def whole_numbers() -> tuple[int, ...]:
    """Declare any number of positive whole numbers; by default none."""
    return _declare(())


def mapping() -> Mapping[str, bool | int | float | str]:
    """Declare values by name, whose names are checked elsewhere; by default none."""
    found: Any = field(default_factory=dict, hash=False, metadata={"option": Option(default={})})
    return found  # type: ignore[no-any-return]


POSITIVE = Option(default=1, low=1, allowed="1 or more")


def _plain(name: str, value: object) -> Any:
    """Return a bool, int, float or str, also numpy's, as Python's own type."""
    if type(value).__name__ in _BOOLS:
        return bool(value)
    for kind, accepted in _ACCEPTED.items():
        if isinstance(value, accepted):
            return kind(value)
    raise ConfigError(f"{name}={value!r} is a {type(value).__name__}; allowed: bool, int, float or str")


def _declare(default: T, **rules: Any) -> T:
    return field(default=default, metadata={"option": Option(default=default, **rules)})


@cache
def options_of(owner: type[Any]) -> Mapping[str, Option]:
    """Return the options of a dataclass by name, in the order of its fields."""
    declared = {f.name: _declared(owner, f.name) for f in fields(owner)}
    return {f.name: replace(declared[f.name], default=default_of(f)) for f in fields(owner) if declared[f.name]}


def default_of(declared: "Field[Any]") -> Any:
    """Return the default value of a dataclass field, MISSING if it has none."""
    return declared.default if declared.default_factory is MISSING else declared.default_factory()


def _declared(owner: type[Any], name: str) -> Any:
    """Return the nearest class's option of a name: a subclass may give it another plain default; None if there is none."""
    found = (vars(cls).get("__dataclass_fields__", {}).get(name) for cls in owner.__mro__)
    return next((f.metadata["option"] for f in found if f is not None and "option" in f.metadata), None)


def check_options(instance: Any) -> None:
    """Store every option of a (frozen) dataclass as Python's own type; ConfigError names the first invalid one."""
    for name, option in options_of(instance.__class__).items():
        object.__setattr__(instance, name, option.read(name, getattr(instance, name)))


def check_needs(instance: Any) -> None:
    """Raise ConfigError for an option that was given although the option it needs has another value."""
    for name, option in options_of(instance.__class__).items():
        value = getattr(instance, name)
        if value == option.default or option.needs is None:
            continue
        other, wanted = option.needs
        found = getattr(instance, other)
        if found != wanted:
            raise ConfigError(
                f"{name}={value!r} has no meaning with {other}={found!r}; allowed with {other}={wanted!r}"
            )

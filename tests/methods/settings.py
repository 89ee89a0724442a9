"""The settings table of the shared contract: every method, every choice of its options, and some choices together."""

from collections.abc import Iterator
from typing import Any

from backlink_ray.methods.base import Method
from backlink_ray.methods.catalogue import METHODS, takes
from backlink_ray.options import options_of
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_method

# Values for the small networks of the tests: with l = 1 their modules have a body, with l = 2 only a tail.
NUMBERS = {"propagation_length": 1, "alpha": 0.25, "synthesizer_lr": 1e-3, "synthesizer_width": 5}
TOGETHER: tuple[dict[str, Any], ...] = (
    {"link": "error", "tail_memory": "recompute", "propagation_length": 2, "alpha": 0.5},
    {"alpha_mode": "compound", "body_scale": "alpha", "propagation_length": 2, "alpha": 0.3},
    {"mode": "stale", "alpha_mode": "compound", "propagation_length": 2, "alpha": 0.3},
    {"base": "infopro", "link": "error"},
)


def choices_of(method: str) -> dict[str, tuple[Any, ...]]:
    """Return the choices of a method's options, the default first."""
    options = {**options_of(RunConfig), **options_of(METHODS[method])}
    return {
        name: (option.default, *(c for c in option.choices if c != option.default))
        for name, option in options.items()
        if option.choices and name in takes(method)
    }


def _asked() -> Iterator[dict[str, Any]]:
    for method in METHODS:
        yield {"method": method}
        for name, (_, *others) in choices_of(method).items():
            yield from ({"method": method, name: other} for other in others)
    yield from ({"method": "backlink", **together} for together in TOGETHER)


def _label(asked: dict[str, Any]) -> str:
    rest = (f"{name}={value}" for name, value in asked.items() if name not in {"method", *NUMBERS})
    return ", ".join([asked["method"], *rest])


def _made(asked: dict[str, Any]) -> Method:
    numbers = {name: value for name, value in NUMBERS.items() if name in takes(asked["method"])}
    return build_method(RunConfig(**{**numbers, **asked}))


EVERY: dict[str, Method] = {_label(asked): _made(asked) for asked in _asked()}
# Stages that do not keep step have their own tests (tests/pipeline/test_async.py).
SETTINGS = {label: method for label, method in EVERY.items() if not method.replay_size}

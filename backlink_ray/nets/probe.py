"""Probe: what a few forwards on an example show of a unit or head, which stays as it was."""

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.seeds import generator_states, seeded


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What the example shows of a unit: shape of its output (without batch), its type, and whether it uses random numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    uses_rng: bool


def examine(name: str, module: nn.Module, x: Tensor) -> tuple[Tensor, UnitFacts]:
    """Return module(x) in evaluation mode for an input (n, ...) with n >= 1, and what was seen.

    Raises:
        ConfigError: the module cannot take x, changes it in place, returns something else than a tensor of floating-point
            numbers, or answers differently to the same input and seed.
    """
    own = _own_generators(module)
    version, kept, twice = x._version, x.clone(), x.expand(2, *x.shape[1:]) if len(x) == 1 else x
    try:
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            # A batch norm refuses to train on one value per channel: an example of one is repeated.
            first, trains_at_random = _draws(module, twice, training=True)
            second, _ = _draws(module, twice, training=True)
            y, answers_at_random = _draws(module, x, training=False)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{name} cannot take its input of shape {tuple(x.shape)}: {error}") from error
    if not isinstance(y, Tensor):
        raise ConfigError(f"{name} returns a {type(y).__name__}; a unit returns one tensor (wrap it to select one)")
    if not y.is_floating_point():
        raise ConfigError(f"{name} returns {y.dtype}, through which no error can flow; allowed: floating-point numbers")
    if x._version != version or not same(x, kept):
        # Its input is another unit's output, which that unit's head may still need.
        raise ConfigError(f"{name} changes its input in place; make its first operation inplace=False")
    if not same(first, second) or _own_generators(module) != own:
        raise ConfigError(
            f"{name} answers differently to the same input and seed: a generator or a state of its own, which no other "
            "process has; draw from torch's, Python's or numpy's default generator, and keep states in buffers"
        )
    return y, UnitFacts(tuple(y.shape[1:]), y.dtype, trains_at_random or answers_at_random)


def random_like(x: Tensor) -> Tensor:
    """Return random numbers in 0..1 of the shape, type and device of x, the same ones every time; integers as they are."""
    draws = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    return draws.to(x) if x.is_floating_point() else x


def _draws(module: nn.Module, x: Tensor, *, training: bool) -> tuple[Tensor, bool]:
    with seeded(0, "probe"):
        before = generator_states()
        y = probe(module, x, training)
        return y, generator_states() != before


def _own_generators(module: nn.Module) -> list[str]:
    """Return the states of generators that parts of a module hold: one that is drawn from may change few of the answers."""
    held = [value for part in module.modules() for value in vars(part).values()]
    of_torch = [str(value.get_state().tolist()) for value in held if isinstance(value, torch.Generator)]
    of_python = [str(value.getstate()) for value in held if isinstance(value, random.Random)]
    of_numpy = [value for value in held if type(value).__module__.startswith("numpy.random")]
    return [*of_torch, *of_python, *(str(getattr(v, "bit_generator", v).__getstate__()) for v in of_numpy)]


def same(a: Any, b: Any) -> bool:
    """Return whether two answers are equal but for rounding, which may differ on a GPU."""
    if not isinstance(a, Tensor):
        return bool(a == b)
    return a.is_meta or (a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-4, equal_nan=True))


def probe(module: nn.Module, x: Tensor, training: bool = False) -> Tensor:
    """Return module(x) without gradients, without compiling it, and without changing its buffers or its mode."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    # Without dynamo, which takes a second to import, nothing can be compiled.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with in_mode(training, module), torch.no_grad(), eager:
        return torch.func.functional_call(module, buffers, (x,))  # type: ignore[no-any-return]


@contextmanager
def in_mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Put modules into training or evaluation mode inside `with`; then every part of them is in the mode it was found in."""
    found = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.train(training)
        yield
    finally:
        restore_modes(found)


def restore_modes(found: Iterable[tuple[nn.Module, bool]]) -> None:
    """Put parts, each after the one that holds it, into the modes found; by `train`, which may do more than set the mode."""
    for part, mode in found:
        if part.training != mode:
            part.train(mode)
            part.training = mode

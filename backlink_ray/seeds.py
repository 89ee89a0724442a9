"""Seeds: every random draw follows from the run's seed, its purpose and its indices."""

import contextlib
import hashlib
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch

from backlink_ray.options import Option

SEED = Option(default=0, allowed="0..2^63-1")

# Default generators are shared by the whole process, so stages that are threads take turns. One thread may seed within a seeding:
# a network that is built under a seed tries its units under another.
_DEFAULT_GENERATOR = threading.RLock()


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Return a 63-bit seed that depends on the arguments alone, not on process, order or device."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Seed the default generators of torch, Python and numpy with `derive_seed(...)` inside `with`; then restore their state."""
    derived = derive_seed(seed, purpose, *indices)
    with _DEFAULT_GENERATOR, torch.random.fork_rng(devices=_devices_in_use()), _kept_states():
        _seed_torch(derived)
        random.seed(derived)
        if numpy := _numpy_random():
            numpy.seed(derived % 2**32)
        yield


def _seed_torch(seed: int) -> None:
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # there torch.manual_seed would keep the call, with three stack traces, for each kind of device that never comes
        torch.default_generator.manual_seed(seed)


def turn() -> contextlib.AbstractContextManager[bool]:
    """Keep other stages from drawing inside `with`: the backward of torch.utils.checkpoint sets the generators' states."""
    return _DEFAULT_GENERATOR


def generator_states() -> tuple[Any, ...]:
    """Return the states of the default generators: equal tuples if nothing was drawn in between."""
    return *(tuple(torch.cuda.get_rng_state(d).tolist()) for d in _devices_in_use()), *host_states()


def host_states() -> tuple[Any, ...]:
    """Return the states of the default generators that draw on the processor, not on a GPU."""
    numpy = _numpy_random()
    kind, keys, *rest = numpy.get_state() if numpy else ("", b"")
    return bytes(torch.get_rng_state().tolist()), random.getstate(), (kind, bytes(keys), *rest)


@contextlib.contextmanager
def _kept_states() -> Iterator[None]:
    numpy = _numpy_random()
    of_python, of_numpy = random.getstate(), numpy and numpy.get_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        if numpy:
            numpy.set_state(of_numpy)


def _numpy_random() -> Any:
    """Return numpy.random where torch has found numpy, which it needs not: numpy itself imports this part when it is asked."""
    numpy = sys.modules.get("numpy")
    return numpy and numpy.random


def _devices_in_use() -> list[int]:
    """Return the current device only: stages draw on their own device, and another would get a CUDA context."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []

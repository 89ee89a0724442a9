"""Seeds: every random draw follows from the run's seed, its purpose and its indices."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator

import torch

from backlink_ray.options import Option

SEED = Option(default=0, allowed="0..2^63-1")

# torch's default generators are shared by the whole process, so stages that are threads take turns.
_DEFAULT_GENERATOR = threading.Lock()


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Return a 63-bit seed that depends on the arguments alone, not on process, order or device."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Seed torch's default generators with `derive_seed(...)` inside `with`; restore their state afterwards."""
    with _DEFAULT_GENERATOR, torch.random.fork_rng(devices=_devices_in_use()):
        torch.manual_seed(derive_seed(seed, purpose, *indices))
        yield


def _devices_in_use() -> list[int]:
    """Return the current device only: stages draw on their own device, and another would get a CUDA context."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []

"""Modes: every part of a module is trained in the mode it was found in, and stays as it was found where it cannot be trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from torch import nn

from backlink_ray.errors import ConfigError
from backlink_ray.local.module import LocalModule
from backlink_ray.nets.probe import restore_modes


class TrainingModes:
    """The modes in which modules are to be trained: those they are in now.

    If all units and the last head are in evaluation mode, somebody has evaluated the network: then it is training mode for all.
    """

    def __init__(self, modules: Sequence[LocalModule]) -> None:
        self._modules = modules
        self._found = [] if self._evaluates() else _modes(modules)

    def restore(self) -> None:
        """Put every part into its mode if the network is in evaluation mode."""
        if self._evaluates():
            for module in self._modules if not self._found else ():
                module.train()
            restore_modes(self._found)

    def _evaluates(self) -> bool:
        units = (unit for module in self._modules for unit in module.units)
        return not any(part.training for top in chain(units, [self._modules[-1].head]) for part in top.modules())


@contextmanager
def unmoved_if_refused(modules: Sequence[LocalModule], batch_size: int) -> Iterator[None]:
    """Put buffers back if modules refuse a batch of one: statistics of those before the one that refuses have moved by then."""
    found = [(b, b.clone()) for module in modules for b in module.buffers()] if batch_size == 1 else []
    try:
        yield
    except ConfigError:
        for buffer, before in found:
            buffer.copy_(before)
        raise


def _modes(modules: Sequence[LocalModule]) -> list[tuple[nn.Module, bool]]:
    """Return every part and its mode. A `train` of the user's, which torch's loops call, may keep parts in evaluation mode."""
    found = [(part, part.training) for module in modules for part in module.modules()]
    for part, is_training in found:
        if is_training and type(part).train is not nn.Module.train:
            part.train()
    modes = [(part, part.training and was_training) for part, was_training in found]
    restore_modes(modes)
    return modes

"""Compiling: how long torch.compile has compiled in this process, so that steps can be timed apart from it."""

import time
from functools import cache

_MOMENTS: list[float] = []  # the start and the end of each compilation


@cache
def watch_compiling() -> None:
    """Begin to watch, once; of compilations that overlap, torch says one start and one end."""
    from torch._dynamo.callback import callback_handler  # takes a second to import

    callback_handler.register_start_callback(lambda _: _MOMENTS.append(time.perf_counter()))
    callback_handler.register_end_callback(lambda _: _MOMENTS.append(time.perf_counter()))


def compile_seconds() -> float:
    """Return the seconds that this process has compiled since `watch_compiling` was first called."""
    return sum(end - start for start, end in zip(_MOMENTS[::2], _MOMENTS[1::2], strict=False))

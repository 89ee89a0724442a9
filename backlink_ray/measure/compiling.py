"""Compiling: how long torch.compile has compiled in this process, so that steps can be timed apart from it."""

import time
from typing import Any


class _Clock:
    """Adds up the times between the start and the end of compilations; torch calls it once for those that overlap."""

    def __init__(self) -> None:
        self.seconds, self._start, self._runs = 0.0, 0.0, False

    def run(self) -> None:
        """Begin to watch, once."""
        if not self._runs:
            from torch._dynamo.callback import callback_handler  # takes a second to import

            callback_handler.register_start_callback(self._on_start)
            callback_handler.register_end_callback(self._on_end)
            self._runs = True

    def _on_start(self, _compilation: Any) -> None:
        self._start = time.perf_counter()

    def _on_end(self, _compilation: Any) -> None:
        self.seconds += time.perf_counter() - self._start


_CLOCK = _Clock()
watch_compiling = _CLOCK.run


def compile_seconds() -> float:
    """Return the seconds that this process has compiled since `watch_compiling` was first called."""
    return _CLOCK.seconds

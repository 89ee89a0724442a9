"""Balance: the sizes of K local modules whose most expensive stage is as cheap as any cut allows."""

import numpy as np
from numpy.typing import NDArray

from backlink_ray.errors import ConfigError


class Balance:
    """The best cuts of N units; exact, by dynamic programming: a cut into K modules begins with one into K - 1.

    Args:
        costs: (N + 1, N + 1); [start, stop] is the cost of a module of the units start..stop - 1, in any measure, infinite
            where there can be none.
        smallest: units of every module but the last, 1 or more: the propagation length.
    """

    def __init__(self, costs: NDArray[np.float64], smallest: int = 1) -> None:
        self._count, self._smallest = len(costs) - 1, smallest
        places = np.arange(self._count + 1)
        units = places[:, None] - places[None, :]
        self._others = np.where(units >= smallest, costs.T, np.inf)  # [stop, start], so that a minimum runs along a row
        self._last = np.where(units[-1] >= 1, costs[:, -1], np.inf)
        # Of k + 1 modules that end before unit `stop`: the cost of the worst, and where the last of them starts.
        self._best, self._starts = [self._others[:, 0]], [np.zeros(self._count + 1, np.int64)]

    def sizes(self, num_modules: int) -> list[int]:
        """Return the sizes of K modules, [] where all cuts are infinitely expensive; cuts into fewer are known afterwards.

        Raises:
            ConfigError: N units have no such K modules.
        """
        needed = (num_modules - 1) * self._smallest + 1
        if needed > self._count:
            raise ConfigError(
                f"num_modules={num_modules} of at least {self._smallest} units need {needed} units or more, and there are "
                f"{self._count}"
            )
        while len(self._best) < num_modules - 1:
            self._cut_once_more()
        stops = [self._count]
        if num_modules > 1:
            worst = np.maximum(self._best[num_modules - 2], self._last)  # by where the last module starts
            if not np.isfinite(worst.min()):
                return []
            stops += self._starts_up_to(int(worst.argmin()), num_modules - 2)
        return [stop - start for stop, start in zip(stops, [*stops[1:], 0], strict=True)][::-1]

    def _cut_once_more(self) -> None:
        worst = np.maximum(self._best[-1][None, :], self._others)
        starts = worst.argmin(axis=1)
        self._starts.append(starts)
        self._best.append(worst[np.arange(len(worst)), starts])

    def _starts_up_to(self, stop: int, k: int) -> list[int]:
        """Return `stop`, before which module k ends, and where the modules k, k - 1, ..., 1 start."""
        found = [stop]
        for starts in reversed(self._starts[1 : k + 1]):
            found.append(int(starts[found[-1]]))
        return found

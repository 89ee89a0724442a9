"""Balance: the sizes of K local modules whose most expensive stage is as cheap as any cut allows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backlink_ray.errors import ConfigError


def balanced_sizes(costs: NDArray[np.float64], num_modules: int, smallest: int = 1) -> list[int]:
    """Return the sizes of K modules that minimise the cost of the most expensive one; exact, by dynamic programming.

    Args:
        costs: (N + 1, N + 1); [start, stop] is the cost of a module of the units start..stop - 1, in any measure, infinite
            where there can be none. Where that leaves no cut, the answer is [].
        num_modules: K in 1..N.
        smallest: units of every module but the last, 1 or more: the propagation length.

    Raises:
        ConfigError: N units have no such K modules.
    """
    count, needed = len(costs) - 1, (num_modules - 1) * smallest + 1
    if needed > count:
        raise ConfigError(
            f"num_modules={num_modules} of at least {smallest} units need {needed} units or more, and there are {count}"
        )
    places = np.arange(count + 1)
    units = places[None, :] - places[:, None]
    last, others = (np.where(units >= fewest, costs, np.inf) for fewest in (1, smallest))
    best, starts = (last if num_modules == 1 else others)[0], []  # best[stop]: of modules that end before unit `stop`
    for k in range(1, num_modules):
        worst = np.maximum(best[:, None], last if k == num_modules - 1 else others)
        starts.append(worst.argmin(axis=0))
        best = worst.min(axis=0)
    return _sizes(starts, count) if np.isfinite(best[count]) else []


def _sizes(starts: Sequence[NDArray[np.int64]], count: int) -> list[int]:
    """Return the sizes, from the best start of the module that ends at every stop, for all modules but the first."""
    stops = [count]
    for best in reversed(starts):
        stops.append(int(best[stops[-1]]))
    return [stop - start for stop, start in zip(stops, [*stops[1:], 0], strict=True)][::-1]

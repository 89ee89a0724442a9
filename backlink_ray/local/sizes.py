"""Sizes: how many units each local module has, and which propagation lengths fit."""

from collections.abc import Sequence

from backlink_ray.errors import ConfigError


def module_sizes(num_units: int, num_modules: int, remainder: str = "front", network: str = "the network") -> list[int]:
    """Split `num_units` into `num_modules` consecutive groups whose sizes differ by at most one.

    Args:
        num_units: N >= 1.
        num_modules: K in 1..N.
        remainder: which groups have one more unit if K does not divide N: the first ("front") or the last ("back").
        network: name used in the error.

    Returns:
        K sizes that sum to N, for example 55 units at K = 4: [14, 14, 14, 13].
    """
    if not 1 <= num_modules <= num_units:
        raise ConfigError(
            f"num_modules={num_modules} is out of range for {network} with {num_units} units; allowed 1..{num_units}"
        )
    small, larger = divmod(num_units, num_modules)
    sizes = [small + 1] * larger + [small] * (num_modules - larger)
    return sizes if remainder == "front" else sizes[::-1]


def longest_propagation(sizes: Sequence[int]) -> int:
    """Return the largest valid propagation length l: the size of the smallest module but the last (K = 1: any l is BP)."""
    return min(sizes[:-1], default=sizes[-1])


def check_propagation(propagation_length: int, sizes: Sequence[int], network: str = "the network") -> None:
    """Raise ConfigError if l exceeds the size of a module that gets a link; with K = 1 any l means BP."""
    limit = longest_propagation(sizes)
    if len(sizes) > 1 and propagation_length > limit:
        raise ConfigError(
            f"propagation_length={propagation_length} exceeds {limit}, the smallest local module of {network} "
            f"at K={len(sizes)}; allowed 0..{limit}"
        )

"""Sizes: how many units each local module has, and which propagation lengths fit."""

from collections.abc import Sequence

from backlink_ray.errors import ConfigError
from backlink_ray.options import POSITIVE


def module_sizes(
    num_units: int,
    num_modules: int,
    remainder: str = "front",
    network: str = "the network",
    sizes: Sequence[int] = (),
) -> list[int]:
    """Split `num_units` into consecutive groups: the given ones, or `num_modules` whose sizes differ by at most one.

    Args:
        num_units: N >= 1.
        num_modules: K in 1..N; with `sizes` also 0, which leaves it to them.
        remainder: which groups have one more unit if K does not divide N: the first ("front") or the last ("back").
        network: name used in the error.
        sizes: the size of each group; () for equal ones.

    Returns:
        K sizes that sum to N, for example 55 units at K = 4: [14, 14, 14, 13].
    """
    if len(sizes):
        return _checked_sizes(num_units, num_modules, remainder, network, sizes)
    if not 1 <= num_modules <= num_units:
        raise ConfigError(
            f"num_modules={num_modules} is out of range for {network} with {num_units} units; allowed 1..{num_units}"
        )
    small, larger = divmod(num_units, num_modules)
    sizes = [small + 1] * larger + [small] * (num_modules - larger)
    return sizes if remainder == "front" else sizes[::-1]


def _checked_sizes(num_units: int, num_modules: int, remainder: str, network: str, sizes: Sequence[int]) -> list[int]:
    own, given = [POSITIVE.read("each of sizes", size) for size in sizes], tuple(sizes)
    if sum(own) != num_units:
        raise ConfigError(
            f"sizes={given} sum to {sum(own)}, and {network} has {num_units} units; allowed: sizes that sum to {num_units}"
        )
    if num_modules not in (0, len(own)):
        raise ConfigError(f"num_modules={num_modules} with sizes={given}; allowed: {len(own)}, or no num_modules")
    if remainder != "front":
        raise ConfigError(f"remainder={remainder!r} has no meaning with sizes={given}; allowed: front, the default")
    return own


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

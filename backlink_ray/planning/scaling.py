"""Scaling: the fastest pipeline for every number of devices, and beyond which number more of them do not pay."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from backlink_ray.output import told
from backlink_ray.planning.layout import Link
from backlink_ray.planning.plan import Planner, Prediction

PAYS = 0.1  # of a step: what twice the devices must save


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The fastest pipeline for a number of devices.

    Attributes:
        devices: that are there; a module each, so it may leave some idle.
        length: l that was asked for; with one module it has no meaning.
        plan: the pipeline.
    """

    devices: int
    length: int
    plan: Prediction

    @property
    def row(self) -> dict[str, Any]:
        """Return it as a row of a file."""
        return {"devices": self.devices, **self.plan.row}


def choices(
    planners: Sequence[Planner],
    devices: Iterable[int],
    counts: Sequence[int],
    lengths: Iterable[int],
    links: Sequence[Link],
) -> Iterator[Choice]:
    """Yield for every l, and every number of devices, the fastest pipeline with at most a stage for each device.

    BP on one device is among them, if K = 1 is; where nothing fits into a device's memory, nothing is yielded.

    Args:
        planners: of a machine with at least so many devices, one for each number of replicas.
        devices: numbers of them.
        counts: K.
        lengths: l.
        links: kinds of links, whatever their length.
    """
    for length in told(sorted({*lengths}), "propagation lengths"):
        cuts, below, best = [list(planner.cuts(counts, [length], links)) for planner in planners], 0, None
        for number in sorted({*devices}):
            for planner, own in zip(planners, cuts, strict=True):
                within = [cut for cut in own if below < len(cut[0]) * planner.replicas <= number]
                best = planner.fastest(within, best)
            below = number
            if best:
                yield Choice(devices=number, length=length, plan=best)


def linked(found: Sequence[Choice]) -> list[Choice]:
    """Return the fastest of each number of devices: of those with a link, if an l above 0 was asked for and any fits."""
    best: dict[int, Choice] = {}
    for each in sorted(found, key=lambda each: (each.devices, not each.length, each.plan.step_s, each.length)):
        best.setdefault(each.devices, each)
    return list(best.values())


def enough(found: Sequence[Choice]) -> Choice:
    """Return the one beyond which devices do not pay: no larger number saves PAYS of the step for each doubling on the way.

    Args:
        found: one for each number of devices.
    """
    # With t(N) seconds on N devices that is the N for which t(N) (1 - PAYS)^-log2(N) is least.
    return min(found, key=lambda each: each.plan.step_s * each.devices ** -math.log2(1 - PAYS))


def verdict(found: Sequence[Choice]) -> str:
    """Return in one line which number of devices is enough, see `enough`."""
    number, most = enough(found).devices, max(each.devices for each in found)
    share = f"{100 * PAYS:.0f} %"
    if len(found) == 1:
        return f"{number} device{'s' * (number > 1)}: of those asked for the only number on which a pipeline fits"
    if number == most:
        return f"up to {most} devices, the most asked for, twice as many save {share} of a step or more"
    return f"beyond {number} device{'s' * (number > 1)}, twice as many save less than {share} of a step"

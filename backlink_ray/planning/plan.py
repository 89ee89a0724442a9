"""Plan: the predicted step of a network's pipelines, over K, l, link and memory of the tail, and which one to choose."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import Any

import numpy as np

from backlink_ray.local.sizes import longest_propagation, module_sizes
from backlink_ray.planning.balance import Balance
from backlink_ray.planning.costs import NetworkCosts
from backlink_ray.planning.layout import Link, Stages
from backlink_ray.planning.sharing import speed_of
from backlink_ray.planning.simulation import Simulation, StageWork, Transfer

MIB = 2**20
Cut = tuple[tuple[int, ...], Link]  # sizes, and what is between them


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What stages run on.

    Attributes:
        devices: number of devices, 1 or more; stage k runs on device k modulo that, and those of a second replica on the next.
        shares_cores: the devices are the cores of one machine, on any of which a stage may run.
        memory_mib: of a device, or of all cores together; 0 for no limit.
        transfer: what messages cost.
    """

    devices: int
    shares_cores: bool = False
    memory_mib: float = 0.0
    transfer: Transfer = field(default_factory=Transfer)

    def step_s(
        self, works: Sequence[StageWork], speeds: Sequence[float] = (1.0,), steps: int = 0, replicas: int = 1
    ) -> float:
        """Return the seconds of a step: from one to the next, or of a run from the first input to the last update.

        Where stages share devices the first ones run ahead for longer than is simulated, but no device can do more than all
        its work.

        Args:
            works: of every stage.
            speeds: of stages that compute at once on cores, see `speed_of`.
            steps: of the run; 0 for a pipeline that is full.
            replicas: D, of every stage.
        """
        works, num_modules = list(works) * replicas, len(works)
        where = [0 if self.shares_cores else k % self.devices for k in range(len(works))]
        cores, speeds = (self.devices, speeds) if self.shares_cores else (1, (1.0,))
        shared = len({*where}) < len(works)
        num_steps = steps or (4 if shared else 2) * num_modules + 8
        simulated = Simulation(works, self.transfer, num_steps, where, cores, speeds, replicas)
        if steps:
            return simulated.run_s / steps
        work_s = [
            sum(work.busy_s for work, at in zip(works, where, strict=True) if at == device) for device in {*where}
        ]
        together = max(number * speed_of(number, cores, speeds) for number in range(1, max(cores, len(speeds)) + 1))
        return max(simulated.step_s, *(seconds / together for seconds in work_s))

    def fullest_mib(self, stage_bytes: Sequence[float]) -> float:
        """Return the memory in use on the device that has most, from that of every stage."""
        shares = 1 if self.shares_cores else self.devices
        return max(sum(stage_bytes[first::shares]) for first in range(min(shares, len(stage_bytes)))) / MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A pipeline and its predicted step.

    Attributes:
        sizes: units of each module.
        link: between them.
        step_s: seconds.
        ratio_to_bp: of it to a step of BP on one device.
        busy: of each stage the share of the step in which it computes.
        memory_mib: on the device that has most.
        cut_bytes: over every cut, in a step.
        fits: the memory is there.
        replicas: D, of every stage.
    """

    sizes: tuple[int, ...]
    link: Link
    step_s: float
    ratio_to_bp: float
    busy: tuple[float, ...]
    memory_mib: float
    cut_bytes: tuple[int, ...]
    fits: bool
    replicas: int = 1

    @property
    def row(self) -> dict[str, Any]:
        """Return it as a row of a table or of a file."""
        return {
            "num_modules": len(self.sizes), "replicas": self.replicas,
            "propagation_length": self.link.length, "link": self.link.kind,
            "tail_memory": "recompute" if self.link.recompute else "retain", "step_ms": 1e3 * self.step_s,
            "ratio_to_bp": self.ratio_to_bp, "busy_min": min(self.busy), "busy_mean": sum(self.busy) / len(self.busy),
            "memory_mib": self.memory_mib, "widest_cut_mib": max(self.cut_bytes, default=0) / MIB, "fits": self.fits,
            "sizes": list(self.sizes), "busy": list(self.busy), "cut_bytes": list(self.cut_bytes),
        }  # fmt: skip


class Planner:
    """Predicts pipelines of one network on one machine.

    Args:
        costs: of the network.
        machine: what its stages run on.
        balance: how it is cut: into modules of equal numbers of units ("count"), or so that the slowest stage is as fast
            ("time"), or the fullest as small ("memory"), as any cut allows.
        replicas: D, of every stage; the costs are those of a part of the batch.
        bp_s: a step of BP on one device on the whole batch; 0: the costs are those of it.

    Attributes:
        count: N, of units.
        replicas, bp_s: as given, or found.
    """

    def __init__(
        self, costs: NetworkCosts, machine: Machine, balance: str = "time", replicas: int = 1, bp_s: float = 0.0
    ) -> None:
        self._costs, self._machine, self._balance, self.replicas = costs, machine, balance, replicas
        self.count, self._known = costs.count, dict[Link, Balance]()
        self.bp_s = bp_s or float(Stages(costs, Link(length=0)).busy_s(0, self.count))

    def predictions(self, counts: Iterable[int], lengths: Iterable[int], links: Sequence[Link]) -> Iterator[Prediction]:
        """Predict every pipeline that the network can be cut into, see `cuts`."""
        return (self.predict(sizes, link) for sizes, link in self.cuts(counts, lengths, links))

    def cuts(self, counts: Iterable[int], lengths: Iterable[int], links: Sequence[Link]) -> Iterator[Cut]:
        """Cut the network in every way, over K, l and kinds of links; nothing for what does not fit.

        Args:
            counts: K.
            lengths: l.
            links: kinds of links, whatever their length.
        """
        fitting = [(k, length if k > 1 else 0) for k, length in product(counts, lengths)]  # with K = 1 any l means BP
        for num_modules, length in dict.fromkeys(fitting):
            for link in links if length else links[:1]:
                link = replace(link, length=length)
                if sizes := self.sizes(num_modules, link):
                    yield tuple(sizes), link

    def fastest(self, cuts: Iterable[Cut], best: Prediction | None = None) -> Prediction | None:
        """Return the fastest of some pipelines that fit, and of one known; None without any.

        One is simulated only if its slowest stage by itself, which no step can beat, takes less than the best step so far.
        """
        bounds = [(self._slowest_s(*cut), len(cut[0]), cut) for cut in cuts if self._fits(self._memory_mib(*cut))]
        for slowest_s, _, cut in sorted(bounds, key=lambda bound: bound[:2]):
            if not best or slowest_s < best.step_s:
                found = self.predict(*cut)
                best = min(best or found, found, key=lambda each: each.step_s)
        return best

    def _slowest_s(self, sizes: Sequence[int], link: Link) -> float:
        stops = np.cumsum(sizes)
        return float(self._stages(link).busy_s(stops - sizes, stops).max())

    def _memory_mib(self, sizes: Sequence[int], link: Link) -> float:
        return self._machine.fullest_mib(self._stages(link).memory_of(sizes) * self.replicas)

    def _fits(self, memory_mib: float) -> bool:
        return not self._machine.memory_mib or memory_mib <= self._machine.memory_mib

    def sizes(self, num_modules: int, link: Link) -> list[int]:
        """Return the sizes of K modules; none where l does not fit them, or no head fits where they end."""
        if num_modules > self.count:
            return []
        if self._balance == "count":
            found = module_sizes(self.count, num_modules)
            fits = num_modules == 1 or link.length <= longest_propagation(found)
            return found if fits and self._has_heads(found) else []
        smallest = max(1, link.length)
        if (num_modules - 1) * smallest >= self.count:
            return []
        if link not in self._known:
            self._known[link] = Balance(self._stages(link).costs_of_all(self._balance), smallest)
        return self._known[link].sizes(num_modules)

    def _has_heads(self, sizes: Sequence[int]) -> bool:
        return bool(np.isfinite(self._costs.head_s[np.cumsum(sizes) - 1]).all())

    def _stages(self, link: Link) -> Stages:
        return Stages(self._costs, link, self.replicas)

    def predict(self, sizes: Sequence[int], link: Link, steps: int = 0) -> Prediction:
        """Predict one pipeline: a step of it while it is full, or of a run of so many steps, which fill and drain it."""
        stages, machine = self._stages(link), self._machine
        works = stages.works(sizes)
        step_s = machine.step_s(works, self._costs.speeds, steps, self.replicas)
        memory_mib = self._memory_mib(sizes, link)
        return Prediction(
            sizes=tuple(sizes),
            link=link,
            step_s=step_s,
            ratio_to_bp=step_s / self.bp_s,
            busy=tuple(work.busy_s / step_s for work in works),
            memory_mib=memory_mib,
            cut_bytes=tuple(a.sent(1) + b.sent(-1) for a, b in pairwise(works)),
            fits=self._fits(memory_mib),
            replicas=self.replicas,
        )

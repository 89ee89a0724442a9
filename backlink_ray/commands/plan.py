"""Plan: what the pipelines of a network would take on machines that need not be there, from one measurement of its units."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch

from backlink_ray.benchmarks.rows import written
from backlink_ray.commands.flags import check_device, not_negative
from backlink_ray.commands.plan_costs import costs_of, transfer_over
from backlink_ray.commands.plan_table import COLUMNS, SCALING_COLUMNS, best_of_each, cells, cut_flags, scaling_cells
from backlink_ray.commands.results_table import print_table
from backlink_ray.errors import ConfigError
from backlink_ray.figures.plan import draw_plan
from backlink_ray.figures.scaling import draw_scaling
from backlink_ray.files import local_path, make_folder
from backlink_ray.output import told
from backlink_ray.paper.claims import quoted_times
from backlink_ray.planning.costs import NetworkCosts
from backlink_ray.planning.layout import Link
from backlink_ray.planning.plan import Machine, Planner, Prediction
from backlink_ray.planning.scaling import choices, enough, linked, verdict
from backlink_ray.processes import usable_cores
from backlink_ray.runs.cluster import start_once
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row
from backlink_ray.train.parts import part_size


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Measure each unit of a network once on this device, and predict the step of its pipelines: K stages on N devices.

    Prints a table over K and l, or with several numbers of devices over these, and the command that trains with the fastest cut.
    Times are those of this device, so a plan for GPUs is made on one of them; stages, links and memory are simulated, so any
    number of devices can be planned for.
    """

    network: str = "resnet32"
    """As for train."""
    dataset: str = "cifar10-sample"
    """As for train: its inputs are what the units get."""
    head: str = "fc"
    """As for train."""
    batch_size: int = 128
    """Images per step."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """As for train."""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """As for train."""
    num_modules: tuple[int, ...] = ()
    """K; default: 1 to 16, or to the largest of several numbers of devices, as far as the network has units."""
    propagation_length: tuple[int, ...] = (0, 1, 2, 3, 4)
    """l: 0 is GLL."""
    link: tuple[Literal["replica", "error"], ...] = ("replica", "error")
    """As for train, one or both."""
    tail_memory: tuple[Literal["retain", "recompute"], ...] = ("retain", "recompute")
    """As for train, one or both."""
    balance: Literal["count", "time", "memory"] = "time"
    """How the network is cut: modules of equal numbers of units, or so that the slowest or the fullest stage is best."""
    devices: tuple[int, ...] = ()
    """Devices; default: this machine's GPUs, or without one its cores, on any of which a stage may run. With several numbers, the
    fastest pipeline for each, with at most a module for every device, and beyond which of them more do not pay. With more than
    this machine has cores, each is a core by itself, which no other slows down."""
    memory_gib: float = 0.0
    """Of a device (of the machine, if its cores are the devices) for weights, gradients, momentum, saved tensors, data and
    messages that wait; leave room for the temporary tensors of a step, on a CPU up to half as much again. 0: no limit."""
    replicas: tuple[int, ...] = (1,)
    """D: of every stage, each with its own part of the batch, on its own device."""
    transport: Literal["queue", "objectstore", "collective"] = "queue"
    """How stages' messages travel: queue between threads, which costs nothing; as for train between Ray actors, which is
    measured: on this machine, or between two machines of a cluster at --address."""
    address: str = ""
    """Ray cluster whose links are measured, as for a search."""
    latency_us: float = 0.0
    """Of a message on its way between two stages, in place of what is measured."""
    bandwidth_gib_s: float = 0.0
    """Of a link between two stages, likewise; 0: as measured, or no limit."""
    device: str = ""
    """Where units are measured: cuda, cuda:1 or cpu; default: the GPU if there is one."""
    repeats: int = 5
    """Measurements of each unit; the median counts."""
    data_root: str = ""
    """Folder of the data sets; default $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray."""
    json: str = ""
    """File for all predictions, with date, versions, commit and hardware."""
    picture: str = ""
    """PNG file: predicted time of a step over K, or over several numbers of devices."""

    def main(self) -> int:
        """Measure, predict and print."""
        self._check()
        torch.set_num_threads(1)
        if self.address:
            start_once(self.address)  # refused before anything is measured
        planners = self._planners()
        units, is_over_devices = planners[0].count, len(set(self.devices)) > 1
        most = max(self.devices) if is_over_devices else 16
        counts = self.num_modules or range(1, min(most, units) + 1)
        if not any(planners[0].cuts(counts, self.propagation_length, self._links)):
            raise ConfigError(
                f"num_modules={self.num_modules} with propagation_length={self.propagation_length} fits no cut of "
                f"{self.network}, which has {units} units"
            )
        if is_over_devices:
            self._over_devices(planners, counts)
        else:
            self._over_modules(planners, counts)
        return 0

    def _planners(self) -> list[Planner]:
        """Return one for each number of replicas, whose costs are those of a part of the batch."""
        device, costs = torch.device(self._device), dict[int, NetworkCosts]()
        for d in dict.fromkeys((1, *self.replicas)):
            part = self._config.replace(batch_size=part_size(self.batch_size, d))
            costs[d] = costs_of(part, device, self.data_root, self.repeats)
        transfer = transfer_over(self.transport, self.address, device.type, self.latency_us, self.bandwidth_gib_s)
        machine = replace(self._machine, transfer=transfer)
        bp_s = Planner(costs[1], machine).bp_s
        return [Planner(costs[d], machine, self.balance, d, bp_s) for d in dict.fromkeys(self.replicas)]

    def _over_modules(self, planners: Sequence[Planner], counts: Sequence[int]) -> None:
        found = [
            each
            for planner, k in told([*product(planners, counts)], "numbers of modules")
            for each in planner.predictions([k], self.propagation_length, self._links)
        ]
        self._save_rows([each.row for each in found])
        shown, title = best_of_each(found), f"{self._title}; BP on one device {1e3 * planners[0].bp_s:.1f} ms"
        print_table(COLUMNS, map(cells, shown), title)
        for ratio, text in self._quoted.items():
            print(f"{ratio} of BP: {text} (Fig. 9)")
        if self.picture:
            draw_plan(shown, local_path(self.picture, "picture"), title, self._quoted)
        print(self._advice(found))

    @property
    def _quoted(self) -> dict[float, str]:
        """Return what the paper says of the pipelines of this network."""
        return quoted_times() if (self.network, self.head) == ("resnet110", "conv") else {}

    def _over_devices(self, planners: Sequence[Planner], counts: Sequence[int]) -> None:
        found = list(choices(planners, self.devices, counts, self.propagation_length, self._links))
        best, title = linked(found), f"{self._title}; BP on one device {1e3 * planners[0].bp_s:.1f} ms"
        cuts = (
            (each.replicas, cut) for each in planners for cut in each.cuts(counts, self.propagation_length, self._links)
        )
        least = min(replicas * len(sizes) for replicas, (sizes, _) in cuts)
        missing = sorted({*self.devices} - {each.devices for each in best})
        for numbers, why in (
            ([n for n in missing if n < least], f"; the fewest stages are {least}"),
            ([n for n in missing if n >= least], f" into {self.memory_gib:g} GiB of each"),
        ):
            if numbers:
                devices = f"{', '.join(map(str, numbers))} device{'s' * (numbers != [1])}"
                print(f"{devices}: no pipeline with at most a stage on each fits{why}")
        if not best:
            return
        self._save_rows([each.row for each in found])
        print_table(SCALING_COLUMNS, map(scaling_cells, best), title)
        if self.picture:
            draw_scaling(found, planners[0].bp_s, local_path(self.picture, "picture"), title)
        at = enough(best).plan
        print(f"{verdict(best)}; there {at.ratio_to_bp:.3f} of BP's time with\n{self._command(at)}")

    def _check(self) -> None:
        not_negative(self, "memory_gib", "latency_us", "bandwidth_gib_s")
        for name, least in (("num_modules", 1), ("devices", 1), ("replicas", 1), ("propagation_length", 0)):
            if any(number < least for number in getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; allowed {least} or more")
        for replicas in self.replicas:
            part_size(self.batch_size, replicas)
        if self.address and self.transport == "queue":
            raise ConfigError(
                f"address={self.address!r} has no meaning with transport='queue'; allowed: objectstore, collective"
            )
        if self.repeats < 1:
            raise ConfigError(f"repeats={self.repeats} is out of range; allowed 1 or more")
        for name in ("json", "picture"):
            if (path := getattr(self, name)) and local_path(path, name).is_dir():
                raise ConfigError(f"{name}={path!r} is a folder; give a file")
        if self.picture and not self.picture.endswith(".png"):
            raise ConfigError(f"picture={self.picture!r} is not a PNG file; give a name that ends in .png")
        check_device(self._device)

    @property
    def _device(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def _here(self) -> int:
        """Return how many devices this machine has."""
        return usable_cores() if self._on_cpu else torch.cuda.device_count()

    @property
    def _on_cpu(self) -> bool:
        return torch.device(self._device).type == "cpu"

    @property
    def _machine(self) -> Machine:
        devices = max(self.devices, default=self._here)
        return Machine(
            devices=devices, shares_cores=self._on_cpu and devices <= self._here, memory_mib=1024 * self.memory_gib,
        )  # fmt: skip

    @property
    def _links(self) -> list[Link]:
        return [
            Link(length=0, kind=kind, recompute=tail == "recompute")
            for kind, tail in product(self.link, self.tail_memory)
        ]

    @property
    def _config(self) -> RunConfig:
        return RunConfig(
            network=self.network, dataset=self.dataset, head=self.head, method="gll", num_modules=1,
            batch_size=self.batch_size, precision=self.precision, memory_format=self.memory_format,
        )  # fmt: skip

    @property
    def _title(self) -> str:
        machine = self._machine
        like = "a core of this machine" if self._on_cpu else "this one"
        number = "N" if len(set(self.devices)) > 1 else machine.devices
        where = f"{number} cores" if machine.shares_cores else f"{number} devices like {like}"
        return f"{self.network}, {self.head} heads, batch {self.batch_size}, {self.precision}, cut by {self.balance}, on {where}"

    def _save_rows(self, found: Sequence[Row]) -> None:
        if self.json:
            rows = [{"what": "plan", "network": self.network, "balance": self.balance, **row} for row in found]
            path = local_path(self.json, "json")
            make_folder(path.parent, "json")
            list(written(rows, path, "plan", self._device))

    def _advice(self, found: Sequence[Prediction]) -> str:
        """Return how to train with the fastest cut that fits: with an l above 0, if one was asked for."""
        fitting = [each for each in found if each.fits]
        if not fitting:
            least = min(found, key=lambda each: each.memory_mib)
            need = f"nothing fits into {self.memory_gib:g} GiB; the least is {least.memory_mib / 1024:.2f} GiB"
            return f"{need}: {cut_flags(least)}"
        best = min((each for each in fitting if each.link.length), key=lambda each: each.step_s, default=None)
        best = best or min(fitting, key=lambda each: each.step_s)
        which = "fastest with a link" if best.link.length else "fastest"
        return f"{which}: {best.ratio_to_bp:.3f} of BP's time with\n{self._command(best)}"

    def _command(self, best: Prediction) -> str:
        flags = {
            "network": self.network, "dataset": self.dataset, "head": self.head, "batch-size": self.batch_size,
            "precision": self.precision, "memory-format": self.memory_format,
        }  # fmt: skip
        if self.data_root:
            flags["data-root"] = self.data_root
        given = [f"--{name} {shlex.quote(str(value))}" for name, value in flags.items()]
        is_elsewhere = (
            min(self._machine.devices, len(best.sizes) * best.replicas) > self._here
            or self.latency_us
            or self.bandwidth_gib_s
        )
        executor = "ray" if is_elsewhere or self.transport != "queue" else "threads"
        transport = f" --transport {self.transport}" * (self.transport != "queue")
        how = f"--executor {executor}{transport} --output-dir runs/planned"
        cluster = f"RAY_ADDRESS={shlex.quote(self.address)} " if self.address else ""
        return f"{cluster}backlink-ray train {' '.join(given)} {cut_flags(best)} {how}"

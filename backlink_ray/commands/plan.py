"""Plan: what the pipelines of a network would take on machines that need not be there, from one measurement of its units."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Literal

import torch

from backlink_ray.benchmarks.rows import written
from backlink_ray.commands.flags import check_device, not_negative
from backlink_ray.commands.results_table import print_table
from backlink_ray.data.datasets import data_root
from backlink_ray.data.loader import Batches
from backlink_ray.errors import ConfigError
from backlink_ray.figures.plan import draw_plan
from backlink_ray.files import local_path, make_folder
from backlink_ray.importing import is_path, load
from backlink_ray.nets.network import dtype_and_device
from backlink_ray.planning.costs import NetworkCosts, measure_costs
from backlink_ray.planning.layout import Link
from backlink_ray.planning.plan import Machine, Planner, Prediction
from backlink_ray.planning.simulation import MessageCost, Transfer
from backlink_ray.planning.units import unit_modules
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import dataset_of
from backlink_ray.runs.job import build_modules, engine_of

_COLUMNS = ("K", "l", "link", "tail", "step ms", "/ BP", "busy %", "MiB", "MiB over a cut", "sizes")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Measure each unit of a network once on this device, and predict the step of its pipelines: K stages on N devices.

    Prints a table, and the command that trains with the fastest cut. Times are those of this device, so a plan for GPUs is made
    on one of them; stages, links and memory are simulated, so any number of devices can be planned for.
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
    """K; default: 1 to 16, as far as the network has units."""
    propagation_length: tuple[int, ...] = (0, 1, 2, 3, 4)
    """l: 0 is GLL."""
    link: tuple[Literal["replica", "error"], ...] = ("replica", "error")
    """As for train, one or both."""
    tail_memory: tuple[Literal["retain", "recompute"], ...] = ("retain", "recompute")
    """As for train, one or both."""
    balance: Literal["count", "time", "memory"] = "time"
    """How the network is cut: modules of equal numbers of units, or so that the slowest or the fullest stage is best."""
    devices: int = 0
    """Devices; default: this machine's GPUs, or without one its cores, on any of which a stage may run."""
    memory_gib: float = 0.0
    """Of a device (without a GPU: of the machine) for weights, gradients, momentum, saved tensors, data and messages; 0: no
    limit."""
    latency_us: float = 0.0
    """Of a message between two stages."""
    bandwidth_gib_s: float = 0.0
    """Of a link between two stages; 0: no limit, as between threads."""
    device: str = ""
    """Where units are measured: cuda, cuda:1 or cpu; default: the GPU if there is one."""
    repeats: int = 5
    """Measurements of each unit; the median counts."""
    data_root: str = ""
    """Folder of the data sets; default $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray."""
    json: str = ""
    """File for all predictions, with date, versions, commit and hardware."""
    picture: str = ""
    """PNG file: predicted time of a step over K."""

    def main(self) -> int:
        """Measure, predict and print."""
        self._check()
        torch.set_num_threads(1)
        print(f"measuring the units of {self.network} on {self._device}", flush=True)
        costs = self._costs()
        planner, counts = (
            Planner(costs, self._machine, self.balance),
            self.num_modules or range(1, min(16, costs.count) + 1),
        )
        found = list(planner.predictions(counts, self.propagation_length, self._links))
        if not found:
            raise ConfigError(
                f"num_modules={self.num_modules} with propagation_length={self.propagation_length} fits no cut of "
                f"{self.network}, which has {costs.count} units"
            )
        shown = best_of_each(found)
        bp = f"BP on one device {1e3 * planner.bp_s:.1f} ms"
        print_table(_COLUMNS, [_cells(each) for each in shown], f"{self._title}; {bp}")
        self._save(found, bp)
        print(self._advice(found))
        return 0

    def _check(self) -> None:
        not_negative(self, "devices", "memory_gib", "latency_us", "bandwidth_gib_s")
        for name in ("num_modules", "propagation_length"):
            if any(number < (name == "num_modules") for number in getattr(self, name)):
                raise ConfigError(
                    f"{name}={getattr(self, name)} is out of range; allowed {int(name == 'num_modules')} or more"
                )
        if self.repeats < 1:
            raise ConfigError(f"repeats={self.repeats} is out of range; allowed 1 or more")
        if self.json and local_path(self.json, "json").is_dir():
            raise ConfigError(f"json={self.json!r} is a folder; give a file")
        if self.picture and not self.picture.endswith(".png"):
            raise ConfigError(f"picture={self.picture!r} is not a PNG file; give a name that ends in .png")
        check_device(self._device)

    @property
    def _device(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def _here(self) -> int:
        """Return how many devices this machine has."""
        on_cpu = torch.device(self._device).type == "cpu"
        return (os.cpu_count() or 1) if on_cpu else torch.cuda.device_count()

    @property
    def _machine(self) -> Machine:
        on_cpu = torch.device(self._device).type == "cpu"
        s_per_byte = 1 / (2**30 * self.bandwidth_gib_s) if self.bandwidth_gib_s else 0.0
        return Machine(
            devices=self.devices or self._here, shares_cores=on_cpu, memory_mib=1024 * self.memory_gib,
            transfer=Transfer(wire=MessageCost(1e-6 * self.latency_us, s_per_byte)),
        )  # fmt: skip

    @property
    def _links(self) -> list[Link]:
        return [
            Link(length=0, kind=kind, recompute=tail == "recompute")
            for kind, tail in product(self.link, self.tail_memory)
        ]

    def _costs(self) -> NetworkCosts:
        config = RunConfig(
            network=self.network, dataset=self.dataset, head=self.head, method="gll", num_modules=1,
            batch_size=self.batch_size, precision=self.precision, memory_format=self.memory_format,
        )  # fmt: skip
        data, engine, device = (
            dataset_of(config, data_root(self.data_root)),
            engine_of(config),
            torch.device(self._device),
        )
        network, _ = build_modules(config, data.num_classes, data.image_size)
        head = load(self.head, "head") if is_path(self.head) else self.head
        engine.check(device, dtype_and_device(network)[0])
        modules = [module.to(device) for module in unit_modules(network, head)]
        batches = Batches(
            data.train, self.batch_size, seed=0, device=device, memory_format=engine.torch_format,
            dtype=dtype_and_device(network)[0],
        )  # fmt: skip
        return measure_costs(modules, batches, engine, self.repeats, (data.train, data.test))

    @property
    def _title(self) -> str:
        machine = self._machine
        where = f"{machine.devices} cores" if machine.shares_cores else f"{machine.devices} devices like this one"
        return f"{self.network}, {self.head} heads, batch {self.batch_size}, {self.precision}, cut by {self.balance}, on {where}"

    def _save(self, found: Sequence[Prediction], bp: str) -> None:
        if self.json:
            rows = [{"what": "plan", "network": self.network, "balance": self.balance, **each.row} for each in found]
            path = local_path(self.json, "json")
            make_folder(path.parent, "json")
            list(written(rows, path, "plan", self._device))
        if self.picture:
            draw_plan(best_of_each(found), local_path(self.picture, "picture"), f"{self._title}; {bp}")

    def _advice(self, found: Sequence[Prediction]) -> str:
        """Return how to train with the fastest cut that fits: with an l above 0, if one was asked for."""
        fitting = [each for each in found if each.fits]
        if not fitting:
            least = min(found, key=lambda each: each.memory_mib)
            return f"nothing fits into {self.memory_gib:g} GiB; the least is {least.memory_mib / 1024:.2f} GiB: {_cut(least)}"
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
        is_elsewhere = self._machine.devices > self._here or self.latency_us or self.bandwidth_gib_s
        executor = "ray" if is_elsewhere else "threads"
        return f"backlink-ray train {' '.join(given)} {_cut(best)} --executor {executor} --output-dir runs/planned"


def _cut(prediction: Prediction) -> str:
    """Return a cut and its method as flags of train."""
    sizes, link = " ".join(map(str, prediction.sizes)), prediction.link
    if len(prediction.sizes) == 1:
        return "--method bp"
    if not link.length:
        return f"--method gll --sizes {sizes}"
    tail = "recompute" if link.recompute else "retain"
    return f"--sizes {sizes} --propagation-length {link.length} --link {link.kind} --tail-memory {tail}"


def best_of_each(found: Sequence[Prediction]) -> list[Prediction]:
    """Return the fastest of every K and l, of those that fit if any does."""
    best: dict[tuple[int, int], Prediction] = {}
    for each in sorted(found, key=lambda each: (not each.fits, each.step_s)):
        best.setdefault((len(each.sizes), each.link.length), each)
    return [best[key] for key in sorted(best)]


def _cells(each: Prediction) -> list[str]:
    row, busy = each.row, [f"{100 * share:.0f}" for share in (min(each.busy), max(each.busy))]
    linked = bool(each.link.length)
    return [
        str(row["num_modules"]), str(row["propagation_length"]), row["link"] * linked, row["tail_memory"] * linked,
        f"{row['step_ms']:.1f}", f"{each.ratio_to_bp:.3f}", "..".join(busy),
        f"{each.memory_mib:,.0f}" + " (too much)" * (not each.fits), f"{row['widest_cut_mib']:.2f}", short_sizes(each.sizes),
    ]  # fmt: skip


def short_sizes(sizes: Sequence[int]) -> str:
    """Return sizes with repetitions counted: "7 9", "4x3 2"."""
    groups = [(size, len(list(group))) for size, group in groupby(sizes)]
    return " ".join(f"{count}x{size}" if count > 2 else " ".join([str(size)] * count) for size, count in groups)

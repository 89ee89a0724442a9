"""Bench: measurements on one machine, one item per call, written as rows that can be compared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from backlink_ray.benchmarks.checks import executor_differences, gradient_errors
from backlink_ray.benchmarks.data import data_rows
from backlink_ray.benchmarks.memory import memory_rows
from backlink_ray.benchmarks.pipeline import Setting, pipeline_rows
from backlink_ray.benchmarks.rows import written
from backlink_ray.benchmarks.soak import soak_rows
from backlink_ray.benchmarks.step import convolution_rows, step_rows
from backlink_ray.commands.bench_table import print_rows
from backlink_ray.commands.flags import check_device, not_negative
from backlink_ray.data.datasets import data_root
from backlink_ray.errors import ConfigError
from backlink_ray.files import local_path, make_folder
from backlink_ray.local.engine import Engine
from backlink_ray.nets.names import unit_count
from backlink_ray.paper.cells import published_error_pct
from backlink_ray.paper.recipes import default_alpha
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import dataset_of
from backlink_ray.runs.results import Row
from backlink_ray.runs.runner import run


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure on this machine, and print a table.

    step: time, operations and memory of a training step of BP, GLL and BackLink, beside a plain loop's, and convolutions in
    bfloat16. memory: peak of a step over K and l (paper, Fig. 7), allocated on a GPU, counted elsewhere. data: batches.
    correctness: float64 gradients on the device against the CPU, and executors against each other. pipeline: our pipelines, their
    slowest stage alone, BP on one core, and what one would pick instead: naive model parallelism, GPipe, 1F1B, zero bubble, data
    parallel. headline: the best-known cells of Tables II and III at the full recipe, on CIFAR-10. soak: steps of a small run on
    CPU cores while its stages, and the process that stands by to replace one, are killed, one every 30 s at random times, as a
    share of what it does undisturbed (goodput).
    """

    item: tyro.conf.Positional[Literal["step", "memory", "data", "correctness", "pipeline", "headline", "soak"]]
    """What is measured."""
    json: str = ""
    """File for the rows, with date, versions, commit and hardware: one JSON list, replaced with every row that is measured."""
    smoke_test: bool = False
    """The same at a small size, in seconds, on any machine."""
    device: str = ""
    """cuda, cuda:1 or cpu; default: the GPU if there is one. pipeline and soak are measured on CPU cores."""
    threads: int = 1
    """Threads of torch on a CPU."""
    network: str = ""
    """Network; default: resnet32, and resnet110 too for step and memory."""
    batch_size: int = 0
    """Images per step; default: 512 on a GPU, 128 on a CPU and for correctness and pipeline."""
    precision: tuple[str, ...] = ()
    """step, memory, data: one or more of fp32, tf32, bf16; default: fp32 bf16, and tf32 on a GPU. pipeline: one; default fp32."""
    memory_format: tuple[str, ...] = ("channels_last",)
    """step, memory, data: channels_last, contiguous or both. pipeline: one."""
    compile: tuple[str, ...] = ("none",)
    """step, data: none, units or both."""
    graph: bool = False
    """step: on a GPU, every run a second time, with its step captured as a CUDA graph."""
    steps: int = 0
    """step, data, pipeline: steps per round; default: 20 on a GPU, else 1, and 40 for pipeline."""
    rounds: int = 0
    """step, data, pipeline: rounds, after one that is discarded; default 5."""
    num_modules: tuple[int, ...] = (2,)
    """pipeline: K, the number of stages, and of rivals' processes."""
    propagation_length: tuple[int, ...] = (0, 1, 2, 4)
    """pipeline: l of ours; 0 is GLL; what fits no cut is left out."""
    transport: tuple[Literal["queue", "objectstore", "collective"], ...] = ("queue", "objectstore", "collective")
    """pipeline: how messages of ours travel: queue (threads), objectstore or collective (Ray actors)."""
    balance: tuple[Literal["count", "time", "memory"], ...] = ("time",)
    """pipeline: how ours are cut, as for plan."""
    rivals: tuple[Literal["naive", "gpipe", "1f1b", "zero_bubble", "zbv", "ddp"], ...] = (
        "naive",
        "gpipe",
        "1f1b",
        "zero_bubble",
        "zbv",
        "ddp",
    )
    """pipeline: what runs beside ours, if anything."""
    minutes: float = 5.0
    """soak: how long stages are killed; the undisturbed run takes half as long."""
    seeds: int = 1
    """headline: seeds per cell."""
    data_root: str = ""
    """headline: folder of the data sets; default $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray."""
    output_dir: Path = Path("results/bench")
    """headline: folder of its run folders, which are resumed."""

    def main(self) -> int:
        """Measure one item."""
        self._check()
        torch.set_num_threads(self.threads)
        path = local_path(self.json, "json") if self.json else None
        if path:
            make_folder(path.parent, "json")
        shown: list[Row] = []
        try:
            for row in written(_ITEMS[self.item](self), path, self.item, self.chosen_device):
                shown.append(row)  # one by one, since the next one may fail
        finally:
            print_rows(shown)
        return 0

    def _check(self) -> None:
        if self.chosen_device == "cpu" and self.item == "headline" and not self.smoke_test:
            raise ConfigError(
                "headline at full size needs a GPU, which this machine lacks; give --smoke-test, or --device"
            )
        not_negative(self, "batch_size", "steps", "rounds")
        self._check_pipelines()
        if not self.minutes > 0:
            raise ConfigError(f"minutes={self.minutes} is out of range; allowed above 0")
        for name in ("threads", "seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; allowed 1 or more")
        check_device(self.chosen_device)
        if self.json and local_path(self.json, "json").is_dir():
            raise ConfigError(f"json={self.json!r} is a folder; give a file")
        for network in self.networks():
            unit_count(network)  # checks the name
        for engine in self.engines:
            engine.check(torch.device(self.chosen_device), torch.float32)

    def _check_pipelines(self) -> None:
        if self.item != "pipeline":
            return
        size, one = (
            self.number("batch_size", 128, 4),
            {"threads": self.threads == 1, "compile": self.compile == ("none",)},
        )
        one |= {"device": self.chosen_device == "cpu", "graph": not self.graph}
        one |= {name: len(getattr(self, name)) < 2 for name in ("precision", "memory_format")}
        for name in (name for name, fits in one.items() if not fits):
            raise ConfigError(
                f"{name}={getattr(self, name)!r} is not for pipeline, which runs on CPU cores, a thread a stage, uncompiled, in "
                "one precision and memory format; leave it out, or give one"
            )
        for k in self.num_modules:
            if not 1 < k <= 16:
                raise ConfigError(f"num_modules={k} is out of range; allowed 2..16")
            if self.rivals and size % k:
                raise ConfigError(
                    f"num_modules={k} processes of rivals cannot share batch_size={size}; allowed: what divides it, or --rivals "
                    "with nothing"
                )
        if any(length < 0 for length in self.propagation_length):
            raise ConfigError(f"propagation_length={self.propagation_length} is out of range; allowed 0 or more")

    @property
    def chosen_device(self) -> str:
        """Return the device."""
        automatic = "cuda" if torch.cuda.is_available() and self.item not in ("pipeline", "soak") else "cpu"
        return self.device or automatic

    @property
    def on_gpu(self) -> bool:
        """Return whether the device is a GPU."""
        return self.chosen_device.startswith("cuda")

    @property
    def engines(self) -> list[Engine]:
        """Return the engines to measure, every combination of the flags once."""
        precisions = self.precision or (("fp32", "tf32", "bf16") if self.on_gpu else ("fp32", "bf16"))
        compiles = ("none",) if self.item == "memory" else self.compile
        graphs = (False, True) if self.graph and self.item == "step" else (False,)
        found = product(precisions, self.memory_format, compiles, graphs)
        return list(dict.fromkeys(Engine(precision=p, memory_format=m, compile=c, graph=g) for p, m, c, g in found))

    def networks(self, *default: str) -> tuple[str, ...]:
        """Return the networks to measure: --network, else the defaults."""
        return (self.network,) if self.network else ("resnet8",) if self.smoke_test else default

    def number(self, name: str, default: int, smoke: int) -> int:
        """Return the value of a flag, else its default here."""
        return int(getattr(self, name)) or (smoke if self.smoke_test else default)

    @property
    def images_per_step(self) -> int:
        """Return the batch size of step, memory and data."""
        return self.number("batch_size", 512 if self.on_gpu else 128, 4)

    @property
    def turns(self) -> tuple[int, int]:
        """Return steps and rounds of step and data."""
        return self.number("steps", 20 if self.on_gpu else 1, 1), self.number("rounds", 5, 1)


def _step(bench: Bench) -> Iterator[Row]:
    for network in bench.networks("resnet32", "resnet110"):
        if any(engine.precision == "bf16" for engine in bench.engines):
            yield from convolution_rows(network, bench.chosen_device)
        yield from step_rows(network, bench.chosen_device, bench.images_per_step, bench.engines, *bench.turns)


def _memory(bench: Bench) -> Iterator[Row]:
    for network in bench.networks("resnet32", "resnet110"):
        yield from memory_rows(network, bench.chosen_device, bench.images_per_step, bench.engines)


def _data(bench: Bench) -> Iterator[Row]:
    (network,) = bench.networks("resnet32")
    return data_rows(network, bench.chosen_device, bench.images_per_step, bench.engines, *bench.turns)


def _correctness(bench: Bench) -> Iterator[Row]:
    (network,), device = bench.networks("resnet32"), bench.chosen_device
    return chain(
        gradient_errors(network, device), executor_differences(network, device, bench.number("batch_size", 128, 8))
    )


def _pipeline(bench: Bench) -> Iterator[Row]:
    how: dict[str, Any] = vars(bench.engines[0])
    size, steps, rounds = (bench.number(*n) for n in (("batch_size", 128, 4), ("steps", 40, 1), ("rounds", 5, 1)))
    settings = [Setting(*each) for each in product(bench.num_modules, bench.balance, bench.propagation_length)]
    for network in bench.networks("resnet32", "resnet110"):
        base = RunConfig(network=network, method="gll", head="conv", num_modules=2, batch_size=size, **how)
        yield from pipeline_rows(base, settings, bench.transport, bench.rivals, (steps, rounds))


def headline_cells(smoke: bool) -> list[RunConfig]:
    """Return the runs of headline at seed 0."""
    base = RunConfig(network="resnet32", dataset="cifar10", executor="local")
    if smoke:
        base = RunConfig(network="resnet14", executor="local", train_images=64, test_images=32, batch_size=16, epochs=1)
    plan = [("fc", 4, (0, 1, 2, 3, 4)), ("fc", 16, (0, 1)), ("conv", 4, (0, 4)), ("conv", 16, (0, 1))]
    plan = [("fc", 4, (0, 1)), ("conv", 4, (1,))] if smoke else plan
    baselines = [base.replace(method="bp", head=head) for head in ("fc", "conv")]
    return baselines + [_cell(base.replace(head=head), k, length) for head, k, lengths in plan for length in lengths]


def _cell(base: RunConfig, k: int, length: int) -> RunConfig:
    if not length:
        return base.replace(method="gll", num_modules=k)
    return base.replace(num_modules=k, propagation_length=length, alpha=default_alpha(length))


def _headline(bench: Bench) -> Iterator[Row]:
    for seed in range(bench.seeds):
        for cell in headline_cells(bench.smoke_test):
            config = cell.replace(seed=seed)
            data = dataset_of(config, data_root(bench.data_root))
            result = run(config, bench.output_dir / "runs" / config.run_id, dataset=data)
            kept = {name: value for name, value in result.items() if isinstance(value, (int, float, str))}
            yield {"cell": f"{config.head}/{config.run_name}", "paper": published_error_pct(config), **kept}


def _soak(bench: Bench) -> Iterator[Row]:
    return soak_rows(*((0.2, 4.0) if bench.smoke_test else (bench.minutes, 30.0)))


_ITEMS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "step": _step, "memory": _memory, "data": _data, "correctness": _correctness, "pipeline": _pipeline, "headline": _headline,
    "soak": _soak,
}  # fmt: skip

"""Bench: measurements on one machine, one item per call, written as rows that can be compared."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
import tyro

from backlink_ray.benchmarks.checks import executor_differences, gradient_errors
from backlink_ray.benchmarks.memory import memory_rows
from backlink_ray.benchmarks.rows import write_rows
from backlink_ray.benchmarks.runtime import overlap_rows
from backlink_ray.benchmarks.speed import speed_rows
from backlink_ray.commands.flags import check_device, not_negative
from backlink_ray.data.datasets import data_root
from backlink_ray.errors import ConfigError
from backlink_ray.paper.cells import published_error_pct
from backlink_ray.paper.recipes import default_alpha
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import dataset_of
from backlink_ray.runs.results import Row
from backlink_ray.runs.runner import run


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure on this machine; rows are appended to OUTPUT_DIR/ITEM.jsonl with date, versions and commit.

    correctness: float64 gradients on the device against the CPU, and executors against each other. memory: peak memory over
    K and l (paper, Fig. 7). speed: images/s beside a plain eager loop. overlap: BackLink with K = 2 as threads and as Ray
    actors beside BP on one core. headline: the best-known cells of Tables II and III at the full recipe, on CIFAR-10.
    """

    item: tyro.conf.Positional[Literal["correctness", "memory", "speed", "overlap", "headline"]]
    """What is measured."""
    smoke_test: bool = False
    """The same at a small size, in seconds, on any machine."""
    device: str = ""
    """cuda, cuda:1 or cpu; default: the GPU if there is one. overlap is measured on CPU cores."""
    network: str = ""
    """Network; default: resnet32, and resnet110 too for memory and speed."""
    batch_size: int = 0
    """Images per step; default: 512, and 128 for correctness and overlap."""
    steps: int = 0
    """Steps per round of speed and overlap; default 20 and 5."""
    rounds: int = 0
    """Rounds of speed and overlap, after one that is discarded; default 5 and 7."""
    seeds: int = 1
    """headline: seeds per cell."""
    data_root: str = ""
    """headline: folder of the data sets; default $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray."""
    output_dir: Path = Path("results/bench")
    """Folder that rows are appended in; the run folders of headline are below it."""

    def main(self) -> int:
        """Measure one item."""
        if self.chosen_device == "cpu" and self.item in ("memory", "speed", "headline") and not self.smoke_test:
            raise ConfigError(
                f"{self.item} at full size needs a GPU, which this machine lacks; give --smoke-test, or --device"
            )
        not_negative(self, "batch_size", "steps", "rounds")
        if self.seeds < 1:
            raise ConfigError(f"seeds={self.seeds} is out of range; allowed 1 or more")
        check_device(self.chosen_device)
        rows = _ITEMS[self.item](self)
        write_rows(rows, self.output_dir / f"{self.item}.jsonl", self.item, self.chosen_device)
        return 0

    @property
    def chosen_device(self) -> str:
        """Return the device."""
        automatic = "cuda" if torch.cuda.is_available() and self.item != "overlap" else "cpu"
        return self.device or automatic

    def networks(self, *default: str) -> tuple[str, ...]:
        """Return the networks to measure: --network, else the defaults."""
        return (self.network,) if self.network else ("resnet8",) if self.smoke_test else default

    def number(self, name: str, default: int, smoke: int) -> int:
        """Return the value of a flag, else its default here."""
        return int(getattr(self, name)) or (smoke if self.smoke_test else default)


def _correctness(bench: Bench) -> Iterator[Row]:
    (network,), device = bench.networks("resnet32"), bench.chosen_device
    return chain(
        gradient_errors(network, device), executor_differences(network, device, bench.number("batch_size", 128, 8))
    )


def _memory(bench: Bench) -> Iterator[Row]:
    size = bench.number("batch_size", 512, 8)
    return chain.from_iterable(
        memory_rows(network, bench.chosen_device, size) for network in bench.networks("resnet32", "resnet110")
    )


def _speed(bench: Bench) -> Iterator[Row]:
    size, steps, rounds = (bench.number(*n) for n in (("batch_size", 512, 8), ("steps", 20, 2), ("rounds", 5, 1)))
    for network in bench.networks("resnet32", "resnet110"):
        for precision in ("fp32",) if bench.chosen_device == "cpu" else ("fp32", "tf32"):
            with _precision(precision):
                for row in speed_rows(network, bench.chosen_device, size, steps, rounds):
                    yield {"precision": precision, **row}


@contextmanager
def _precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = name == "tf32"
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _overlap(bench: Bench) -> Iterator[Row]:
    (network,) = bench.networks("resnet32")
    size, steps, rounds = (bench.number(*n) for n in (("batch_size", 128, 8), ("steps", 5, 1), ("rounds", 7, 2)))
    return overlap_rows(network, size, steps, rounds)


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


_ITEMS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "correctness": _correctness, "memory": _memory, "speed": _speed, "overlap": _overlap, "headline": _headline,
}  # fmt: skip

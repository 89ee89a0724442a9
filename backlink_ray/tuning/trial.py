"""Trial: what a study's process does for one configuration, and what it reserves of the cluster for that."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.util.placement_group import get_current_placement_group

from backlink_ray.data.datasets import Dataset
from backlink_ray.pipeline.actors import Resources
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.runner import RunOptions, choose_executor, run
from backlink_ray.tuning.space import base_with


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The cluster as trials see it, and how many run at once (0: as many as fit)."""

    num_gpus: float
    num_cpus: float
    max_concurrent: int = 0
    cpus_per_stage: float = 0.2
    gpus_per_stage: float = 1.0

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return the configuration with its executor decided."""
        name, _ = choose_executor(config, self.num_gpus, self.num_cpus, self.gpus_per_stage)
        return config.replace(executor=name)

    def resources(self) -> Resources:
        """Return what one stage reserves."""
        return Resources(cpus=self.cpus_per_stage, gpus=self.gpus_per_stage if self.num_gpus else 0.0)

    def bundles(self, config: RunConfig) -> list[dict[str, float]]:
        """Return a trial's bundles: its own, and one for each stage where the stages are actors."""
        resolved = self.resolve(config)
        if resolved.executor == "ray":
            return self.resources().bundles(config.num_modules)
        return [{"CPU": 1.0} | ({"GPU": 1.0} if self.num_gpus else {})]

    def check(self, config: RunConfig) -> None:
        """Refuse a trial that can never be placed."""
        if self.resolve(config).executor == "ray":
            self.resources().check(config.num_modules, {"CPU": self.num_cpus, "GPU": self.num_gpus})


def cluster_places() -> Places:
    """Return what the connected Ray cluster has."""
    found = ray.cluster_resources()
    return Places(num_gpus=found.get("GPU", 0.0), num_cpus=found.get("CPU", 0.0))


# Data sets whose training images are chosen by the run's seed: runs of two seeds see two of them.
_CHOSEN_BY_SEED = ("cifar10-lt",)


def data_key(config: RunConfig) -> str:
    """Return a name that runs on the same images share."""
    return f"{config.dataset}-s{config.seed}" if config.dataset in _CHOSEN_BY_SEED else config.dataset


def choice_of(choice: dict[str, Any]) -> dict[str, Any]:
    """A grid's trial has its choice under "cell", a search's has it directly."""
    return dict(choice.get("cell", choice))


def request(choice: dict[str, Any], base: RunConfig, places: Places) -> PlacementGroupFactory:
    """Return a trial's placement group, whose size depends on K."""
    return PlacementGroupFactory(places.bundles(base_with(base, choice_of(choice))))


def trial(
    choice: dict[str, Any],
    base: RunConfig,
    places: Places,
    datasets: Mapping[str, "ray.ObjectRef[Dataset]"],
    runs: Path,
) -> None:
    """One trial, in a process of its own: bundle 0 of its placement group; stage k lives in bundle 1 + k.

    It fetches its own data set alone: `datasets` has them by `data_key`.
    """
    config = places.resolve(base_with(base, choice_of(choice)))
    reported: list[int] = []

    def report(metrics: dict[str, Any]) -> None:
        reported.append(metrics["epoch"])
        tune.report({**metrics, "run_id": config.run_id, "executor": config.executor})

    group = get_current_placement_group() if config.executor == "ray" else None
    dataset = ray.get(datasets[data_key(config)])
    result = run(config, dataset, RunOptions(
        output_dir=runs / config.run_id, placement_group=group, on_epoch=report,
        cpus_per_stage=places.cpus_per_stage, gpus_per_stage=places.gpus_per_stage,
    ))  # fmt: skip
    if not reported:  # the run had ended before its driver heard of it
        report(result["curve"][-1])

"""Trial: what a study's process does for one run, and what it reserves of the cluster for that."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.util.placement_group import get_current_placement_group

from backlink_ray.data.images import Dataset
from backlink_ray.runs.data import data_key
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.resources import ClusterResources


def trial_resources(choice: dict[str, Any], plan: Plan, cluster: ClusterResources) -> PlacementGroupFactory:
    """Return a trial's placement group, whose size depends on K."""
    return PlacementGroupFactory(cluster.bundles(plan.run_of(choice)))


def trial(
    choice: dict[str, Any],
    plan: Plan,
    cluster: ClusterResources,
    datasets: Mapping[str, "ray.ObjectRef[Dataset]"],
    runs: Path,
) -> None:
    """One trial, in a process of its own: bundle 0 of its placement group; stage k lives in bundle 1 + k.

    It fetches its own data set alone: `datasets` has them by `data_key`.
    """
    config = cluster.resolve(plan.run_of(choice))
    reported: list[int] = []

    def report(metrics: dict[str, Any]) -> None:
        reported.append(metrics["epoch"])
        tune.report({**metrics, "executor": config.executor})

    group = get_current_placement_group() if config.executor == "ray" else None
    options = RunOptions(
        output_dir=runs / config.run_id, placement_group=group, on_epoch=report, resources=cluster.stage
    )
    result = run(config, ray.get(datasets[data_key(config)]), options)
    if not reported:  # the run had ended before its driver heard of it
        report(result["curve"][-1])

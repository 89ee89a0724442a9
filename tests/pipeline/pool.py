"""Stage processes that are reused by many runs, since a process that imports torch takes seconds to start."""

from functools import cache

from ray.util.placement_group import placement_group

from backlink_ray.pipeline.pool import StagePool
from backlink_ray.pipeline.resources import StageResources

LARGEST = 4


@cache
def shared_pool() -> StagePool:
    """Return a pool with room for the largest pipeline, in hardly any of the cluster."""
    resources = StageResources(cpus_per_stage=0.01, gpus_per_stage=0)
    return StagePool(resources, placement_group([{"CPU": 0.01}] * (1 + LARGEST)))

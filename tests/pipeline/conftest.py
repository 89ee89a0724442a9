"""Executors of the pipeline over Ray, with actors started for the run or taken from a pool."""

from collections.abc import Callable

import pytest

from backlink_ray.train.executor import Executor, Job


@pytest.fixture
def ray_executor(ray_here: None) -> Callable[[Job], Executor]:
    from backlink_ray.pipeline.actors import RayExecutor

    return RayExecutor


@pytest.fixture
def pooled_executor(ray_executor: Callable[[Job], Executor]) -> Callable[[Job], Executor]:
    """RayExecutor with pooled processes, which take a new plan instead of being started and ended."""
    from tests.pipeline.pool import shared_pool

    return lambda job: ray_executor(job, shared_pool())

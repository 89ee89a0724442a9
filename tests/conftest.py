"""Shared by all tests: one torch thread (results are bit-equal only at equal numbers), and one private Ray a session."""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    import ray

    ray.init(address="local", include_dashboard=False, num_cpus=2, num_gpus=0, log_to_driver=False)
    yield
    ray.shutdown()

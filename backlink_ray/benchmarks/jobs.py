"""Jobs: what the benchmarks train: any configuration on random images, with the sizes that fit it. Needs only torch."""

from typing import Any

import torch

from backlink_ray.data.tensors import LabelledSet
from backlink_ray.local.engine import Engine
from backlink_ray.local.module import LocalModule
from backlink_ray.local.sizes import longest_propagation, module_sizes
from backlink_ray.nets.names import unit_count
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_method, build_modules, engine_of
from backlink_ray.train.executor import Job


def random_images(count: int) -> LabelledSet:
    """Return uint8 noise in the shape of CIFAR-10: time and memory do not depend on the content."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=g)
    return LabelledSet(inputs=pixels, labels=labels, mean=(0.5,) * 3, std=(0.25,) * 3)


def propagation_lengths(network: str, num_modules: int, longest: int = 4) -> range:
    """Return the propagation lengths l from 1 to `longest` that fit K local modules of a network; none at K = 1."""
    limit = longest_propagation(module_sizes(unit_count(network), num_modules)) if num_modules > 1 else 0
    return range(1, min(longest, limit) + 1)


def modules_of(config: RunConfig) -> list[LocalModule]:
    """Return the local modules of a configuration, on the CPU."""
    return build_modules(config, num_classes=10, image_size=32)[1]


def job_for(config: RunConfig, images: LabelledSet, *devices: str) -> Job:
    """Return a job that trains a configuration on the given images and devices."""
    return Job(
        modules=modules_of(config), method=build_method(config), train=images, evaluations={"test": images},
        batch_size=config.batch_size, lr=_lr, seed=config.seed, engine=engine_of(config), devices=devices,
        torch_threads=config.torch_threads, replicas=config.replicas, batch_norm=config.batch_norm,
    )  # fmt: skip


def with_engine(config: RunConfig, engine: Engine) -> RunConfig:
    """Return a run whose steps are computed as an engine says."""
    how: dict[str, Any] = vars(engine)
    return config.replace(**how)


def _lr(_step: int) -> float:
    return 0.01

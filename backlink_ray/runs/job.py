"""Job: the network, method and data of a configuration, ready for an executor."""

from dataclasses import replace

import torch

from backlink_ray.data.datasets import hold_out
from backlink_ray.data.loader import check_batch_size
from backlink_ray.data.tensors import Dataset
from backlink_ray.local.module import LocalModule
from backlink_ray.local.split import split
from backlink_ray.methods.base import Method
from backlink_ray.methods.catalogue import make_method
from backlink_ray.nets.build import build_network
from backlink_ray.nets.network import Network
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.options import RunOptions
from backlink_ray.train.executor import Job
from backlink_ray.train.optim import CosineSchedule, Sgd


def build_method(config: RunConfig) -> Method:
    """Return the method of a run with its options."""
    return make_method(config.method, config.base, vars(config))


def build_modules(config: RunConfig, num_classes: int, image_size: int) -> tuple[Network, list[LocalModule]]:
    """Return the network of a run, as it starts, and its local modules."""
    network = build_network(config.network, num_classes=num_classes, image_size=image_size, seed=config.seed)
    modules = split(network, config.num_modules, config.head, config.remainder, config.final_head, config.seed)
    return network, modules


def make_job(config: RunConfig, dataset: Dataset, options: RunOptions) -> Job:
    """Build network, split, method and data of a run."""
    dataset.check_seed(config.seed)
    _, modules = build_modules(config, dataset.num_classes, dataset.image_size)
    train, evaluations = dataset.train, {"test": dataset.test}
    if config.validation_fraction:
        train, evaluations["val"] = hold_out(dataset, config.validation_fraction, config.seed)
    check_batch_size(config.batch_size, len(train))
    steps = config.epochs * (len(train) // config.batch_size)
    return Job(
        modules=modules,
        method=build_method(config),
        train=train if config.augment else replace(train, augmentation=None),
        evaluations=evaluations,
        batch_size=config.batch_size,
        lr=CosineSchedule(config.lr, steps, config.warmup_fraction),
        optimizer=Sgd(momentum=config.momentum, weight_decay=config.weight_decay),
        seed=config.seed,
        devices=_devices(),
        torch_threads=config.torch_threads,
        stage_timeout_s=options.stage_timeout_s,
        timeline=bool(options.timeline),
    )


def _devices() -> tuple[str, ...]:
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",)

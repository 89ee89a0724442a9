"""Job: the network, method and data of a configuration, ready for an executor."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from backlink_ray.data.datasets import hold_out
from backlink_ray.data.loader import check_batch_size
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import ConfigError
from backlink_ray.importing import is_path, load
from backlink_ray.local.engine import Engine
from backlink_ray.local.module import LocalModule
from backlink_ray.local.split import split
from backlink_ray.methods.base import Method
from backlink_ray.methods.catalogue import make_method
from backlink_ray.nets.build import build_network
from backlink_ray.nets.network import Network
from backlink_ray.options import options_of
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.options import DEFAULT, RunOptions
from backlink_ray.train.executor import Job
from backlink_ray.train.optim import CosineSchedule, MakeOptimizer, Sgd


def build_method(config: RunConfig) -> Method:
    """Return the method of a run with its options."""
    return make_method(config.method, config.base, config.values)


def engine_of(config: RunConfig) -> Engine:
    """Return how the steps of a run are computed."""
    return Engine(**{name: getattr(config, name) for name in options_of(Engine)})


def build_modules(config: RunConfig, num_classes: int, image_size: int) -> tuple[Network, list[LocalModule]]:
    """Return the network of a run, as it starts, and its local modules; ConfigError if K, l or sizes do not fit it."""
    network = build_network(config.network, num_classes=num_classes, image_size=image_size, seed=config.seed)
    config.check_units(len(network.units))
    head = load(config.head, "head") if is_path(config.head) else config.head
    modules = split(
        network, config.num_modules, head, config.remainder, config.final_head, config.seed, sizes=config.sizes
    )
    return network, modules


def make_job(config: RunConfig, dataset: Dataset, options: RunOptions = DEFAULT, attempt: int = 0) -> Job:
    """Build network, split, method and data of a run; ConfigError if they do not fit together.

    Args:
        config: of the run.
        dataset: the data that it names.
        options: where the run runs.
        attempt: number of recoveries so far.
    """
    dataset.check_seed(config.seed)
    network, modules = build_modules(config, dataset.num_classes, dataset.image_size)
    # A loss of the user's may compare several outputs with each target: a distribution's parameters, logits of tokens.
    several = is_path(config.loss) and not dataset.train.has_classes and network.num_classes % dataset.num_classes == 0
    if network.num_classes != dataset.num_classes and not several:
        raise ConfigError(
            f"network={config.network!r} has {network.num_classes} outputs; dataset={config.dataset!r} needs "
            f"{dataset.num_classes}; build it with the num_classes that it is given"
        )
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
        loss=load(config.loss, "loss") if is_path(config.loss) else F.cross_entropy,
        optimizer=_optimizer(config),
        seed=config.seed,
        engine=engine_of(config),
        replicas=config.replicas,
        batch_norm=config.batch_norm,
        devices=tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",),
        torch_threads=config.torch_threads,
        stage_timeout_s=options.stage_timeout_s,
        timeline=bool(options.timeline),
        faults=options.faults,
        attempt=attempt,
        transport=options.transport,
    )


def _optimizer(config: RunConfig) -> MakeOptimizer:
    if is_path(config.optimizer):
        return partial(load(config.optimizer, "optimizer"), **config.optimizer_arguments)
    return Sgd(momentum=config.momentum, weight_decay=config.weight_decay)

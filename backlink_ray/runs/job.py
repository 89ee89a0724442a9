"""Jobs: the network, method and data that a configuration names, ready for an executor."""

from collections.abc import Callable

import torch

from backlink_ray.data.datasets import hold_out
from backlink_ray.data.images import Dataset
from backlink_ray.data.loader import check_batch_size
from backlink_ray.local.split import split
from backlink_ray.methods.backlink import BackLink
from backlink_ray.methods.backprop import BP
from backlink_ray.methods.base import Method
from backlink_ray.methods.ddg import DDG
from backlink_ray.methods.dgl import DGL
from backlink_ray.methods.dni import DNI
from backlink_ray.methods.greedy import GLL
from backlink_ray.methods.infopro import InfoPro
from backlink_ray.methods.predsim import PredSim
from backlink_ray.nets.build import build_network
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.options import RunOptions
from backlink_ray.train.executor import Job
from backlink_ray.train.optim import CosineSchedule, Recipe


def build_method(config: RunConfig, mean: tuple[float, ...] = (0.5,), std: tuple[float, ...] = (0.25,)) -> Method:
    """Return the method a run asks for, with its options; mean and std are the images' normalisation, per channel."""
    make = {
        "bp": BP,
        "gll": GLL,
        "dgl": lambda: DGL(mode=config.mode, buffer_size=config.buffer_size),
        "ddg": DDG,
        "backlink": lambda: _backlink(config, mean, std),
        "predsim": lambda: PredSim(beta=config.beta),
        "infopro": lambda: _infopro(config, mean, std),
        "dni": lambda: _dni(config),
    }
    methods: dict[str, Callable[[], Method]] = make
    return methods[config.method]()


def _backlink(config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Method:
    return BackLink(
        propagation_length=config.propagation_length,
        alpha=config.alpha,
        alpha_mode=config.alpha_mode,
        body_scale=config.body_scale,
        tail_memory=config.tail_memory,
        link=config.link,
        mode=config.mode,
        buffer_size=config.buffer_size,
        base=build_method(config.replace(method=config.base, mode="exact"), mean, std),
    )


def _infopro(config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Method:
    return InfoPro(
        lambda1=(config.lambda1_first, config.lambda1_last),
        lambda2=(config.lambda2_first, config.lambda2_last),
        mean=mean,
        std=std,
    )


def _dni(config: RunConfig) -> Method:
    return DNI(
        synthesizer_lr=config.synthesizer_lr,
        synthesizer_width=config.synthesizer_width,
        label_conditioning=config.label_conditioning,
    )


def make_job(config: RunConfig, dataset: Dataset, options: RunOptions) -> Job:
    """Build network, split, method and data of a run."""
    dataset.check_seed(config.seed)
    network = build_network(
        config.network, num_classes=dataset.num_classes, image_size=dataset.image_size, seed=config.seed
    )
    modules = split(
        network, config.num_modules, config.head, config.remainder, config.balance, config.final_head, config.seed
    )
    train, evaluations = dataset.train, {"test": dataset.test}
    if config.validation_fraction:
        train, evaluations["val"] = hold_out(dataset, config.validation_fraction, config.seed)
    check_batch_size(config.batch_size, len(train))
    steps = config.epochs * (len(train) // config.batch_size)
    return Job(
        modules=modules,
        method=build_method(config, dataset.mean, dataset.std),
        train=train,
        evaluations=evaluations,
        batch_size=config.batch_size,
        lr=CosineSchedule(config.lr, steps, config.warmup_fraction),
        mean=dataset.mean,
        std=dataset.std,
        augmentation=dataset.augmentation,
        augment=config.augment,
        recipe=Recipe(momentum=config.momentum, weight_decay=config.weight_decay),
        seed=config.seed,
        devices=_devices(),
        torch_threads=config.torch_threads,
        stage_timeout_s=options.stage_timeout_s,
        timeline=bool(options.timeline),
    )


def _devices() -> tuple[str, ...]:
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",)

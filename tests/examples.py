"""Small real things that tests share: a network of plain modules, and jobs on the embedded CIFAR-10 sample."""

from collections.abc import Mapping
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.data.datasets import load_dataset
from backlink_ray.data.tensors import Dataset
from backlink_ray.methods.base import Method
from backlink_ray.train.executor import Job
from backlink_ray.train.state import PARTS, TrainState


def tiny_network(units: int = 8, width: int = 6, classes: int = 10, dropout: float = 0.0, seed: int = 0) -> bl.Network:
    torch.manual_seed(seed)
    widths = [3] + [width] * units

    def unit(a: int, b: int) -> nn.Module:
        layers = [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.Tanh()]
        return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))

    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return bl.Network([unit(a, b) for a, b in pairwise(widths)], classifier, torch.zeros(1, 3, 32, 32), name="tiny")


@cache
def sample() -> Dataset:
    return load_dataset("cifar10-sample", train_images=96, test_images=40)


def job(
    method: Method, num_modules: int, head: str = "fc", batch_size: int = 16, dropout: float = 0.0, **options: object
) -> Job:
    return job_with(bl.split(tiny_network(dropout=dropout), num_modules, head=head), method, batch_size, **options)


def job_with(modules: list[bl.LocalModule], method: Method, batch_size: int, **options: object) -> Job:
    data = sample()
    return Job(
        modules=modules,
        method=method,
        train=data.train,
        evaluations={"test": data.test},
        batch_size=batch_size,
        lr=falling_lr,
        seed=3,
        **options,  # type: ignore[arg-type]
    )


def different(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that are not the same bit for bit, or that only one of the two has."""
    both = ours.keys() & theirs.keys()
    return [name for name in {**ours, **theirs} if name not in both or not torch.equal(ours[name], theirs[name])]


def different_states(ours: TrainState, theirs: TrainState) -> list[str]:
    return [name for part in PARTS for name in different(getattr(ours, part), getattr(theirs, part))]


def falling_lr(step: int) -> float:
    return 0.05 / (1 + step)


def batch(n: int = 8, classes: int = 10, size: int = 32, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, size, size, generator=g, dtype=torch.float64)
    return images, torch.randint(0, classes, (n,), generator=g)

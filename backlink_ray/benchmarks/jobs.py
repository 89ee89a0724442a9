"""Bench: correctness, memory and speed of training on one device, as rows that can be compared; needs torch alone."""

import torch

from backlink_ray.data.images import Augmentation, ImageSet
from backlink_ray.local.split import split
from backlink_ray.nets.build import build_network
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_method
from backlink_ray.train.executor import Job

NO_AUGMENTATION = Augmentation(pad=0, mode="constant", flip=False)


def random_images(count: int, size: int = 32, classes: int = 10, seed: int = 0) -> ImageSet:
    """Return uint8 noise of CIFAR's shape: for time and memory, where the content does not matter."""
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=g, dtype=torch.uint8)
    return ImageSet(pixels=pixels, labels=torch.randint(0, classes, (count,), generator=g))


def job_for(config: RunConfig, images: ImageSet, device: str) -> Job:
    """Return a job of one configuration on one device."""
    network = build_network(config.network, seed=config.seed)
    modules = split(network, config.num_modules, config.head, final_head=config.final_head, seed=config.seed)
    return Job(
        modules=modules, method=build_method(config), train=images, evaluations={"test": images},
        batch_size=config.batch_size, lr=_lr, mean=(0.5,) * 3, std=(0.25,) * 3, augmentation=NO_AUGMENTATION,
        augment=False, seed=config.seed, devices=(device,), torch_threads=config.torch_threads,
    )  # fmt: skip


def _lr(_step: int) -> float:
    return 0.01


def synchronise(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)

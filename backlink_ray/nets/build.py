"""Named networks, initialised so that a unit's weights depend on the seed and its index only."""

import torch
from torch import nn

from backlink_ray.environment import seeded
from backlink_ray.nets.network import Network
from backlink_ray.nets.resnet import WIDTHS, resnet_units


def build_network(name: str, *, num_classes: int = 10, image_size: int = 32, seed: int = 0) -> Network:
    """Return a named network for images (N, 3, image_size, image_size).

    Args:
        name: resnet<6n+2>, for example "resnet32" (16 units) or "resnet110" (55 units).
        num_classes: width of the logits.
        image_size: height and width in pixels; 32 for CIFAR and SVHN, 96 for STL-10.
        seed: of the initial weights.

    Raises:
        ConfigError: an unknown name.
    """
    units = resnet_units(name)
    classifier = PooledLinear(WIDTHS[-1], num_classes)
    for index, unit in enumerate(units):
        initialise(unit, seed, "unit", index)
    initialise(classifier, seed, "classifier", 0)
    return Network(units, classifier, torch.zeros(1, 3, image_size, image_size), name=name)


class PooledLinear(nn.Sequential):
    """Global average pool and one linear map: (N, C, H, W) to logits (N, classes)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def initialise(module: nn.Module, seed: int, purpose: str, index: int) -> None:
    """Set He fan-out normal convolutions, batch norm to ones and zeros, and torch's own start for linear maps."""
    with seeded(seed, f"init/{purpose}", index):
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, (nn.BatchNorm2d, nn.Linear)):
                part.reset_parameters()

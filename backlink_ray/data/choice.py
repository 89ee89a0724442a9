"""Choice: a seeded choice of images from each class."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from backlink_ray.errors import ConfigError
from backlink_ray.seeds import derive_seed

LONG_TAIL_RATIO = 1.3


def choose(labels: Tensor, counts: Sequence[int], seed: int, purpose: str) -> Tensor:
    """Choose images class by class, with a separate generator for each class.

    Args:
        labels: int64 (N,), in 0..len(counts)-1.
        counts: images to choose from each class.
        purpose: makes choices under the same seed independent.

    Returns:
        int64 (sum of counts,): sorted indices into labels, which keep the file order.

    Raises:
        ConfigError: a class has fewer images than requested.
    """
    chosen = []
    for label, count in enumerate(counts):
        of_class = (labels == label).nonzero().flatten()
        if not 0 <= count <= len(of_class):
            raise ConfigError(f"{count} images of class {label} requested; allowed 0..{len(of_class)}")
        generator = torch.Generator().manual_seed(derive_seed(seed, purpose, label))
        chosen.append(of_class[torch.randperm(len(of_class), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def hold_out_indices(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the sorted indices of the examples to keep and of those to hold out, each int64.

    Args:
        labels: classes (N,), of each of which a part is held out, or floating-point targets (N, D), of all together.
        fraction: of every class, 0..0.5, rounded up to whole examples.
    """
    classes = torch.zeros(len(labels), dtype=torch.int64) if labels.is_floating_point() else labels
    counts = [math.ceil(fraction * int(count) - 1e-9) for count in classes.bincount()]
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[choose(classes, counts, seed, "hold_out")] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def long_tail_counts(largest: int, num_classes: int) -> list[int]:
    """Return floor(largest / 1.3^i) for class i: the long-tailed distribution of section IV.C, Fig. 6a.

    Args:
        largest: images of class 0: 5000 in CIFAR-10.
    """
    return [math.floor(largest / LONG_TAIL_RATIO**i) for i in range(num_classes)]

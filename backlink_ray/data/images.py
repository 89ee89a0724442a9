"""Images: a data set as it is held in memory."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from backlink_ray.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Random crop after padding by `pad` pixels ("reflect" or "constant"), and a random horizontal flip if `flip`."""

    pad: int
    mode: str
    flip: bool

    def __post_init__(self) -> None:
        if self.mode not in ("reflect", "constant") or self.pad < 0:
            raise ConfigError(f"pad={self.pad}, mode={self.mode!r}; allowed: pad 0 or more, mode reflect or constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Images and their labels.

    Attributes:
        pixels: uint8 (N, C, H, W), or (0, C, H, W) on a stage that needs only labels.
        labels: int64 (N,).
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int, field: str) -> "ImageSet":
        """Return the first `count` images (0: all); ConfigError names `field` if there are fewer."""
        if not 0 <= count <= len(self):
            raise ConfigError(
                f"{field}={count} is out of range for a set of {len(self)} images; allowed 0 (all)..{len(self)}"
            )
        return self.take(torch.arange(count or len(self)))

    def take(self, indices: Tensor) -> "ImageSet":
        """Return the images at `indices` (int64)."""
        return ImageSet(pixels=self.pixels[indices], labels=self.labels[indices])

    def without_pixels(self) -> "ImageSet":
        """Return the labels alone."""
        return ImageSet(pixels=self.pixels[:0].clone(), labels=self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A training and a test set with their common properties.

    Attributes:
        mean, std: per channel in [0, 1], of the full training set that the images come from.
        digest: first 16 hexadecimal digits of the sha256 over all pixels and labels in use.
        seed: that chose the training images; -1 if none were left out.
    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    image_size: int
    augmentation: Augmentation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str = ""
    seed: int = -1

    @property
    def num_classes(self) -> int:
        """Return C, the number of classes."""
        return len(self.class_names)

    @property
    def train_counts(self) -> list[int]:
        """Return the number of training images of each class."""
        return [int(count) for count in self.train.labels.bincount(minlength=self.num_classes)]

    def check_seed(self, seed: int) -> None:
        """Refuse a run whose seed did not choose these images: its result could not be reproduced from its configuration."""
        if self.seed not in (-1, seed):
            raise ConfigError(
                f"seed={seed}, but the training images of {self.name} here were chosen by seed {self.seed}; "
                f"load them with load_dataset({self.name!r}, ..., seed={seed})"
            )


def digest(*sets: ImageSet) -> str:
    """Return the first 16 hexadecimal digits of the sha256 over all pixels and labels, in order."""
    total = hashlib.sha256()
    for images in sets:
        total.update(images.pixels.numpy().tobytes() + images.labels.numpy().tobytes())
    return total.hexdigest()[:16]

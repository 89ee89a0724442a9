"""Batches: training images and labels that every process can draw on its own, without communication."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from backlink_ray.data.images import Augmentation, ImageSet
from backlink_ray.errors import ConfigError
from backlink_ray.seeds import derive_seed


class Batches:
    """Training batches of one image set, for any number of epochs.

    The whole set is kept on `device` as uint8. Order, crops and flips follow from (seed, epoch, step) and are drawn on the
    CPU, so that they are the same on every device and in every process.

    Args:
        images: the training set; without pixels in a process that needs only labels.
        batch_size: B in 1..len(images); the incomplete batch at the end of an epoch is dropped.
        seed: the run's.
        augmentation: crop and flip, drawn per image.
        mean, std: per channel, in [0, 1].
        device: of the batches.
        augment: False leaves the images as they are.

    Raises:
        ConfigError: a batch larger than the set, or padding as large as the images.
    """

    def __init__(
        self, images: ImageSet, batch_size: int, *, seed: int, augmentation: Augmentation,
        mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu", augment: bool = True,
    ) -> None:  # fmt: skip
        check_batch_size(batch_size, len(images))
        if augment and images.pixels.shape[0] and augmentation.pad >= min(images.pixels.shape[2:]):
            raise ConfigError(
                f"pad={augmentation.pad} is too large for the images; allowed 0..{min(images.pixels.shape[2:]) - 1}"
            )
        self._batch_size, self._seed, self._device = batch_size, seed, torch.device(device)
        self._pixels, self._labels = images.pixels.to(device), images.labels.to(device)
        self._augmentation, self._augment = augmentation, augment
        self._mean, self._std = (torch.tensor(v).view(1, -1, 1, 1).to(device) for v in (mean, std))
        self.steps_per_epoch = len(images) // batch_size
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def labels(self, step: int) -> Tensor:
        """Return labels int64 (B,) of the global step."""
        return self._labels[self._indices(step)]

    def images(self, step: int) -> Tensor:
        """Return images float32 (B, C, H, W) of the global step, augmented and normalised."""
        pixels = self._pixels[self._indices(step)]
        if self._augment:
            generator = torch.Generator().manual_seed(
                derive_seed(self._seed, "augment", *divmod(step, self.steps_per_epoch))
            )
            pixels = augment(pixels, self._augmentation, generator)
        return normalise(pixels, self._mean, self._std)

    def _indices(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
            self._order = (epoch, torch.randperm(len(self._labels), generator=generator).to(self._device))
        return self._order[1][position * self._batch_size : (position + 1) * self._batch_size]


def check_batch_size(batch_size: int, images: int) -> None:
    """Raise ConfigError unless the training images fill at least one batch."""
    if not 1 <= batch_size <= images:
        raise ConfigError(f"batch_size={batch_size} does not fit {images} training images; allowed 1..{images}")


def augment(pixels: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Crop and flip every image independently, in a single gather.

    Args:
        pixels: uint8 (B, C, H, W).
        augmentation: padding and flip.
        generator: on the CPU.

    Returns:
        uint8 (B, C, H, W).
    """
    count, channels, height, width = pixels.shape
    pad = augmentation.pad
    offsets = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    flips = torch.rand(count, generator=generator) < (0.5 if augmentation.flip else 0.0)
    rows = offsets[0, :, None] + torch.arange(height)
    forward = torch.arange(width).expand(count, width)
    columns = offsets[1, :, None] + torch.where(flips[:, None], forward.flip(1), forward)
    rows, columns = _unpad(rows - pad, height, augmentation.mode), _unpad(columns - pad, width, augmentation.mode)
    padded = F.pad(pixels, (0, 1, 0, 1))  # index H or W reads a zero
    index = (rows[:, :, None] * (width + 1) + columns[:, None, :]).view(count, 1, -1).to(pixels.device)
    return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view(count, channels, height, width)


def _unpad(index: Tensor, size: int, mode: str) -> Tensor:
    """Map indices of the padded image to indices of the image: mirrored, or `size` where the padding is zero."""
    if mode == "reflect":
        return (size - 1) - ((size - 1) - index.abs()).abs()
    return torch.where((index < 0) | (index >= size), size, index)


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (pixels / 255 - mean) / std as float32; mean and std (1, C, 1, 1)."""
    return pixels.float().div_(255).sub_(mean).div_(std)


def evaluation_batches(
    images: ImageSet, batch_size: int, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images float32 (B, C, H, W), labels int64 (B,)) in file order, without augmentation; the last batch may be smaller.

    Images are empty, (0, C, H, W), where the set has no pixels.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} is out of range; allowed 1 or more")
    mean_, std_ = (torch.tensor(v).view(1, -1, 1, 1).to(device) for v in (mean, std))
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        yield normalise(images.pixels[part].to(device), mean_, std_), images.labels[part].to(device)

"""Augmentation: random crops and flips of a batch of images, drawn for every image."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ConfigError unless images of this shape, (N, C, H, W), can be cropped like that."""
        if len(shape) != 4:
            raise ConfigError(f"augmentation={self} is for images (N, C, H, W), not for inputs of shape {tuple(shape)}")
        if self.pad >= min(shape[2:]):
            raise ConfigError(f"pad={self.pad} is too large for the images; allowed 0..{min(shape[2:]) - 1}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip every image independently, in a single gather.

        Args:
            images: (B, C, H, W).
            generator: on the CPU, so that the same is drawn on every device.

        Returns:
            (B, C, H, W), of the images' type.
        """
        count, channels, height, width = images.shape
        top, left, flips = self._draw(count, generator, images.device)
        rows = top + torch.arange(height, device=images.device)
        forward = torch.arange(width, device=images.device)
        columns = left + torch.where(flips > 0, forward.flip(0), forward)
        rows, columns = _unpad(rows - self.pad, height, self.mode), _unpad(columns - self.pad, width, self.mode)
        padded = F.pad(images, (0, 1, 0, 1))  # index H or W reads a zero
        index = (rows[:, :, None] * (width + 1) + columns[:, None, :]).view(count, 1, -1)
        return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view(count, channels, height, width)

    def _draw(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Return int64 (3, B, 1) on `device`: each crop's first row and column, and whether it is flipped."""
        offsets = torch.randint(0, 2 * self.pad + 1, (2, count), generator=generator)
        flips = torch.rand(count, generator=generator) < (0.5 if self.flip else 0.0)
        drawn = torch.stack([*offsets, flips.long()])[:, :, None]
        # From pinned memory, the copy does not wait for what the GPU still computes.
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


def _unpad(index: Tensor, size: int, mode: str) -> Tensor:
    """Map indices of the padded image to indices of the image: mirrored, or `size` where the padding is zero."""
    if mode == "reflect":
        return (size - 1) - ((size - 1) - index.abs()).abs()
    return torch.where((index < 0) | (index >= size), size, index)

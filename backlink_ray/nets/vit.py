"""A small vision transformer; its units are the patch embedding and the encoder blocks."""

import torch
from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.nets.names import unit_count

WIDTH, ATTENTION_HEADS, MLP_WIDTH = 192, 3, 384
PATCHES_PER_SIDE = 8


def vit_units(name: str, image_size: int) -> list[nn.Module]:
    """Return the 1 + d units of vit<d>: 8 x 8 patches to tokens (N, 64, 192), then d encoder blocks.

    Raises:
        ConfigError: image_size is no multiple of 8.
    """
    if image_size % PATCHES_PER_SIDE:
        raise ConfigError(f"image_size={image_size} does not fit {name}; allowed: multiples of {PATCHES_PER_SIDE}")
    blocks = [EncoderBlock() for _ in range(unit_count(name) - 1)]
    return [PatchEmbedding(image_size // PATCHES_PER_SIDE), *blocks]


class PatchEmbedding(nn.Module):
    """Maps each patch linearly and adds a learned position: (N, 3, H, W) to (N, 64, 192)."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, patch_size, stride=patch_size)
        self.places = nn.Parameter(torch.zeros(1, PATCHES_PER_SIDE**2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2) + self.places  # type: ignore[no-any-return]


class EncoderBlock(nn.TransformerEncoderLayer):
    """Self-attention and a two-layer perceptron, each preceded by a layer norm and with a shortcut; no dropout."""

    def __init__(self) -> None:
        super().__init__(
            WIDTH, ATTENTION_HEADS, MLP_WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )


def vit_classifier(num_classes: int) -> nn.Module:
    """Return layer norm - mean over tokens - linear: (N, 64, 192) to logits (N, classes)."""
    return nn.Sequential(nn.LayerNorm(WIDTH), TokenMean(), nn.Linear(WIDTH, num_classes))


class TokenMean(nn.Module):
    """Mean over tokens: (N, T, C) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.mean(x, dim=1)

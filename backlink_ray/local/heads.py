"""Heads: the classifiers that give every local module its own loss."""

import math
from collections.abc import Callable

from torch import nn

from backlink_ray.errors import ConfigError
from backlink_ray.nets.build import PixelMean, PooledLinear, initialise
from backlink_ray.nets.network import Network, dtype_and_device
from backlink_ray.nets.resnet import conv3x3
from backlink_ray.nets.vit import TokenMean
from backlink_ray.seeds import seeded

# Called with the shape of the features, without batch, and the number of classes.
MakeHead = Callable[[tuple[int, ...], int], nn.Module]


def build_head(family: str | MakeHead, network: Network, unit_index: int, seed: int = 0) -> nn.Module:
    """Return a new head for the output of unit `unit_index`, in its type (a callable's: the network's) and on its device.

    Its initial weights follow from the seed and unit_index, global; a callable's head keeps those that it is built with.

    Raises:
        ConfigError: a conv or mlp-sr head on features without height and width, or a callable that returns no module.
    """
    shapes = [fact.shape for fact in network.facts]
    maps = [shape for shape in shapes if len(shape) == 3]
    if isinstance(family, str):
        head = HEADS[family](shapes[unit_index], maps[-1] if maps else shapes[-1], network.num_classes)
        initialise(head, seed, "head", unit_index)
        return head.to(network.features(unit_index))  # its type and device
    with seeded(seed, "init/head", unit_index):
        head = family(shapes[unit_index], network.num_classes)
    if not isinstance(head, nn.Module):
        raise ConfigError(f"head returns a {type(head).__name__} for {shapes[unit_index]}; allowed: a torch.nn.Module")
    dtype, device = dtype_and_device(network)
    return head.to(dtype=dtype, device=device)


def fc_head(shape: tuple[int, ...], _last: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return pool + linear for (C, H, W), mean over tokens + linear for (T, C), linear for (C,)."""
    if len(shape) == 3:
        return PooledLinear(shape[0], num_classes)
    if len(shape) == 2:
        return nn.Sequential(TokenMean(), nn.Linear(shape[1], num_classes))
    return nn.Linear(shape[0], num_classes)


def conv_head(shape: tuple[int, ...], last: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return conv3x3 - batch norm - ReLU - pool - linear 128 - ReLU - dropout 0.5 - linear.

    The convolution doubles the width with stride 2; where the features are as wide as the network's last feature maps, it
    keeps width and size: for the ResNets 16 to 32, 32 to 64, 64 to 64.
    """
    if len(shape) != 3:
        raise ConfigError(f"head='conv' needs features (C, H, W), got {shape}; allowed here: fc, pool")
    width, stride = (shape[0], 1) if shape[0] == last[0] else (2 * shape[0], 2)
    return nn.Sequential(
        conv3x3(shape[0], width, stride),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        PixelMean(),
        nn.Flatten(),
        nn.Linear(width, 128),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )


def pool_head(shape: tuple[int, ...], _last: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return PredSim's predictor: average pool to at most 512 features, linear; without height and width, the fc head."""
    if len(shape) != 3:
        return fc_head(shape, shape, num_classes)
    side = max(1, min(shape[1], math.isqrt(POOLED_FEATURES // shape[0])))
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(shape[0] * side**2, num_classes))


def mlp_sr_head(shape: tuple[int, ...], _last: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return DGL's head: pool to H/4 - 3 x (conv1x1 - batch norm - ReLU) - pool to 2 x 2 - two linear maps with ReLU, linear.

    Source: Belilovsky et al. (2020), the auxiliary network "MLP-SR-aux".
    """
    if len(shape) != 3:
        raise ConfigError(f"head='mlp-sr' needs features (C, H, W), got {shape}; allowed here: fc, pool")
    width = shape[0]
    convolutions = [layer for _ in range(3) for layer in _conv1x1(width)]
    return nn.Sequential(
        nn.AdaptiveAvgPool2d((math.ceil(shape[1] / 4), math.ceil(shape[2] / 4))),
        *convolutions,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        *(nn.Linear(4 * width, 4 * width), nn.ReLU(inplace=True)),
        *(nn.Linear(4 * width, 4 * width), nn.ReLU(inplace=True)),
        nn.Linear(4 * width, num_classes),
    )


def _conv1x1(width: int) -> list[nn.Module]:
    return [nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


POOLED_FEATURES = 512
HEADS: dict[str, Callable[[tuple[int, ...], tuple[int, ...], int], nn.Module]] = {
    "fc": fc_head,
    "conv": conv_head,
    "pool": pool_head,
    "mlp-sr": mlp_sr_head,
}

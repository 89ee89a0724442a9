"""Networks by name: built in, with weights that depend only on the seed and a unit's index, or by an import path."""

import torch
from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.importing import call, is_path
from backlink_ray.nets.names import unit_count
from backlink_ray.nets.network import Network
from backlink_ray.nets.plain import CONVOLUTIONS, plain_units
from backlink_ray.nets.resnet import WIDTHS, resnet_units
from backlink_ray.nets.vit import vit_classifier, vit_units
from backlink_ray.options import POSITIVE, Option
from backlink_ray.seeds import SEED, seeded

_IMAGE_SIZE = Option(
    default=1, low=1, allowed="1 or more; 0 means data that are no square images: use a network of your own"
)


def build_network(name: str, *, num_classes: int = 10, image_size: int = 32, seed: int = 0) -> Network:
    """Return a network: a built-in one for images (N, 3, image_size, image_size), or the user's own.

    Args:
        name: resnet<6n+2> ("resnet32": 16 units, "resnet110": 55), "alexnet" (8), "vgg16" (16), vit<depth> (depth + 1), or the
            import path of a function (num_classes, image_size, seed) -> Network, called with torch seeded by the seed.
        num_classes: width of the logits.
        image_size: height and width in pixels; 32 for CIFAR and SVHN, 96 for STL-10.
        seed: of the initial weights.

    Raises:
        ConfigError: an unknown name, images too small for it, or an argument out of range.
    """
    if is_path(name):
        return _own_network(name, num_classes, image_size, seed)
    unit_count(name)
    num_classes, image_size = POSITIVE.read("num_classes", num_classes), _IMAGE_SIZE.read("image_size", image_size)
    seed = SEED.read("seed", seed)
    with seeded(seed, "init/network"):
        units, classifier = _parts(name, num_classes, image_size)
    for index, unit in enumerate(units):
        initialise(unit, seed, "unit", index)
    initialise(classifier, seed, "classifier", 0)
    return Network(units, classifier, torch.zeros(1, 3, image_size, image_size), name=name)


def _own_network(path: str, num_classes: int, image_size: int, seed: int) -> Network:
    with seeded(seed, "init/network"):
        found = call(path, "network", num_classes=num_classes, image_size=image_size, seed=seed)
    if not isinstance(found, Network):
        raise ConfigError(f"network={path!r} returns a {type(found).__name__}; allowed: a backlink_ray.Network")
    return found


def _parts(name: str, num_classes: int, image_size: int) -> tuple[list[nn.Module], nn.Module]:
    if name in CONVOLUTIONS:
        return plain_units(name, num_classes, image_size), nn.Identity()
    if name.startswith("vit"):
        return vit_units(name, image_size), vit_classifier(num_classes)
    return resnet_units(name), PooledLinear(WIDTHS[-1], num_classes)


class PixelMean(nn.Module):
    """Mean over height and width: (N, C, H, W) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous(memory_format=torch.channels_last):
            return x.mean(dim=(2, 3))
        return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)  # so that the gradient is channels_last, too


class PooledLinear(nn.Sequential):
    """Global average pool and one linear map: (N, C, H, W) to logits (N, classes)."""

    def __init__(self, width: int, num_classes: int) -> None:
        # Flatten does nothing here, but has its place in the names of weights.
        super().__init__(PixelMean(), nn.Flatten(), nn.Linear(width, num_classes))


def initialise(module: nn.Module, seed: int, purpose: str, index: int) -> None:
    """Initialise convolutions with He's normal (fan-out), and everything else with torch's defaults."""
    # MultiheadAttention initialises its output map differently from a plain linear map.
    of_attention = {part.out_proj for part in module.modules() if isinstance(part, nn.MultiheadAttention)}
    with seeded(seed, f"init/{purpose}", index):
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.MultiheadAttention):
                part._reset_parameters()
            elif isinstance(part, (nn.BatchNorm2d, nn.LayerNorm, nn.Linear)) and part not in of_attention:
                part.reset_parameters()

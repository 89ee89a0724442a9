"""AlexNet and VGG16 for small images; a unit is a convolution with all that follows it, or a linear map."""

from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.nets.resnet import conv3x3

POOL = "pool"
# Widths of the 3x3 convolutions; "pool" halves height and width and belongs to the preceding convolution.
CONVOLUTIONS: dict[str, tuple[int | str, ...]] = {
    "alexnet": (64, POOL, 192, POOL, 384, 256, 256, POOL),
    "vgg16": (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512, POOL),
}
LINEAR_WIDTH = 4096
DROPOUT = 0.5


def plain_units(name: str, num_classes: int, image_size: int) -> list[nn.Module]:
    """Return the units of "alexnet" (5 convolutions and 3 linear maps) or "vgg16" (configuration D: 13 and 3).

    The last unit returns the logits (N, classes), so these networks have no classifier after it. Convolutions are 3x3 with
    padding 1 and without bias, followed by batch norm and ReLU; the two wide linear maps by ReLU and dropout 0.5.
    Source: paper, section IV.A, Table I.

    Args:
        name: "alexnet" or "vgg16".
        num_classes: width of the last unit.
        image_size: height and width in pixels, 8 or more for alexnet and 32 or more for vgg16.

    Raises:
        ConfigError: a smaller image, of which the pools would leave no pixel.
    """
    smallest = 2 ** CONVOLUTIONS[name].count(POOL)
    if image_size < smallest:
        raise ConfigError(f"image_size={image_size} is too small for {name}; allowed: {smallest} or more")
    units: list[nn.Module] = []
    width, size = 3, image_size
    widths = CONVOLUTIONS[name]
    for i, next_width in enumerate(widths):
        if isinstance(next_width, str):
            continue
        pools = i + 1 < len(widths) and widths[i + 1] == POOL
        units.append(ConvUnit(width, next_width, pools))
        width, size = next_width, size // 2 if pools else size
    flat = width * size * size
    return [*units, LinearUnit(flat), LinearUnit(LINEAR_WIDTH), nn.Linear(LINEAR_WIDTH, num_classes)]


class ConvUnit(nn.Module):
    """conv3x3 - batch norm - ReLU, and with `pools` a 2x2 max pool."""

    def __init__(self, width_in: int, width_out: int, pools: bool) -> None:
        super().__init__()
        self.conv = conv3x3(width_in, width_out)
        self.bn = nn.BatchNorm2d(width_out)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2) if pools else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width_out, H, W), or half of H and W."""
        return self.pool(self.relu(self.bn(self.conv(x))))  # type: ignore[no-any-return]


class LinearUnit(nn.Module):
    """Flatten - linear 4096 - ReLU - dropout 0.5."""

    def __init__(self, width_in: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, LINEAR_WIDTH)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, ...) to (N, 4096)."""
        return self.dropout(self.relu(self.linear(x.flatten(1))))  # type: ignore[no-any-return]

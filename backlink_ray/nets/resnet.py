"""ResNet-(6n+2) of He et al. (2016) for small images: a stem and 3n residual blocks, each a unit."""

from torch import Tensor, nn

from backlink_ray.nets.names import unit_count

WIDTHS = (16, 32, 64)


def resnet_units(name: str) -> list[nn.Module]:
    """Return the 3n + 1 units of resnet<6n+2>: stem, then n residual blocks each of width 16, 32 and 64.

    The first blocks of the second and third groups halve height and width. Source: paper, section IV.A.
    """
    blocks_per_group = (unit_count(name) - 1) // 3
    units: list[nn.Module] = [Stem(WIDTHS[0])]
    width = WIDTHS[0]
    for group, next_width in enumerate(WIDTHS):
        for i in range(blocks_per_group):
            units.append(ResidualBlock(width, next_width, stride=2 if group and not i else 1))
            width = next_width
    return units


class Stem(nn.Module):
    """conv3x3 - batch norm - ReLU: images (N, 3, H, W) to (N, width, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv3x3(3, width)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two conv3x3 with batch norm, and a shortcut: conv1x1 with batch norm if the shape changes, else the identity."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(width_in, width_out, stride)
        self.bn1 = nn.BatchNorm2d(width_out)
        self.conv2 = conv3x3(width_out, width_out)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.relu = nn.ReLU(inplace=True)
        same = width_in == width_out and stride == 1
        self.shortcut = nn.Identity() if same else _projection(width_in, width_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width_out, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        # not in place: x may be another local module's output
        return self.relu(self.bn2(self.conv2(y)).add_(self.shortcut(x)))  # type: ignore[no-any-return]


def conv3x3(width_in: int, width_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution, padding 1, no bias."""
    return nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)


def _projection(width_in: int, width_out: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out))

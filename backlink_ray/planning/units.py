"""Units: a network cut into modules of one unit each, also where no module could end because a head does not fit."""

from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.local.heads import MakeHead, build_head
from backlink_ray.local.module import LocalModule
from backlink_ray.local.split import split
from backlink_ray.nets.network import Network


class NoHead(nn.Module):
    """Stands for the head that does not fit the features of a unit, so no module can end there."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self._num_classes = num_classes

    def forward(self, features: Tensor) -> Tensor:
        """Return zeros (N, classes)."""
        return features.new_zeros(len(features), self._num_classes)


def unit_modules(network: Network, head: str | MakeHead, final_head: str = "auto") -> list[LocalModule]:
    """Return a module for each unit, with a `NoHead` where the head does not fit; arguments as of `split`.

    Raises:
        ConfigError: it fits no unit but the last.
    """
    number = len(network.units)
    try:
        return split(network, number, head, final_head=final_head)
    except ConfigError as error:
        unfit, index = error, iter(range(number))

    def fitting(_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        try:
            return build_head(head, network, next(index))
        except ConfigError:
            return NoHead(num_classes)

    modules = split(network, number, fitting)
    if all(isinstance(module.head, NoHead) for module in modules[:-1]):
        raise unfit
    return modules

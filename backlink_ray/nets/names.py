"""Names of the built-in networks, and how many units each has."""

import re

from backlink_ray.errors import ConfigError

NETWORKS = "alexnet, vgg16, vit<depth> (vit1 to vit99), resnet<6n+2> (resnet8, resnet14, ..., resnet32, ..., resnet110)"
_UNITS = {"alexnet": 8, "vgg16": 16}


def unit_count(network: str) -> int:
    """Return the number of units of a built-in network, for example 3n + 1 for resnet<6n+2> (stem and 3n residual blocks)."""
    if network in _UNITS:
        return _UNITS[network]
    if match := re.fullmatch(r"vit([1-9]\d?)", network):
        return 1 + int(match[1])
    match = re.fullmatch(r"resnet([1-9]\d{0,3})", network)
    if not match or (int(match[1]) - 2) % 6 or int(match[1]) < 8:
        raise ConfigError(f"network={network!r} is not known; allowed: {NETWORKS}")
    return (int(match[1]) - 2) // 2 + 1

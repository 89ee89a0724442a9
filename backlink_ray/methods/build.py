"""Methods by name."""

from collections.abc import Callable

from backlink_ray.config import RunConfig
from backlink_ray.methods.backlink import BackLink
from backlink_ray.methods.backprop import BP
from backlink_ray.methods.base import Method
from backlink_ray.methods.greedy import GLL


def build_method(config: RunConfig) -> Method:
    """Return the method a run asks for, with its options."""
    return METHODS[config.method](config)


def _backlink(config: RunConfig) -> Method:
    return BackLink(
        propagation_length=config.propagation_length,
        alpha=config.alpha,
        alpha_mode=config.alpha_mode,
        body_scale=config.body_scale,
        tail_memory=config.tail_memory,
    )


METHODS: dict[str, Callable[[RunConfig], Method]] = {
    "bp": lambda _: BP(),
    "gll": lambda _: GLL(),
    "backlink": _backlink,
}

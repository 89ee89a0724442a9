"""Parameters: what must hold for them before training starts."""

from collections.abc import Sequence

from backlink_ray.errors import ConfigError
from backlink_ray.local.module import LocalModule


def check_parameters(modules: Sequence[LocalModule]) -> None:
    """Raise ConfigError if all parameters are frozen, or one has a hook: gradients are mixed after it, and copies lose it."""
    named = [pair for module in modules for pair in module.named()]
    if not any(parameter.requires_grad for _, parameter in named):
        raise ConfigError(
            "every parameter is frozen, so nothing would be trained; allowed: requires_grad for one or more"
        )
    for name, parameter in named:
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise ConfigError(
                f"{name} has a hook (Tensor.register_hook), which no copy of it has; remove it, and change gradients in a "
                "method of your own"
            )

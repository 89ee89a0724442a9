"""TrainState: what a run continues from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from backlink_ray.errors import ConfigError
from backlink_ray.local.module import LocalModule
from backlink_ray.local.weights import check_weights, state_of

PARTS = ("weights", "optimizer", "method_state")


@dataclass(frozen=True, slots=True)
class TrainState:
    """Everything needed to continue a run: tensors by name, and the number of steps taken.

    Random draws need no state: they follow from the seed and the step. The replay buffers of mode async are part of it only in
    executor local; elsewhere timing decides its result anyway, and such a run continues with empty ones.

    Attributes:
        weights: parameters and buffers.
        optimizer: state of the optimizers, see `Updater.state`.
        step: number of steps taken.
        method_state: what methods with late errors carry from one step to the next.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    step: int
    method_state: dict[str, Tensor] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Return one dict of tensors and numbers: weights by their names, the rest as "<attribute>/<name>", and "step"."""
        rest = {f"{part}/{name}": value for part in PARTS[1:] for name, value in getattr(self, part).items()}
        return {**self.weights, **rest, "step": self.step}

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> "TrainState":
        """Return the state that `flat()` returned; ConfigError if there is no step."""
        if "step" not in flat:
            raise ConfigError(f"state={list(flat)[:3]}... has no step; give what Trainer.state_dict() returned")
        parts: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for name, value in flat.items():
            part, _, rest = name.partition("/")
            parts[part if part in parts else "weights"][rest if part in parts else name] = value
        return cls(**parts, step=parts["weights"].pop("step"))


def check_state(modules: Sequence[LocalModule], state: TrainState) -> None:
    """Raise ConfigError, which names tensors, shapes and types, unless a state is of these modules."""
    same, own = (
        "a state of the same network, K, heads and method (load_units takes the units alone, whatever K was)",
        state_of(modules),
    )
    check_weights(own, state.weights, same, exact=True)
    for name, tensor in own.items():
        if state.weights[name].dtype != tensor.dtype:
            raise ConfigError(f"{name} is of {state.weights[name].dtype}, here of {tensor.dtype}; allowed: {same}")

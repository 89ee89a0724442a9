"""LocalModule: a chain of units with a head, and the chains (body, tail) that a method makes of it."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlink_ray.seeds import seeded


@dataclass(frozen=True, slots=True)
class StepSeed:
    """Where the random draws of one training step come from: the run's seed and the step, so any process draws the same."""

    seed: int = 0
    step: int = 0


class Chain(nn.Module):
    """Consecutive units, known by their global indices.

    Args:
        units: the units, not copied.
        first_index: global index of units[0].
        random: for each unit whether it draws at random in training.
    """

    def __init__(self, units: Sequence[nn.Module], first_index: int, random: Sequence[bool]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.first_index = first_index
        self.random = tuple(random)

    def __len__(self) -> int:
        return len(self.units)

    def forward(self, x: Tensor, step_seed: StepSeed) -> Tensor:
        """Apply the units; a unit that draws at random draws by (seed, step, unit index), alike in every copy of it."""
        for offset, unit in enumerate(self.units):
            seeds_now = self.random[offset] and unit.training
            with (
                seeded(step_seed.seed, "unit", step_seed.step, self.first_index + offset)
                if seeds_now
                else nullcontext()
            ):
                x = unit(x)
        return x

    def part(self, start: int, stop: int) -> "Chain":
        """Return the chain of units start..stop-1 (local positions), sharing them."""
        return Chain(list(self.units)[start:stop], self.first_index + start, self.random[start:stop])

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield ("units.<global index>.<name>", parameter): names that no split changes."""
        for offset, unit in enumerate(self.units):
            yield from ((f"units.{self.first_index + offset}.{n}", p) for n, p in unit.named_parameters())

    def named_buffers_of_units(self) -> Iterator[tuple[str, Tensor]]:
        """Yield ("units.<global index>.<name>", buffer), for example batch norm statistics."""
        for offset, unit in enumerate(self.units):
            yield from ((f"units.{self.first_index + offset}.{n}", b) for n, b in unit.named_buffers())


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSpec:
    """Where a local module stands in its network, and what its head and helper are made for; shapes are without batch.

    Attributes:
        module_index: k, from 0.
        num_modules: K.
        input_shape: of the network's input, for example (3, 32, 32).
        feature_shape: of the module's last unit's output.
        num_classes: width of the logits.
        seed: of initial weights.
    """

    module_index: int
    num_modules: int
    input_shape: tuple[int, ...]
    feature_shape: tuple[int, ...]
    num_classes: int
    seed: int = 0


class NoHelper(nn.Module):
    """The helper of a module whose method needs none."""


class LocalModule(nn.Module):
    """One group of units with its head: what one stage trains.

    Attributes:
        units: the group's units, shared with the network.
        head: logits (N, classes) from the last unit's output.
        helper: what a method adds beside the head: a decoder, a similarity branch, a synthesizer.
        spec: where the module stands.
        module_index: k, from 0.
        num_modules: K.
    """

    def __init__(
        self, chain: Chain, head: nn.Module, head_random: bool, spec: ModuleSpec, helper: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.chain = chain
        self.head = head
        self.head_random = head_random
        self.spec = spec
        self.module_index = spec.module_index
        self.num_modules = spec.num_modules
        self.helper = helper or NoHelper()

    def with_helper(self, helper: nn.Module) -> "LocalModule":
        """Return this module with another helper, sharing units and head; the helper takes their type and device."""
        like = next(self.chain.parameters(), torch.empty(0))
        helper = helper.to(dtype=like.dtype, device=like.device)
        return LocalModule(self.chain, self.head, self.head_random, self.spec, helper)

    @property
    def units(self) -> nn.ModuleList:
        """Return the group's units in order."""
        return self.chain.units

    @property
    def is_last(self) -> bool:
        """Tell whether this module carries the network's final classifier."""
        return self.module_index == self.num_modules - 1

    def body(self, length: int) -> Chain:
        """Return the units before the last `length`."""
        return self.chain.part(0, len(self.chain) - length)

    def tail(self, length: int) -> Chain:
        """Return the last `length` units."""
        return self.chain.part(len(self.chain) - length, len(self.chain))

    def logits(self, features: Tensor, step_seed: StepSeed) -> Tensor:
        """Return the head's logits (N, classes); dropout in it draws by (seed, step, module index)."""
        seeds_now = self.head_random and self.head.training
        with seeded(step_seed.seed, "head", step_seed.step, self.module_index) if seeds_now else nullcontext():
            return self.head(features)  # type: ignore[no-any-return]

    def head_named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield ("heads.<module index>.<name>", parameter)."""
        return ((f"heads.{self.module_index}.{n}", p) for n, p in self.head.named_parameters())

    def helper_named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield ("helpers.<module index>.<name>", parameter)."""
        return ((f"helpers.{self.module_index}.{n}", p) for n, p in self.helper.named_parameters())

    def network_named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what the network itself consists of: the units, and in the last module the head."""
        yield from self.chain.named()
        if self.is_last:
            yield from self.head_named()

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every parameter by its name: units, head, helper."""
        yield from self.chain.named()
        yield from self.head_named()
        yield from self.helper_named()

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter and buffer by its name."""
        yield from self.named()
        yield from self.chain.named_buffers_of_units()
        for kind, part in (("heads", self.head), ("helpers", self.helper)):
            yield from ((f"{kind}.{self.module_index}.{n}", b) for n, b in part.named_buffers())


def load_named(modules: Sequence[LocalModule], state: dict[str, Tensor]) -> None:
    """Copy tensors by name into the modules; names the modules have and `state` lacks are an error."""
    with torch.no_grad():
        for module in modules:
            for name, tensor in module.named_state():
                tensor.copy_(state[name])

"""LocalModule: a chain of units with a head, and the parts of the chain (body, tail) that a method works on."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.local.engine import DEFAULT, Engine, compiled
from backlink_ray.nets.network import count_parameters
from backlink_ray.seeds import seeded

_T = TypeVar("_T", bound=Tensor)


@dataclass(frozen=True, slots=True)
class StepSeed:
    """What one training step follows from besides weights and inputs, so that every process computes the same.

    Attributes:
        seed, step: of random draws.
        engine: how the step is computed; by default in float32 and uncompiled, as in an evaluation.
        part: of the step's batch, which has several with replicas.
    """

    seed: int = 0
    step: int = 0
    engine: Engine = DEFAULT
    part: int = 0

    def drawing(self, purpose: str, index: int) -> AbstractContextManager[None]:
        """Return the context of a unit or head that draws; a captured step is seeded as a whole, see `train.captured`."""
        which = (self.step, index, self.part)[: 3 if self.part else 2]
        return nullcontext() if self.engine.graph else seeded(self.seed, purpose, *which)


class Chain(nn.Module):
    """Consecutive units, identified by their global indices.

    Args:
        units: the units, not copied.
        first_index: global index of units[0].
        uses_rng: for each unit whether it draws random numbers in training.
    """

    def __init__(self, units: Sequence[nn.Module], first_index: int, uses_rng: Sequence[bool]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.first_index = first_index
        self.uses_rng = tuple(uses_rng)
        # Found once and kept for every step; a copy finds its own.
        self._weights: list[nn.Parameter] | None = None
        self._parts: dict[tuple[int, int], Chain] = {}
        self._compiled: dict[int, Callable[[Tensor], Tensor]] = {}  # by global index, shared with the parts

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_weights": None, "_parts": {}, "_compiled": {}}  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.units)

    def forward(self, x: Tensor, step_seed: StepSeed) -> Tensor:
        """Apply the units; random draws follow from (seed, step, unit index), so every copy of a unit draws the same."""
        engine = step_seed.engine
        with engine.autocast(x.device):
            for index, (unit, uses_rng) in enumerate(zip(self.units, self.uses_rng, strict=True), self.first_index):
                call = self._compiled_unit(index, unit, x.device) if engine.compile == "units" else unit
                # In evaluation, too: a unit may draw there, or have parts that were left in training mode.
                with step_seed.drawing("unit", index) if uses_rng else nullcontext():
                    x = _apply(f"units[{index}]", call, x)
        return x

    def _compiled_unit(self, index: int, unit: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
        if index not in self._compiled:
            self._compiled[index] = compiled(unit, device)
        return self._compiled[index]

    def part(self, start: int, stop: int) -> "Chain":
        """Return the chain of units start..stop-1 (local positions), sharing them."""
        if (start, stop) not in self._parts:
            part = Chain(list(self.units)[start:stop], self.first_index + start, self.uses_rng[start:stop])
            part._compiled = self._compiled
            self._parts[start, stop] = part
        return self._parts[start, stop]

    @property
    def weights(self) -> list[nn.Parameter]:
        """Return the parameters in order, found once: a step needs them several times."""
        if self._weights is None:
            self._weights = list(self.parameters())
        return self._weights

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield ("units.<global index>.<name>", parameter); the names do not depend on the split."""
        for index, unit in enumerate(self.units, self.first_index):
            yield from uncompiled(unit.named_parameters(f"units.{index}"))

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter and buffer (batch norm statistics, for example) by name."""
        for index, unit in enumerate(self.units, self.first_index):
            yield from _state(f"units.{index}", unit)


def uncompiled(named: Iterable[tuple[str, _T]]) -> Iterator[tuple[str, _T]]:
    """Yield (name, tensor) with the names that they have without torch.compile."""
    return ((name.replace("._orig_mod", ""), tensor) for name, tensor in named)


def _state(name: str, part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from uncompiled(part.named_parameters(name))
    yield from uncompiled(part.named_buffers(name))


def _apply(name: str, module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return module(x); errors at a batch of one, with which a batch norm cannot train, and of `view` say what to do."""
    try:
        with explaining_view(name):
            return module(x)
    except ConfigError:
        raise
    except ValueError as error:
        if len(x) != 1:
            raise
        raise ConfigError(
            f"{name} cannot take a batch of one: {error}; allowed: batch_size 2 or more (drop_last=True of a loader)"
        ) from error


@contextmanager
def explaining_view(name: str) -> Iterator[None]:
    """Turn an error of `view` inside `with` into a ConfigError that names what called it, and says what to do."""
    try:
        yield
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        raise ConfigError(
            f"{name} calls view on a tensor whose order in memory (channels_last?) does not allow it: {error}; allowed: flatten "
            "or reshape in place of view, or memory_format='contiguous'"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSpec:
    """A local module's position in its network, and what its head and helper depend on; shapes are without batch.

    Attributes:
        module_index, num_modules: k, from 0, and K.
        input_shape: of the network's input, for example (3, 32, 32).
        takes_integers: whether that input is of integers, such as tokens.
        feature_shape: of the last unit's output.
        num_classes: width of the logits.
        seed: of the initial weights.
    """

    module_index: int
    num_modules: int
    input_shape: tuple[int, ...]
    takes_integers: bool
    feature_shape: tuple[int, ...]
    num_classes: int
    seed: int = 0


class NoHelper(nn.Module):
    """The helper of a module whose method needs none, and of the last module."""

    def forward(self, *_: Tensor) -> Tensor:
        raise ConfigError("this module has no helper; the last one never has (module.is_last)")


class LocalModule(nn.Module):
    """One group of units with its head: what one stage trains.

    Attributes:
        units: shared with the network.
        head: logits (N, classes) from the last unit's output; in the last module it is the network's classifier.
        head_uses_rng: the head draws random numbers in training.
        helper: what a method needs besides the head: a decoder, a similarity branch, a synthesizer.
        spec, module_index, num_modules: position in the network; k, from 0; K.
    """

    def __init__(
        self, chain: Chain, head: nn.Module, head_uses_rng: bool, spec: ModuleSpec, helper: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.chain, self.head, self.head_uses_rng, self.spec = chain, head, head_uses_rng, spec
        self.module_index, self.num_modules = spec.module_index, spec.num_modules
        self.helper = helper or NoHelper()

    def with_helper(self, helper: nn.Module) -> "LocalModule":
        """Return this module with another helper; units and head are shared, and give the helper its type and device."""
        like = next(self.chain.parameters(), torch.empty(0))
        helper = helper.to(dtype=like.dtype, device=like.device)
        return LocalModule(self.chain, self.head, self.head_uses_rng, self.spec, helper)

    @property
    def units(self) -> nn.ModuleList:
        """Return the units in order."""
        return self.chain.units

    @property
    def is_last(self) -> bool:
        """Return whether this is the last module, with the network's final classifier."""
        return self.module_index == self.num_modules - 1

    def body(self, length: int) -> Chain:
        """Return the units before the last `length`."""
        return self.chain.part(0, len(self.chain) - length)

    def tail(self, length: int) -> Chain:
        """Return the last `length` units."""
        return self.chain.part(len(self.chain) - length, len(self.chain))

    def logits(self, features: Tensor, step_seed: StepSeed) -> Tensor:
        """Return the head's logits (N, classes), float32 at least; random draws follow from (seed, step, module index)."""
        with step_seed.drawing("head", self.module_index) if self.head_uses_rng else nullcontext():
            return step_seed.engine.widen(_apply(self.head_name, self.head, features))

    @property
    def head_name(self) -> str:
        """Return how the names of the head's weights begin: "classifier" in the last module, else "heads.<module index>"."""
        return "classifier" if self.is_last else f"heads.{self.module_index}"

    def head_named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield ("heads.<module index>.<name>", parameter), as gradients and the optimizer's state are named."""
        return uncompiled(self.head.named_parameters(f"heads.{self.module_index}"))

    def helper_named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield ("helpers.<module index>.<name>", parameter)."""
        return uncompiled(self.helper.named_parameters(f"helpers.{self.module_index}"))

    def network_named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that belong to the network itself: the units and, in the last module, the head."""
        yield from self.chain.named()
        if self.is_last:
            yield from self.head_named()

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every parameter by name: units, head, helper."""
        return itertools.chain(self.chain.named(), self.head_named(), self.helper_named())

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter and buffer by the name of a weight: those of the last head are the network's classifier's."""
        yield from self.chain.named_state()
        yield from _state(self.head_name, self.head)
        yield from _state(f"helpers.{self.module_index}", self.helper)

    def __repr__(self) -> str:
        first, count = self.chain.first_index, len(self.chain)
        units = f"units {first}..{first + count - 1}: {count_parameters(self.chain):,} parameters"
        parts = (("head", self.head), ("helper", self.helper))
        sizes = [f"{name} {_kind(part)}: {count_parameters(part):,}" for name, part in parts if _kind(part)]
        return f"LocalModule({self.module_index} of {self.num_modules}, {', '.join([units, *sizes])})"


def _kind(part: nn.Module) -> str:
    """Return the classes that a module is made of, "" for no helper."""
    names = [type(child).__name__ for child in (part if isinstance(part, nn.Sequential) else [part])]
    return "-".join(name for name in names if name != NoHelper.__name__)

"""Network: ordered units and a final classifier, the form in which every network enters the library."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlink_ray.errors import ConfigError

NATIVE = "native"  # the classifier that a network was given


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What the example input shows of a unit: the shape of its output (without batch) and whether it uses random numbers."""

    shape: tuple[int, ...]
    uses_rng: bool


class Network(nn.Module):
    """Ordered units, then a classifier.

    Args:
        units: modules applied one after another; each takes and returns one tensor. A unit is never cut.
        classifier: maps the last unit's output to logits (N, classes), or to (N, columns) for the targets of a regression.
            `split` may put a head of another family in its place.
        example: one input batch (n, ...) with n >= 1; only its shape and type matter.
        name: used in messages.

    Raises:
        ConfigError: no units, a unit or classifier that cannot take the previous output or changes it in place, logits of
            another shape, or a parameter that two units share.

    Attributes:
        input_shape: of one input, without batch.
        num_classes: width of the logits.
        facts: output shape and use of random numbers of each unit.
    """

    def __init__(
        self, units: Iterable[nn.Module], classifier: nn.Module, example: Tensor, name: str = "network"
    ) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.classifier = classifier
        self._classifiers: dict[object, nn.Module] = {NATIVE: classifier}
        self.name = name
        self.input_shape = tuple(example.shape[1:])
        self._example_dtype = example.dtype
        self._check_parameters()
        self.facts, self.num_classes = self._run_example()

    @classmethod
    def from_sequential(cls, sequential: nn.Sequential, example: Tensor, name: str = "network") -> "Network":
        """Return a network of a Sequential's children: the last one is the classifier, every other one a unit.

        Raises:
            ConfigError: fewer than two children, or whatever `Network` refuses.
        """
        children = list(sequential.children()) if isinstance(sequential, nn.Sequential) else []
        if len(children) < 2:
            raise ConfigError(
                f"{type(sequential).__name__} with {len(children)} children to cut; allowed: a torch.nn.Sequential of one "
                "unit or more and a classifier"
            )
        return cls(children[:-1], children[-1], example, name)

    def _check_parameters(self) -> None:
        if not len(self.units):
            raise ConfigError("units=[] is empty; allowed: one unit or more")
        counts = [len(list(m.parameters())) for m in (*self.units, self.classifier)]
        if sum(counts) != len(list(self.parameters())):
            raise ConfigError(
                "two units share a parameter, so they cannot be trained separately; give each unit its own parameters"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of inputs (N, ...)."""
        for unit in self.units:
            x = unit(x)
        return self.classifier(x)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def switch_classifier(self, kind: object, build: Callable[[], nn.Module]) -> nn.Module:
        """Put the classifier of a kind in the place of the present one, and return it.

        Args:
            kind: "native", the classifier that the network was given, or a family of heads.
            build: returns a new one, if the network has had none of this kind; one that it has had is as trained as it was.
        """
        if self.classifier not in self._classifiers.values():  # the user has assigned another
            self._classifiers = {NATIVE: self.classifier}
        if kind not in self._classifiers:
            self._classifiers[kind] = build()
        found = self._classifiers[kind]
        if found is not self.classifier:  # it was not there when the network was moved
            dtype, device = self.dtype_and_device()
            self.classifier = found.to(dtype=dtype, device=device)
        return self.classifier

    def __repr__(self) -> str:
        sizes = f"{len(self.units)} units, {count_parameters(self):,} parameters"
        return f"Network({self.name}: {sizes}, inputs {self.input_shape}, {self.num_classes} classes)"

    def dtype_and_device(self) -> tuple[torch.dtype, torch.device]:
        """Return type and device of the first floating-point parameter (float32 on the CPU if there is none)."""
        return dtype_and_device(self.parameters())

    @property
    def takes_integers(self) -> bool:
        """Return whether the example held integers, such as tokens."""
        return not self._example_dtype.is_floating_point

    def example(self, batch_size: int = 2) -> Tensor:
        """Return zeros (batch_size, ...) as input of the first unit, in the network's type and on its device."""
        dtype, device = self.dtype_and_device()
        dtype = self._example_dtype if self.takes_integers else dtype
        return torch.zeros(batch_size, *self.input_shape, dtype=dtype, device=device)

    def _run_example(self) -> tuple[tuple[UnitFacts, ...], int]:
        x, found = self.example(), []
        for index, unit in enumerate(self.units):
            x, uses = run_checked(f"units[{index}]", unit, x)
            found.append(UnitFacts(tuple(x.shape[1:]), uses))
        logits, _ = run_checked("classifier", self.classifier, x)
        if logits.dim() != 2:
            raise ConfigError(
                f"classifier returns {tuple(logits.shape)}; allowed: logits (N, classes), or (N, columns) for a regression "
                "(flatten dense outputs, and reshape them in the loss)"
            )
        return tuple(found), int(logits.shape[-1])


def dtype_and_device(parameters: Iterable[Tensor]) -> tuple[torch.dtype, torch.device]:
    """Return type and device of the first floating-point parameter (float32 on the CPU if there is none)."""
    found = next((p for p in parameters if p.is_floating_point()), torch.empty(0))
    return found.dtype, found.device


def run_checked(name: str, module: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
    """Return module(x) and whether it draws random numbers; ConfigError for what no unit, classifier or head may do."""
    version = x._version
    try:
        uses = uses_rng(module, x)
        y = probe(module, x)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{name} cannot take its input of shape {tuple(x.shape)}: {error}") from error
    if not isinstance(y, Tensor):
        raise ConfigError(f"{name} returns a {type(y).__name__}; a unit returns one tensor (wrap it to select one)")
    if x._version != version:
        # Its input is another unit's output, which that unit's head may still need.
        raise ConfigError(f"{name} changes its input in place; make its first operation inplace=False")
    return y, uses


def probe(module: nn.Module, x: Tensor, training: bool = False) -> Tensor:
    """Return module(x) without gradients, and without changing its buffers or its mode."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with in_mode(training, module), torch.no_grad():
        return torch.func.functional_call(module, buffers, (x,))  # type: ignore[no-any-return]


@contextmanager
def in_mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Put modules into training or evaluation mode inside `with`; then every part of them is in the mode it was found in."""
    found = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.train(training)
        yield
    finally:
        for part, mode in found:
            part.training = mode


def count_parameters(module: nn.Module) -> int:
    """Return the number of values in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def uses_rng(module: nn.Module, x: Tensor) -> bool:
    """Return whether module(x), in training mode, draws from torch's default generators (dropout, stochastic depth)."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        before = _generator_states(devices)
        # A batch norm refuses to train on one value per channel: repeat an example of one.
        probe(module, x.expand(2, *x.shape[1:]) if len(x) == 1 else x, training=True)
        return any(not torch.equal(a, b) for a, b in zip(before, _generator_states(devices), strict=True))


def _generator_states(devices: Sequence[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]

"""Network: ordered units and a final classifier, the form in which every network enters the library."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from backlink_ray.errors import ConfigError
from backlink_ray.nets.probe import UnitFacts, examine, random_like
from backlink_ray.nets.sharing import check_apart

NATIVE = "native"  # the classifier that a network was given


class Network(nn.Module):
    """Ordered units, then a classifier.

    Any unit does that takes one tensor and returns one, of floating-point numbers. Frozen parameters stay as they are, and every
    part is trained in the mode it is in when training starts (unless the whole network is in evaluation mode: then all parts
    are trained in training mode). Random draws are to come from torch's, Python's or numpy's default generator, and states are
    to be buffers: executors copy units, and repeat their draws from the step's seed. The example shows what `examine` refuses;
    it cannot show a draw or a change of state that begins later, such as a dropout whose p is 0 at first.

    Args:
        units: modules applied one after another; each takes and returns one tensor. A unit is never cut.
        classifier: maps the last unit's output to logits (N, classes), or to (N, columns) for the targets of a regression.
            `split` may put a head of another family in its place.
        example: one input batch (n, ...) with n >= 1; only its shape and type matter.
        name: used in messages.

    Raises:
        ConfigError: no units; a unit or classifier that `examine` refuses; logits of another shape; or memory that two share.

    Attributes:
        input_shape: of one input, without batch.
        num_classes: width of the logits.
        facts: of each unit.
    """

    def __init__(
        self, units: Iterable[nn.Module], classifier: nn.Module, example: Tensor, name: str = "network"
    ) -> None:
        super().__init__()
        listed = list(units) if isinstance(units, Iterable) else [None]
        if not all(isinstance(unit, nn.Module) for unit in listed):
            raise ConfigError(f"units is a {type(units).__name__}; allowed: a list of torch.nn.Module, each a unit")
        self.units = nn.ModuleList(listed)
        self.classifier = classifier
        self._classifiers: dict[object, nn.Module] = {NATIVE: classifier}
        self.name = name
        self.input_shape = tuple(example.shape[1:])
        self._example_dtype = example.dtype
        if not len(self.units):
            raise ConfigError("units=[] is empty; allowed: one unit or more")
        for name, part in self.places():
            tensors = (*part.parameters(), *part.buffers())
            if any(is_lazy(t) for t in tensors):
                raise ConfigError(f"{name} is lazy and has no weights yet; call it once on an input before")
            if any(t.is_inference() for t in tensors):
                raise ConfigError(
                    f"{name} was made under torch.inference_mode(), so it cannot be trained; make it outside"
                )
        check_apart(self.places())
        self._examined_as = dtype_and_device(self)[0]
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

    def places(self) -> list[tuple[str, nn.Module]]:
        """Return the units and the classifier, each with the name that messages give it."""
        return [*((f"units[{index}]", unit) for index, unit in enumerate(self.units)), ("classifier", self.classifier)]

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
            self.classifier = found.to(self.features(-1))  # type and device
        return self.classifier

    def __repr__(self) -> str:
        sizes = f"{len(self.units)} units, {count_parameters(self):,} parameters"
        return f"Network({self.name}: {sizes}, inputs {self.input_shape}, {self.num_classes} classes)"

    @property
    def takes_integers(self) -> bool:
        """Return whether the example held integers, such as tokens."""
        return not self._example_dtype.is_floating_point

    def example(self, batch_size: int = 2) -> Tensor:
        """Return zeros (batch_size, ...) as input of the first unit, in the network's type and on its device."""
        dtype, device = dtype_and_device(self)
        dtype = self._example_dtype if self.takes_integers else dtype
        return torch.zeros(batch_size, *self.input_shape, dtype=dtype, device=device)

    def features(self, unit_index: int) -> Tensor:
        """Return random numbers (2, ...) of the shape and type of a unit's output, on the network's device."""
        (own, device), facts = dtype_and_device(self), self.facts[unit_index]
        dtype = own if facts.dtype == self._examined_as else facts.dtype  # the network may have changed its type since
        return random_like(torch.empty(2, *facts.shape, dtype=dtype, device=device))

    @torch.inference_mode(False)
    def _run_example(self) -> tuple[tuple[UnitFacts, ...], int]:
        x, found = random_like(self.example()), []
        for name, part in self.places():
            x, facts = examine(name, part, x)
            found.append(facts)
        if x.dim() != 2:
            raise ConfigError(
                f"classifier returns {tuple(x.shape)}; allowed: logits (N, classes), or (N, columns) for a regression "
                "(flatten dense outputs, and reshape them in the loss)"
            )
        return tuple(found[:-1]), int(x.shape[-1])


def dtype_and_device(*modules: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return type and device of the first floating-point parameter (float32 on the CPU if there is none)."""
    parameters = (parameter for module in modules for parameter in module.parameters())
    found = next((p for p in parameters if p.is_floating_point()), torch.empty(0))
    return found.dtype, found.device


def count_parameters(module: nn.Module) -> int:
    """Return the number of values in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())

"""Updater: any optimizer over named parameters whose gradients come as a list; SGD and a learning rate as the paper's."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor, nn

from backlink_ray.errors import ConfigError
from backlink_ray.local.module import LocalModule
from backlink_ray.methods.base import Method
from backlink_ray.options import check_options, flag, number

LearningRate = Callable[[int], float]
# Called with a list of parameters.
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """lr(step): linear from 0 to the peak over the warm-up, then a half cosine to 0 at the run's end.

    Args:
        lr: the peak, eta.
        num_steps: steps of the whole run.
        warmup_fraction: fraction of the run, 0..1, spent on the warm-up.
    """

    lr: float
    num_steps: int
    warmup_fraction: float = 0.05

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup = round(self.num_steps * self.warmup_fraction)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.num_steps - warmup)))


@dataclass(frozen=True, kw_only=True)
class SgdOptions:
    """SGD as the paper states it."""

    momentum: float = number(0.9, 0.0, math.nextafter(1.0, 0.0), "0..1, 1 excluded")
    """Nesterov momentum, 0..1 (1 excluded)."""
    weight_decay: float = number(1e-4)
    """L2 penalty on every parameter, once per update."""


@dataclass(frozen=True, kw_only=True)
class Sgd(SgdOptions):
    """The default optimizer: called with parameters, it returns torch's SGD; Nesterov is this library's choice."""

    nesterov: bool = flag(True)
    """Nesterov's form of momentum."""

    def __post_init__(self) -> None:
        check_options(self)

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        nesterov = self.nesterov and self.momentum > 0
        # One operation for all parameters; torch has none for complex numbers, or on "meta".
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
        # On a GPU in a tensor there, so that a captured step reads it anew.
        lr = torch.zeros((), device=parameters[0].device) if fused and parameters[0].is_cuda else 0.0
        sgd = SGD(parameters, lr, self.momentum, weight_decay=self.weight_decay, nesterov=nesterov, fused=fused)
        # torch's fused step fails where some parameters had their first gradient and others had none yet.
        for parameter in parameters if fused and self.momentum else ():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
        return sgd


class SGD(torch.optim.SGD):
    """torch's SGD without the wrappers that hide it from torch.compile, which takes every process a second to import."""

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Updater:
    """An optimizer over named parameters.

    Every parameter is updated on its own, so updating a module in parts (body and head, tail, a tail's replica) gives the
    same bits as updating it at once; a stage can therefore update its body before the tail's gradient has arrived.

    Args:
        named: the parameters; a frozen one does not even decay.
        make_optimizer: of all of them; `check_optimizer` says what must hold.
        adam_lr: constant learning rate of torch's Adam, which then takes the optimizer's place; 0: the optimizer.

    Raises:
        ConfigError: the callable returns no optimizer, or one of other parameters, without one lr, or that needs a closure.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], make_optimizer: MakeOptimizer, adam_lr: float = 0.0
    ) -> None:
        self._named, self._adam_lr = dict(named), adam_lr
        self._make: MakeOptimizer = torch.optim.Adam if adam_lr else make_optimizer
        self._optimizer = self._new()

    def _new(self) -> torch.optim.Optimizer:
        if not self._named:
            return SGD([torch.empty(0)])  # does nothing; torch refuses an empty list
        return _made(self._make, list(self._named.values()))

    @property
    def kind(self) -> str:
        """Return the optimizer's class by name."""
        return type(self._optimizer).__name__

    @property
    def names(self) -> list[str]:
        """Return the parameters' names in order."""
        return list(self._named)

    @property
    def can_be_captured(self) -> bool:
        """Return whether an update is work of the GPU alone, with its lr in a tensor there, unless that is constant."""
        groups = self._optimizer.param_groups if self._named else []
        return all(
            (group.get("fused") or group.get("capturable"))
            and (self._adam_lr or getattr(group["lr"], "device", None) == group["params"][0].device)
            for group in groups
        )

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next updates."""
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self._adam_lr or lr)
            else:
                group["lr"] = self._adam_lr or lr

    def update(self, gradients: Sequence[Tensor | None]) -> None:
        """Take one step along gradients, one per parameter in order (None: no update)."""
        for parameter, gradient in zip(self._named.values(), gradients, strict=True):
            moves = gradient is not None and parameter.requires_grad and not getattr(parameter, "idle", False)
            # None otherwise: there may be a gradient of the user's own.
            parameter.grad = _laid_out(gradient, parameter) if moves else None  # type: ignore[arg-type]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's state by "<parameter>/<key>"; a plain number is a scalar, and its key ends in "#".

        Raises:
            ConfigError: a value that is neither a tensor nor a number.
        """
        kept = [(name, self._optimizer.state.get(p, {})) for name, p in self._named.items()]
        return dict(self._entry(name, key, value) for name, own in kept for key, value in own.items())

    def _entry(self, name: str, key: object, value: object) -> tuple[str, Tensor]:
        if isinstance(key, str) and "/" not in key:
            if isinstance(value, Tensor):
                return f"{name}/{key}", value
            if type(value) in _NUMBERS:
                return f"{name}/{key}{_NUMBER}", torch.tensor(value, dtype=_NUMBERS[type(value)])
        raise ConfigError(
            f"optimizer {self.kind} keeps {key!r}, a {type(value).__name__}, in the state of {name}, which a checkpoint cannot "
            "hold; allowed: tensors, int, float and bool, by keys without '/'"
        )

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Check a state against what this optimizer keeps from its first step on; entries of other parameters are left out.

        Raises:
            ConfigError: something is missing, or of another shape or type: the state is another optimizer's, or damaged.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for full, value in state.items():
            name, _, key = full.rpartition("/")
            found.setdefault(name, {})[key] = value
        kept = self._kept_after_a_step()
        for name, own in ((name, own) for name, own in self._named.items() if name in found):
            wrong = [key for key, like in kept[own.dim()].items() if not _fits(found[name].get(key), like, own)]
            if wrong:
                raise ConfigError(
                    f"the state of {name} lacks {', '.join(sorted(wrong))}, which {self.kind} keeps, or has it in another "
                    f"shape or type; it has {', '.join(sorted(found[name]))}; allowed: a state of the same optimizer"
                )

    def _kept_after_a_step(self) -> dict[int, dict[str, tuple[Tensor, Tensor]]]:
        """Return, by number of dimensions, what is kept for the smallest parameter of more than one element, and that one."""
        by_size = sorted(self._named.values(), key=lambda p: (p.numel() > 1, -p.numel()))
        small = {p.dim(): nn.Parameter(p.detach().clone()) for p in by_size}
        trial = Updater([(str(dim), p) for dim, p in small.items()], self._make, self._adam_lr)
        trial.set_lr(0.0)
        trial.update([torch.ones_like(p) for p in small.values()])
        return {
            dim: {full.partition("/")[2]: (t, p) for full, t in trial.state().items() if full.startswith(f"{dim}/")}
            for dim, p in small.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the optimizer's state; a parameter without an entry starts anew, and others' entries are left out."""
        self._optimizer = self._new()
        group = self._optimizer.param_groups[0]
        for full, value in state.items():
            name, _, key = full.rpartition("/")
            if name not in self._named:
                continue
            parameter = self._named[name]
            # As in torch's own load_state_dict: a step count stays on the CPU, wherever the parameter is.
            on_cpu = key == "step" and not group.get("fused") and not group.get("capturable")
            tensor = _laid_out(value.detach().clone(), parameter)
            own = tensor.item() if key.endswith(_NUMBER) else tensor.to("cpu" if on_cpu else parameter.device)
            self._optimizer.state[parameter][key.removesuffix(_NUMBER)] = own


def updaters_of(method: Method, modules: Sequence[LocalModule], optimizer: MakeOptimizer) -> tuple[Updater, Updater]:
    """Return the updaters of the modules' local and linked parameters, see `Method`."""
    local = [pair for module in modules for pair in method.local_parameters(module)]
    linked = [pair for module in modules for pair in method.linked_parameters(module)]
    return Updater(local, optimizer), Updater(linked, optimizer, method.helper_lr)


def _fits(found: Tensor | None, like: tuple[Tensor, Tensor], parameter: nn.Parameter) -> bool:
    """Return whether a tensor can be kept for `parameter`, if `like` is one kept for another parameter, with that one."""
    kept, other = like
    if found is None or found.dtype != kept.dtype:
        return False
    return found.shape == parameter.shape if kept.shape == other.shape else found.dim() == kept.dim()


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor of a parameter's shape with its strides: fused optimizers take values in the order of memory."""
    if tensor.stride() == parameter.stride() or tensor.shape != parameter.shape:
        return tensor
    strides = zip(tensor.stride(), parameter.stride(), tensor.shape, strict=True)
    # The stride of a single element means nothing.
    if all(ours == theirs for ours, theirs, size in strides if size > 1):
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


# A key that ends so was a Python number, which must come back as one: with a tensor, an optimizer would round differently.
_NUMBER = "#"
_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}


def _made(make_optimizer: MakeOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    made = make_optimizer(parameters) if callable(make_optimizer) else make_optimizer
    if not callable(make_optimizer) or not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer, a {type(make_optimizer).__name__}, gives a {type(made).__name__}; allowed: a callable (parameters) -> "
            "torch.optim.Optimizer, such as lambda parameters: torch.optim.AdamW(parameters, weight_decay=0.1)"
        )
    kind, groups = type(made).__name__, made.param_groups
    held = [p for group in groups for p in group["params"]]
    if {*map(id, held)} != {*map(id, parameters)}:
        raise ConfigError(
            f"optimizer {kind} holds {len(held)} parameters and was given {len(parameters)} others; it must hold exactly "
            "those that it is given (freeze one by requires_grad_(False))"
        )
    rates = {float(group["lr"]) if "lr" in group else None for group in groups}
    if len(rates) > 1 or None in rates:
        raise ConfigError(f"optimizer {kind} has the learning rates {rates}; allowed: one lr, which the schedule sets")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure and closure.default is closure.empty:
        raise ConfigError(f"optimizer {kind} needs a closure, and a stage cannot repeat a step of the whole network")
    return made


def check_optimizer(make_optimizer: MakeOptimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Check an optimizer by two steps on copies of a few small parameters; nothing else is changed.

    What must hold: it updates every parameter from that parameter's own gradient and state (no global norm, no random
    numbers), keeps what it needs in `self.state[parameter]` as tensors and numbers, and has one lr, set at every step.

    Raises:
        ConfigError: something of that does not hold, by the optimizer's name.
    """
    try:
        _check_parts(make_optimizer, list(_two_of_each_kind(parameters)))
    except ConfigError:
        raise
    except Exception as error:  # whatever an optimizer of the user's own raises
        name = getattr(make_optimizer, "__name__", repr(make_optimizer))
        raise ConfigError(
            f"optimizer {name} cannot update these parameters: {error}; allowed: any torch.optim.Optimizer that can (one that "
            "calls view on gradients, with memory_format='contiguous')"
        ) from error


def _two_of_each_kind(parameters: Iterable[nn.Parameter]) -> Iterable[nn.Parameter]:
    """Yield the two smallest of every number of dimensions: an optimizer may treat matrices otherwise than biases."""
    found = sorted((p for p in parameters if p.requires_grad), key=lambda p: (p.dim(), p.numel()))
    for _, kind in groupby(found, key=nn.Parameter.dim):
        yield from islice(kind, 2)


def _check_parts(make_optimizer: MakeOptimizer, small: Sequence[nn.Parameter]) -> None:
    together, apart = ([(str(i), nn.Parameter(p.detach().clone())) for i, p in enumerate(small)] for _ in range(2))
    one, *parts = (Updater(named, make_optimizer) for named in (together, *([pair] for pair in apart)))
    before = _outside_state(one)
    for _ in range(2):
        for updater in (one, *parts):
            updater.set_lr(0.1)
            # Of different sizes, so that a common norm shows.
            updater.update([torch.full_like(p, 100.0 ** (int(name) % 2)) for name, p in updater._named.items()])
    changed = [name for name, value in _outside_state(one).items() if value != before.get(name)]
    if changed:
        raise ConfigError(
            f"optimizer {one.kind} changes {', '.join(changed)}, which no checkpoint holds; keep it in self.state[parameter]"
        )
    ours = {**one.state(), **dict(together)}
    theirs = {**{name: t for part in parts for name, t in part.state().items()}, **dict(apart)}
    if ours.keys() != theirs.keys() or not all(_equal(t, theirs[name]) for name, t in ours.items()):
        raise ConfigError(
            f"optimizer {one.kind} updates two parameters differently together and apart (a global norm, random numbers), "
            "and stages hold them apart; allowed: an update of each parameter from its own gradient and state"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal, where NaN, which a network may hold, equals itself."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def check_copies(make_optimizer: MakeOptimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse an optimizer that gives copies other options than the parameters themselves, which stages do not have."""
    copies = [nn.Parameter(p.detach(), p.requires_grad) for p in parameters]
    ours, theirs = (_options(_made(make_optimizer, list(held)), held) for held in (parameters, copies))
    if ours != theirs:
        raise ConfigError(
            "the optimizer gives copies of parameters other options than the parameters themselves, so it looks for certain "
            "ones, and stages hold copies; allowed: options that follow from a parameter's shape (p.dim() < 2), or executor local"
        )


def _options(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    of = {id(p): {n: v for n, v in g.items() if n != "params"} for g in optimizer.param_groups for p in g["params"]}
    return [of[id(p)] for p in parameters]


def _outside_state(updater: Updater) -> dict[str, str]:
    """Return, as text, what an optimizer keeps beside the state of its parameters and its lr, which may be a tensor."""
    optimizer = updater._optimizer
    own = {n: v for n, v in vars(optimizer).items() if not n.startswith("_") and n not in ("state", "param_groups")}
    groups = {n: v for group in optimizer.param_groups for n, v in group.items() if n != "params"}
    own["defaults"] = {n: v for n, v in optimizer.defaults.items() if n != "lr"}
    return {name: repr(value) for name, value in (own | groups).items() if name != "lr"}

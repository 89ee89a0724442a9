"""Units as people write them; each maps (N, 12) to (N, 12)."""

import random
import threading
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

WIDTH = 12


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


def normed(**options: object) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH, **options), nn.Tanh())  # type: ignore[arg-type]


class Applies(nn.Module):
    """Calls a function with itself and the input; `inner` is a plain unit unless another is given."""

    def __init__(self, function: Callable[["Applies", Tensor], Tensor], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.inner = function, inner or plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def norm_in_eval() -> nn.Module:
    unit = normed()
    unit[1].running_mean.fill_(0.3)
    unit[1].eval()
    return unit


class Freezes(nn.Sequential):
    """Keeps its batch norm in evaluation mode by a `train` that nobody has called yet."""

    def train(self, mode: bool = True) -> "Freezes":
        super().train(mode)
        self[1].eval()
        return self


def half_frozen() -> nn.Module:
    unit = normed()
    unit[0].requires_grad_(False)
    return unit


def backbone_under_no_grad() -> nn.Module:
    def forward(unit: Applies, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = unit.inner(x)
        return unit.top(h)  # type: ignore[no-any-return, operator]

    unit = Applies(forward)
    unit.top = plain()
    return unit


def with_unused_weights() -> nn.Module:
    unit = Applies(lambda u, x: u.inner(x))
    unit.unused = nn.Linear(3, 3)
    return unit


class MovingMean(nn.Module):
    """Replaces its buffer by a new tensor at every step."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean()
        return h - self.mean  # type: ignore[no-any-return]


def attention() -> nn.Module:
    def forward(unit: Applies, x: Tensor) -> Tensor:
        tokens = x.view(len(x), 3, 4)
        mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
        return unit.inner(tokens, tokens, tokens, attn_mask=mask)[0].flatten(1)  # type: ignore[no-any-return]

    return Applies(forward, nn.MultiheadAttention(4, 2, batch_first=True))


def recurrent() -> nn.Module:
    return Applies(lambda u, x: u.inner(x.view(len(x), 3, 4))[0].flatten(1), nn.GRU(4, 4, batch_first=True))


def spectral() -> nn.Module:
    """A filter in frequency: complex numbers inside."""
    unit = Applies(lambda u, x: torch.fft.irfft(torch.fft.rfft(u.inner(x)) * u.filter, n=WIDTH))
    unit.filter = nn.Parameter(torch.ones(WIDTH // 2 + 1, dtype=torch.complex64))
    return unit


def checkpointed(inner: nn.Module | None = None) -> nn.Module:
    return Applies(lambda u, x: checkpoint(u.inner, x, use_reentrant=False), inner)


def under_autocast() -> nn.Module:
    def forward(unit: Applies, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return unit.inner(x)  # type: ignore[no-any-return]

    return Applies(forward)


def in_type(dtype: torch.dtype) -> nn.Module:
    return Applies(lambda u, x: u.inner(x.to(dtype)), plain().to(dtype))


class Doubled(torch.autograd.Function):
    """An operation with a backward of its own."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * gradient


def with_forward_hook() -> nn.Module:
    unit = plain()
    unit.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return unit


class Merging(nn.Module):
    """Low-rank weights beside frozen ones, which it merges for evaluation and takes apart for training, as loralib does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.merged = nn.Linear(WIDTH, WIDTH).requires_grad_(False), False
        self.a, self.b = (nn.Parameter(torch.ones(*shape) / 8) for shape in ((WIDTH, 2), (2, WIDTH)))

    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if self.merged == mode:
            self.inner.weight.data.add_((self.a @ self.b).detach(), alpha=-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return torch.tanh(y if self.merged else y + x @ (self.a @ self.b).T)


# These train as in plain torch, bit for bit, and alike in every executor.
AS_TORCH: dict[str, Callable[[], nn.Module]] = {
    "batch norm in eval()": norm_in_eval,
    "train() overridden": lambda: Freezes(*normed()).train(),
    "cumulative batch norm": lambda: normed(momentum=None),
    "batch norm without parameters": lambda: normed(affine=False),
    "frozen": lambda: plain().requires_grad_(False),
    "half frozen": half_frozen,
    "backbone under no_grad": backbone_under_no_grad,
    "unused weights": with_unused_weights,
    "input ignored": lambda: Applies(lambda u, x: u.inner(torch.ones_like(x))),
    "output detached": lambda: Applies(lambda u, x: u.inner(x).detach()),
    "identity": nn.Identity,
    "view of the input": lambda: Applies(lambda u, x: x.view(len(x), WIDTH)),
    "expanded output": lambda: Applies(lambda u, x: u.inner(x)[:, :1].expand(-1, WIDTH)),
    "in-place later": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)),
    "used twice": lambda: Applies(lambda u, x: u.inner(u.inner(x))),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), nn.Tanh()),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)), nn.Tanh()),
    "buffer assigned": MovingMean,
    "masked attention": attention,
    "recurrent": recurrent,
    "complex inside": spectral,
    "bfloat16": lambda: in_type(torch.bfloat16),
    "float64": lambda: in_type(torch.float64),
    "autocast inside": under_autocast,
    "checkpointed": checkpointed,
    "own backward": lambda: Applies(lambda u, x: Doubled.apply(u.inner(x))),
    "forward hook": with_forward_hook,
}


def layer_drop() -> nn.Module:
    return Applies(lambda u, x: x if u.training and random.random() < 0.5 else u.inner(x))


# These draw; seeded, they are alike in every executor.
RANDOM: dict[str, Callable[[], nn.Module]] = {
    "Python's random": layer_drop,
    "numpy's generator": lambda: Applies(lambda u, x: u.inner(x) * (np.random.rand() if u.training else 1.0)),
    "dropout in evaluation, too": lambda: Applies(lambda u, x: F.dropout(u.inner(x), 0.3)),
    "dropout, checkpointed": lambda: checkpointed(nn.Sequential(plain(), nn.Dropout(0.3))),
}


def with_own_generator() -> nn.Module:
    unit = Applies(lambda u, x: u.inner(x) * torch.rand(WIDTH, generator=u.generator))  # type: ignore[arg-type]
    unit.generator = torch.Generator()
    return unit


class SeldomDraws(nn.Module):
    """Draws from a generator of its own in every step, which shows in one of a hundred."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.generator = plain(), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (0.5 if self.generator.random() < 0.01 else 1)  # type: ignore[no-any-return]


class Counts(nn.Module):
    """Divides by the number of its calls, which it counts in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / self.calls


def scaled_in_place(unit: nn.Module, x: Tensor) -> Tensor:
    x.data.mul_(2)
    return x


def tied_within() -> nn.Module:
    unit = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    unit[1].weight.data = unit[0].weight.data
    return unit


# A network refuses these, as units[1], with a message that matches.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own generator": (with_own_generator, r"units\[1\] answers differently .* default generator"),
    "own generator, seldom seen": (SeldomDraws, r"units\[1\] answers differently .* default generator"),
    "counts in Python": (Counts, r"units\[1\] answers differently .* keep states in buffers"),
    "in-place": (lambda: nn.Sequential(nn.ReLU(inplace=True), plain()), r"units\[1\] .*inplace=False"),
    "in-place behind torch's back": (lambda: Applies(scaled_in_place), r"units\[1\] changes its input in place"),
    "lazy": (lambda: nn.LazyLinear(WIDTH), r"units\[1\] is lazy .*; call it once"),
    "tuple": (lambda: Applies(lambda u, x: (x, x)), r"units\[1\] returns a tuple"),  # type: ignore[arg-type, return-value]
    "complex output": (lambda: Applies(lambda u, x: torch.fft.fft(x)), r"units\[1\] returns torch\.complex64"),
    "integer output": (lambda: Applies(lambda u, x: x.long()), r"units\[1\] returns torch\.int64"),
    "tied through .data": (tied_within, r"units\[1\]\.0\.weight and units\[1\]\.1\.weight share memory"),
}


def with_lock() -> nn.Module:
    unit = plain()
    unit.lock = threading.Lock()  # type: ignore[assignment]
    return unit


class RefersToItself(nn.Module):
    """Holds a function that uses the unit's own parameter: in a deep copy, still the original's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = plain(), nn.Parameter(torch.ones(()))
        self.act = lambda y: y * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner(x))  # type: ignore[no-any-return]


# One process trains these; the replica of a tail, which is a copy, is refused.
NO_COPY: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lock": (with_lock, r"units\[1\] cannot be copied: .*lock.* link='error'"),
    "refers to itself": (RefersToItself, r"units\[1\] holds a function, act, .* make it a method"),
}

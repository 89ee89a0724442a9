"""RunConfig: everything that decides the result of one training run, checked before anything starts."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from backlink_ray.data.datasets import DATASETS
from backlink_ray.errors import ConfigError
from backlink_ray.local.heads import HEADS
from backlink_ray.local.sizes import check_propagation, module_sizes
from backlink_ray.methods.backlink import BASES, check_mode
from backlink_ray.nets.names import unit_count

# Every method with the options that have a meaning for it; BackLink has those of the method it builds on besides.
METHODS: dict[str, tuple[str, ...]] = {
    "bp": (),
    "gll": (),
    "backlink": (
        "propagation_length",
        "alpha",
        "alpha_mode",
        "body_scale",
        "tail_memory",
        "link",
        "mode",
        "buffer_size",
        "base",
    ),
    "dgl": ("mode", "buffer_size"),
    "predsim": ("beta",),
    "infopro": ("lambda1_first", "lambda1_last", "lambda2_first", "lambda2_last"),
    "ddg": (),
    "dni": ("synthesizer_lr", "synthesizer_width", "label_conditioning"),
}
EXECUTORS = ("auto", "local", "threads", "ray")

# What may differ between two runs that give the same weights: no part of a run's identity, but for mode async, in which
# the executor decides in which order stages take their steps.
_NOT_IDENTITY = ("executor", "link")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One training run. Paper symbols: K = num_modules, l = propagation_length, eta = lr.

    bp means K = 1, and every method but backlink means l = 0 and alpha = 1; an option that has no meaning for the method
    goes back to its default. These fields are set so, whatever was given, so that equal runs have equal identities.
    """

    network: str = "resnet32"
    """alexnet, vgg16, vit<depth> or resnet<6n+2>, for example resnet8, resnet32, resnet110."""
    dataset: str = "cifar10-sample"
    """cifar10-sample is in the package; the others are fetched into the data root."""
    method: str = "backlink"
    """bp, gll, backlink, dgl, predsim, infopro, dni or ddg."""
    head: str = "fc"
    """Auxiliary classifier of every local module: fc (pool, linear), conv, pool (PredSim's) or mlp-sr (DGL's)."""
    final_head: str = "auto"
    """Head of the last module: auto (same family as the auxiliary heads) or native (the network's own classifier)."""
    num_modules: int = 4
    """K: number of local modules, 1..number of units."""
    propagation_length: int = 2
    """l: units of a module that hear the next module's error, 0..smallest module."""
    alpha: float = 0.5
    """Weight of the local error in those units, 0..1; the next module's error weighs 1 - alpha."""
    alpha_mode: str = "once"
    """once: alpha counts once in every linked unit; compound: again at each unit, as Eqs. (4)-(5) read literally."""
    body_scale: str = "one"
    """one: units before the linked ones take the local gradient as it is; alpha: scaled by alpha."""
    tail_memory: str = "retain"
    """retain the graph of the linked units until the next module's error is there, or recompute it then."""
    link: str = "replica"
    """What stages exchange for it: replica (parameter gradients; a copy of the tail) or error. The result is the same."""
    mode: str = "exact"
    """backlink: exact (both errors of one batch), stale (the next module's is one batch older); also dgl: async (no waiting)."""
    buffer_size: int = 2
    """mode async: activations kept at every cut, of which a module takes the freshest among the least used."""
    base: str = "gll"
    """Whose local losses backlink builds on: gll, dgl, predsim or infopro."""
    beta: float = 0.99
    """predsim: weight of similarity matching beside the prediction, 0..1."""
    lambda1_first: float = 5.0
    """infopro: weight of the reconstruction in the first auxiliary module ..."""
    lambda1_last: float = 0.5
    """... and in the last one, linear between."""
    lambda2_first: float = 0.5
    """infopro: weight of the cross entropy in the first auxiliary module ..."""
    lambda2_last: float = 1.0
    """... and in the last one, linear between."""
    synthesizer_lr: float = 3e-5
    """dni: learning rate of Adam for the synthesizers."""
    synthesizer_width: int = 0
    """dni: channels inside a synthesizer; 0: as many as the features have."""
    label_conditioning: bool = False
    """dni: synthesizers see the labels."""
    remainder: str = "front"
    """Which modules hold one unit more when K does not divide the number of units: front or back."""
    balance: str = "count"
    """What the split makes equal: count of units."""
    lr: float = 0.5
    """eta: peak learning rate of SGD, after warm-up, before the cosine to zero."""
    momentum: float = 0.9
    """Nesterov momentum, 0..1 (1 excluded)."""
    weight_decay: float = 1e-4
    """L2 penalty on every parameter, once per update."""
    warmup_fraction: float = 0.05
    """Part of the run in which the learning rate rises linearly (the paper recipe: 10 of 200 epochs)."""
    batch_size: int = 512
    """Images per step."""
    epochs: int = 200
    """Passes over the training images."""
    augment: bool = True
    """Each image its own random crop and flip, as the dataset's recipe says."""
    validation_fraction: float = 0.0
    """Part of the training set held out for ranking (val_error_pct), 0..0.5; 0 trains on everything."""
    train_images: int = 0
    """Budget: use only the first N training images; 0 means all."""
    test_images: int = 0
    """Budget: use only the first N test images; 0 means all."""
    seed: int = 0
    """Everything random follows from it."""
    torch_threads: int = 1
    """torch threads per local module on a CPU; results are bit-equal only at equal numbers."""
    executor: str = "auto"
    """local: one module after another in one process; threads: stages as threads; ray: stages as actors; auto: chosen."""

    def __post_init__(self) -> None:
        self._check_types()
        for field, allowed in _CHOICES.items():
            _choice(field, getattr(self, field), allowed)
        for field, (low, high, rule) in _RANGES.items():
            _range(field, getattr(self, field), low, high, rule)
        self._canonicalise()
        check_mode(self.mode, self.link)
        if self.method == "dgl" and self.mode == "stale":
            raise ConfigError("mode='stale' is not one of dgl's; allowed: exact, async")
        sizes = module_sizes(unit_count(self.network), self.num_modules, self.remainder, self.network)
        check_propagation(self.propagation_length, sizes, self.network)

    def _check_types(self) -> None:
        """A whole number is a fine alpha or lr (and one identity with its float); anything else must be what it says."""
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), type(field.default)
            if wanted is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not wanted:
                raise ConfigError(f"{field.name}={value!r} is a {type(value).__name__}; allowed: {wanted.__name__}")

    def _canonicalise(self) -> None:
        own = {*METHODS[self.method], *(METHODS[self.base] if self.method == "backlink" else ())}
        defaults = {f.name: f.default for f in dataclasses.fields(self)} | {"propagation_length": 0, "alpha": 1.0}
        for option in {option for options in METHODS.values() for option in options} - own:
            object.__setattr__(self, option, defaults[option])
        if self.mode != "async":
            object.__setattr__(self, "buffer_size", defaults["buffer_size"])
        if self.method == "bp":
            object.__setattr__(self, "num_modules", 1)

    @property
    def num_train_images(self) -> int:
        """Return how many training images the run draws on, held-out ones among them."""
        return self.train_images or DATASETS[self.dataset]

    @property
    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the result where they are not at their defaults: a new field changes nothing."""
        given = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        left_out = _NOT_IDENTITY if self.mode != "async" else ("link",)
        return {name: value for name, value, default in given if value != default and name not in left_out}

    @property
    def run_id(self) -> str:
        """Return 16 hexadecimal digits that depend on every field that decides the result, and not on their order."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Return the method's name, with what BackLink builds on: "backlink", "backlink+infopro"."""
        return f"{self.method}+{self.base}" if self.base != "gll" else self.method

    @property
    def run_name(self) -> str:
        """Return a short name that sorts as numbers do, for example K08-l4-a0.50-e0.30-s0."""
        lr = f"{self.lr:.2f}" if 0.01 <= self.lr < 100 else f"{self.lr:.1e}"
        return f"K{self.num_modules:02d}-l{self.propagation_length}-a{self.alpha:.2f}-e{lr}-s{self.seed}"

    def replace(self, **changes: object) -> "RunConfig":
        """Return a copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # checked by __post_init__


_CHOICES: dict[str, tuple[str, ...]] = {
    "dataset": tuple(DATASETS),
    "method": tuple(METHODS),
    "head": tuple(HEADS),
    "executor": EXECUTORS,
    "final_head": ("auto", "native"),
    "alpha_mode": ("once", "compound"),
    "body_scale": ("one", "alpha"),
    "tail_memory": ("retain", "recompute"),
    "link": ("replica", "error"),
    "mode": ("exact", "stale", "async"),
    "base": BASES,
    "remainder": ("front", "back"),
    "balance": ("count",),
}

_RANGES: dict[str, tuple[float, float, str]] = {
    "alpha": (0.0, 1.0, "0..1"),
    "beta": (0.0, 1.0, "0..1"),
    "lambda1_first": (0.0, math.inf, "at least 0, finite"),
    "lambda1_last": (0.0, math.inf, "at least 0, finite"),
    "lambda2_first": (0.0, math.inf, "at least 0, finite"),
    "lambda2_last": (0.0, math.inf, "at least 0, finite"),
    "synthesizer_lr": (1e-12, math.inf, "above 0, finite"),
    "buffer_size": (1, 10**6, "1 or more"),
    "synthesizer_width": (0, 10**6, "0 (as the features) or more"),
    "lr": (0.0, math.inf, "at least 0, finite"),
    "momentum": (0.0, 0.999999, "0..1, 1 excluded"),
    "weight_decay": (0.0, math.inf, "at least 0, finite"),
    "warmup_fraction": (0.0, 1.0, "0..1"),
    "validation_fraction": (0.0, 0.5, "0..0.5"),
    "batch_size": (1, 10**9, "1 or more"),
    "epochs": (1, 10**9, "1 or more"),
    "train_images": (0, 10**9, "0 (all) or more"),
    "test_images": (0, 10**9, "0 (all) or more"),
    "seed": (0, 2**63 - 1, "0..2^63-1"),
    "torch_threads": (1, 1024, "1..1024"),
}


def _choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{field}={value!r} is not known; allowed: {', '.join(allowed)}")


def _range(field: str, value: float, low: float, high: float, rule: str) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{field}={value!r} is out of range; allowed {rule}")

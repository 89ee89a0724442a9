"""RunConfig: everything that decides the result of one training run, checked before anything starts."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from backlink_ray.data.datasets import DATASETS
from backlink_ray.errors import ConfigError
from backlink_ray.local.sizes import check_propagation, module_sizes
from backlink_ray.local.split import SplitOptions
from backlink_ray.methods.backprop import BP
from backlink_ray.methods.catalogue import BASES, METHODS, MethodOptions, make_method, takes
from backlink_ray.nets.names import unit_count
from backlink_ray.options import Option, check_options, choice, flag, number, options_of, text, whole
from backlink_ray.train.optim import SgdOptions

# These do not change a run's weights, so they are not part of its identity. Exception: in mode async the executor decides
# the order in which stages take their steps.
_NOT_IDENTITY = ("executor", "link")


@dataclass(frozen=True, kw_only=True)
class RunFields:
    """The fields of a run that every method has."""

    network: str = text("resnet32")
    """alexnet, vgg16, vit<depth> or resnet<6n+2>, for example resnet8, resnet32, resnet110."""
    dataset: str = choice(*DATASETS, default="cifar10-sample")
    """cifar10-sample is part of the package; the others are downloaded into the data root."""
    method: str = choice(*METHODS, default="backlink")
    """Training method: backlink, bp, gll, dgl, ...; an unknown name lists them all."""
    base: str = choice(*BASES, default="gll")
    """backlink only: the method whose local losses it extends: gll, dgl, ...; an unknown name lists them all."""
    lr: float = number(0.5)
    """eta: peak learning rate of SGD, after warm-up, before the cosine to zero."""
    warmup_fraction: float = number(0.05, 0.0, 1.0)
    """Fraction of the run in which the learning rate rises linearly (the paper's recipe: 10 of 200 epochs)."""
    batch_size: int = whole(512, 1)
    """Images per step."""
    epochs: int = whole(200, 1)
    """Passes over the training images."""
    augment: bool = flag(True)
    """Crop and flip each image at random, according to the data set's recipe."""
    validation_fraction: float = number(0.0, 0.0, 0.5)
    """Fraction of the training set held out for ranking (val_error_pct), 0..0.5; 0 trains on everything."""
    train_images: int = whole(0, allowed="0 (all) or more")
    """Budget: use only the first N training images; 0 means all."""
    test_images: int = whole(0, allowed="0 (all) or more")
    """Budget: use only the first N test images; 0 means all."""
    seed: int = whole(0, allowed="0..2^63-1")
    """Seed of everything random."""
    torch_threads: int = whole(1, 1, 1024)
    """torch threads per local module on a CPU; results are bit-identical only for equal numbers."""
    executor: str = choice("auto", "local", "threads", "ray")
    """local: one module after another in one process; threads: stages as threads; ray: stages as actors; auto: chosen."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(MethodOptions, SgdOptions, SplitOptions, RunFields):
    """One training run. Paper symbols: K = num_modules, l = propagation_length, eta = lr.

    Equal runs have equal identities: an option that the method does not have is set to the value that means its absence
    (l = 0, alpha = 1, K = 1 with bp, else the default), and any other value is refused.
    """

    def __post_init__(self) -> None:
        check_options(self)
        make_method(self.method, self.base, vars(self))  # checks that its options fit together
        for name, option in _without_meaning(vars(self)).items():
            absent = option.default if option.unused is None else option.unused
            if getattr(self, name) not in (option.default, absent):
                self._refuse(name)
            object.__setattr__(self, name, absent)
        sizes = module_sizes(unit_count(self.network), self.num_modules, self.remainder, self.network)
        check_propagation(self.propagation_length, sizes, self.network)

    def _refuse(self, name: str) -> None:
        on = f" on base={self.base!r}" if "base" in takes(self.method) else ""
        owners = [method for method in METHODS if name in takes(method)] or [m for m in METHODS if m != self.method]
        raise ConfigError(
            f"{name}={getattr(self, name)!r} has no meaning for method={self.method!r}{on}; allowed for {', '.join(owners)}"
        )

    @property
    def num_train_images(self) -> int:
        """Return the number of training images, including held-out ones; 0 if only the loaded data set can say."""
        return self.train_images or DATASETS.get(self.dataset, 0)

    @property
    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the result and are not at their defaults, so that a new field changes no identity."""
        fields = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        left_out = _NOT_IDENTITY if self.mode != "async" else ("link",)
        return {name: value for name, value, default in fields if value != default and name not in left_out}

    @property
    def run_id(self) -> str:
        """Return 16 hexadecimal digits that depend on every field that decides the result, but not on the order of fields."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Return the method's name, and BackLink's base if it is not GLL: "backlink", "backlink+infopro"."""
        return f"{self.method}+{self.base}" if self.base != "gll" else self.method

    @property
    def run_name(self) -> str:
        """Return a short name that sorts numerically, for example K08-l4-a0.50-e0.30-s0."""
        lr = f"{self.lr:.2f}" if 0.01 <= self.lr < 100 else f"{self.lr:.1e}"
        return f"K{self.num_modules:02d}-l{self.propagation_length}-a{self.alpha:.2f}-e{lr}-s{self.seed}"

    def replace(self, **changes: object) -> "RunConfig":
        """Return a copy with some fields changed, checked like a new one; options without a meaning in it are reset first."""
        values, options = vars(self), options_of(RunConfig)
        changes = {n: options[n].read(n, value) if n in options else value for n, value in changes.items()}
        reset = {name: option.default for name, option in _without_meaning({**values, **changes}).items()}
        return RunConfig(**{**values, **reset, **changes})


def _without_meaning(values: dict[str, Any]) -> dict[str, Option]:
    """Return the options that have no effect given the other values of a run."""
    options, method = options_of(RunConfig), values["method"]
    own = takes(method) | (takes(values["base"]) if "base" in takes(method) else frozenset())
    candidates = {*options_of(MethodOptions), "base"}
    found = {n: options[n] for n in candidates if n not in own or not options[n].has_meaning(values)}
    return found | ({"num_modules": options["num_modules"]} if method == BP.name else {})

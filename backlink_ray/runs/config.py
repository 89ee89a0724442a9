"""RunConfig: everything that decides the result of one training run, checked before anything starts."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backlink_ray.data.datasets import DATASETS
from backlink_ray.errors import ConfigError
from backlink_ray.importing import digest, is_path, parameters_of
from backlink_ray.local.engine import EngineOptions
from backlink_ray.local.heads import HEADS
from backlink_ray.local.sizes import check_propagation, module_sizes
from backlink_ray.local.split import SplitOptions
from backlink_ray.methods.backprop import BP
from backlink_ray.methods.catalogue import BASES, METHODS, MethodOptions, make_method, own_options, takes
from backlink_ray.nets.names import unit_count
from backlink_ray.options import (
    Option,
    check_options,
    choice,
    default_of,
    flag,
    mapping,
    number,
    options_of,
    text,
    whole,
    whole_numbers,
)  # fmt: skip
from backlink_ray.train.optim import SgdOptions
from backlink_ray.train.parts import check_replicas, check_whole, part_size

# These do not change a run's weights, so they are not part of its identity. Exceptions: in mode async the executor decides
# the order in which stages take their steps, and with batch norms of the whole batch how they round.
_NOT_IDENTITY = ("executor", "link")


@dataclass(frozen=True, kw_only=True)
class RunFields:
    """The fields of a run that every method has."""

    network: str = text("resnet32")
    """alexnet, vgg16, vit<depth>, resnet<6n+2> (resnet8, resnet32, resnet110), or your own: MODULE:FUNCTION."""
    dataset: str = choice(*DATASETS, default="cifar10-sample", importable=True)
    """cifar10-sample is part of the package; the others are downloaded into the data root; or MODULE:FUNCTION."""
    method: str = choice(*METHODS, default="backlink", importable=True)
    """Training method: backlink, bp, gll, dgl, ...; an unknown name lists them all; or MODULE:CLASS."""
    base: str = choice(*BASES, default="gll", importable=True)
    """backlink only: the method whose local losses it extends: gll, dgl, ...; an unknown name lists them all; or MODULE:CLASS."""
    options: Mapping[str, bool | int | float | str] = mapping()
    """Options of a method of your own: the fields that no built-in method has."""
    sizes: tuple[int, ...] = whole_numbers()
    """Units of each local module, from the first; K follows. By default sizes differ by one at most, see remainder."""
    loss: str = choice("cross-entropy", importable=True)
    """Loss of every head; or MODULE:FUNCTION, which maps logits and labels to a scalar."""
    optimizer: str = choice("sgd", importable=True)
    """sgd (Nesterov); or MODULE:NAME, for example torch.optim:AdamW; it gets weight_decay and momentum if it takes them."""
    lr: float = number(0.5)
    """eta: peak learning rate of SGD, after warm-up, before the cosine to zero."""
    warmup_fraction: float = number(0.05, 0.0, 1.0)
    """Fraction of the run in which the learning rate rises linearly (the paper's recipe: 10 of 200 epochs)."""
    batch_size: int = whole(512, 1)
    """Images per step."""
    replicas: int = whole(1, 1)
    """D: every stage has that many, each with its own part of the batch; gradients and statistics are averaged."""
    batch_norm: str = choice("part", "whole")
    """With replicas: each normalises by its part of the batch, or all by the whole batch, as without replicas."""
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
class RunConfig(MethodOptions, SgdOptions, EngineOptions, SplitOptions, RunFields):
    """One training run. Paper symbols: K = num_modules, l = propagation_length, eta = lr.

    Equal runs have equal identities: an option that the method does not have is set to the value that means its absence
    (l = 0, alpha = 1, K = 1 with bp, else the default), and any other value is refused.

    network, dataset, method, base, head, loss and optimizer can be import paths. Their files are part of a run's identity, so
    a changed model is a new run. A network of the user's is built, and K, l and sizes checked against it, when a run starts.
    """

    head: str = choice(*HEADS, default="fc", importable=True)
    """Auxiliary classifier of every local module: fc (pool, linear), conv, pool (PredSim's), mlp-sr (DGL's) or MODULE:NAME."""

    def __post_init__(self) -> None:
        check_options(self)
        object.__setattr__(self, "options", self._complete_options())
        method = make_method(self.method, self.base, self.values)  # checks that its options fit together
        check_replicas(self.replicas, method, self)
        part_size(self.batch_size, self.replicas)
        if self.batch_norm == "whole":
            check_whole(method, self, self.replicas)
        for name, option in _without_meaning(vars(self)).items():
            absent = option.default if option.unused is None else option.unused
            if getattr(self, name) not in (option.default, absent):
                self._refuse(name)
            object.__setattr__(self, name, absent)
        if self.sizes and self.num_modules not in (len(self.sizes), RunConfig.num_modules):
            raise ConfigError(
                f"num_modules={self.num_modules} contradicts sizes={self.sizes}; leave one of the two out"
            )
        if self.sizes:
            object.__setattr__(self, "num_modules", len(self.sizes))
        _ = self.optimizer_arguments  # checks that the optimizer takes them
        if not is_path(self.network):
            self.check_units(unit_count(self.network))

    def _complete_options(self) -> dict[str, Any]:
        """Return the method's own options, at their defaults where they were not given."""
        own, given = own_options(self.method, self.base), self.options
        for name in own:
            if name in options_of(RunConfig):
                raise ConfigError(
                    f"method={self.method!r} has a field {name!r}, which every run has; give it another name"
                )
        for name in given:
            if name not in own:
                raise ConfigError(
                    f"options={dict(given)} has {name!r}, which method={self.method!r} does not have as an option of its own; "
                    f"allowed: {', '.join(own) or 'none'}"
                    + f"; {name} is given to the run itself, beside options"
                    * (name in options_of(RunConfig))
                )
        return {name: option.read(name, given.get(name, option.default)) for name, option in sorted(own.items())}

    def check_units(self, num_units: int) -> None:
        """Raise ConfigError if K, sizes or l do not fit a network with `num_units`."""
        sizes = module_sizes(num_units, self.num_modules, self.remainder, self.network, self.sizes)
        check_propagation(self.propagation_length, sizes, self.network)

    @property
    def values(self) -> dict[str, Any]:
        """Return all fields, and the method's own options, by name."""
        return {**vars(self), **self.options}

    @property
    def digests(self) -> dict[str, str]:
        """Return the digest of the file behind each field that is an import path, "" for an installed distribution's."""
        return {name: digest(path, name) for name, path in self.import_paths.items()}

    @property
    def optimizer_arguments(self) -> dict[str, float]:
        """Return momentum and weight_decay, without what the optimizer does not take; ConfigError if that was given."""
        options, found = options_of(SgdOptions), {}
        takes_it = parameters_of(self.optimizer, "optimizer") if is_path(self.optimizer) else options.keys()
        for name, option in options.items():
            if name in takes_it:
                found[name] = getattr(self, name)
            elif getattr(self, name) != option.default:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is no argument of optimizer={self.optimizer!r}; allowed: {option.default}, "
                    "the default"
                )
        return found

    @property
    def import_paths(self) -> dict[str, str]:
        """Return the fields that are import paths."""
        importable = (name for name, option in options_of(RunConfig).items() if option.importable or name == "network")
        return {name: getattr(self, name) for name in importable if is_path(getattr(self, name))}

    def _refuse(self, name: str) -> None:
        on = f" on base={self.base!r}" if "base" in takes(self.method) else ""
        owners = [method for method in METHODS if name in takes(method)] or [m for m in METHODS if m != self.method]
        raise ConfigError(
            f"{name}={getattr(self, name)!r} has no meaning for method={self.method!r}{on}; allowed for {', '.join(owners)}"
        )

    @property
    def num_stages(self) -> int:
        """Return the number of stages of all replicas."""
        return self.num_modules * self.replicas

    @property
    def num_train_images(self) -> int:
        """Return the number of training images, including held-out ones; 0 if only the loaded data set can say."""
        return self.train_images or DATASETS.get(self.dataset, 0)

    @property
    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the result and are not at their defaults, so that a new field changes no identity.

        An import path has the digest of its file behind it.
        """
        fields = ((f.name, getattr(self, f.name), default_of(f)) for f in dataclasses.fields(self))
        decides = self.mode == "async" or self.batch_norm == "whole"
        left_out = ("link",) if decides else _NOT_IDENTITY
        found = {name: value for name, value, default in fields if value != default and name not in left_out}
        if self.sizes:
            found["sizes"] = list(self.sizes)  # as JSON reads it
        return found | {name: f"{found[name]}@{known}" for name, known in self.digests.items() if known}

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
        """Return a short name that sorts numerically, for example K08-l4-a0.50-e0.30-s0; own options come before the seed."""
        lr = f"{self.lr:.2f}" if 0.01 <= self.lr < 100 else f"{self.lr:.1e}"
        own = "".join(f"-{name}={value:.3g}" for name, value in self.options.items() if isinstance(value, int | float))
        replicas = f"-D{self.replicas}" * (self.replicas > 1) + "-whole" * (self.batch_norm == "whole")
        return f"K{self.num_modules:02d}{replicas}-l{self.propagation_length}-a{self.alpha:.2f}-e{lr}{own}-s{self.seed}"

    def replace(self, **changes: object) -> "RunConfig":
        """Return a copy with some fields or own options changed, checked like a new one.

        Options without a meaning in it are reset first.
        """
        known = options_of(RunConfig)
        own = {name: value for name, value in changes.items() if name not in known}
        changes = {name: known[name].read(name, value) for name, value in changes.items() if name in known}
        values = {**vars(self), **changes}
        if "sizes" in changes and "num_modules" not in changes:
            values["num_modules"] = RunConfig.num_modules  # K follows
        reset = {name: option.default for name, option in _without_meaning(values).items() if name not in changes}
        values |= reset
        if "options" not in changes:
            has = own_options(values["method"], values["base"])
            values["options"] = {name: value for name, value in self.options.items() if name in has} | own
        return RunConfig(**values)


def _without_meaning(values: dict[str, Any]) -> dict[str, Option]:
    """Return the options that have no effect given the other values of a run."""
    options, method = options_of(RunConfig), values["method"]
    own = takes(method) | (takes(values["base"], "base") if "base" in takes(method) else frozenset())
    candidates = {*options_of(MethodOptions), "base"}
    found = {n: options[n] for n in candidates if n not in own or not options[n].has_meaning(values)}
    return found | ({name: options[name] for name in ("num_modules", "sizes")} if method == BP.name else {})

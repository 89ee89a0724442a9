"""Space: the values that a search chooses from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from backlink_ray.errors import ConfigError
from backlink_ray.local.sizes import longest_propagation, module_sizes
from backlink_ray.runs.config import RunConfig

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
# Data and network are the same for all trials of a search: they are loaded and checked once.
_FIXED = ("network", "dataset", "train_images", "test_images", "sizes", "options", "executor", "seed")
_OWN_AXES = {"num_modules": "num_modules", "propagation_length": "longest"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The values that a search chooses from; what is not given stays as it is in the search's base.

    Attributes:
        num_modules: values of K, each 2 or more.
        longest: searches l in 1..longest, within the smallest module at K; 0: l stays.
        alphas: values of alpha.
        lr: lowest and highest eta, searched on a logarithmic scale.
        parameters: distributions of Optuna by name: of any other field of RunConfig, or option of a method of your own.

    Raises:
        ConfigError: a value of another kind.
    """

    num_modules: tuple[int, ...] = ()
    longest: int = 0
    alphas: tuple[float, ...] = ()
    lr: tuple[float, float] | tuple[()] = ()
    parameters: Mapping[str, Distribution] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, among in self.parameters.items():
            if not isinstance(among, Distribution):
                raise ConfigError(
                    f"parameters[{name!r}]={among!r} is a {type(among).__name__}; allowed: a distribution of Optuna, for example "
                    "FloatDistribution(0, 1)"
                )
        try:
            _ = self.searched
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"num_modules={self.num_modules}, longest={self.longest}, alphas={self.alphas}, lr={self.lr} cannot be searched "
                f"({error}); allowed: lists of values, and lr=(lowest, highest), above 0"
            ) from error

    @property
    def searched(self) -> dict[str, Distribution]:
        """Return what is searched, by field or option; the range of propagation_length depends on K."""
        found: dict[str, Distribution] = {}
        if self.num_modules:
            found["num_modules"] = CategoricalDistribution(self.num_modules)
        if self.longest:
            found["propagation_length"] = IntDistribution(1, self.longest)
        if self.alphas:
            found["alpha"] = CategoricalDistribution(self.alphas)
        if self.lr:
            found["lr"] = FloatDistribution(*self.lr, log=True)
        return found | dict(self.parameters)

    @property
    def lasting(self) -> dict[str, Any]:
        """Return what cannot change once Optuna has begun a search, as plain data: the names, and the values of a list."""
        lists = {name: among for name, among in self.searched.items() if isinstance(among, CategoricalDistribution)}
        return {name: list(lists[name].choices) if name in lists else "a range" for name in self.searched}

    def choice_of(self, run: RunConfig) -> dict[str, Any]:
        """Return what `suggest` returns where it chooses this run."""
        return {name: run.values[name] for name in self.searched}

    def suggest(self, base: RunConfig, num_units: int, trial: Any) -> dict[str, Any]:
        """Choose K, then l within its bound, and the rest.

        Args:
            trial: an optuna.Trial, or Ray's substitute for one.

        Returns:
            Values by field or option, see `searched`.
        """
        found: dict[str, Any] = {}
        for name, among in self.searched.items():
            if name == "propagation_length":
                among = IntDistribution(1, self._longest(base, num_units, found.get("num_modules", base.num_modules)))
            found[name] = _suggest(trial, name, among)
        return found

    def _longest(self, base: RunConfig, num_units: int, k: int) -> int:
        sizes = module_sizes(num_units, k, base.remainder, base.network, base.sizes)
        return min(self.longest, longest_propagation(sizes))

    def largest_at_each_k(self, base: RunConfig, num_units: int) -> list[RunConfig]:
        """Return one run for each K, with the longest tail and the largest batch."""
        largest = {name: max(_ends(among)) for name, among in self.parameters.items() if name == "batch_size"}
        runs = self.at_each_k(base.replace(**largest))
        lengths = [self._longest(base, num_units, run.num_modules) or run.propagation_length for run in runs]
        return [run.replace(propagation_length=length) for run, length in zip(runs, lengths, strict=True)]

    def at_each_k(self, base: RunConfig) -> list[RunConfig]:
        """Return one run for each K."""
        length = {"propagation_length": 1} if self.longest else {}
        return [base.replace(num_modules=k, **length) for k in self.num_modules or (base.num_modules,)]

    def check(self, base: RunConfig, num_units: int) -> None:
        """Raise ConfigError if a value is invalid, or something is searched that the base's method does not have."""
        if not self.searched:
            raise ConfigError("the space is empty; give num_modules, longest, alphas, lr or parameters")
        if self.num_modules and base.sizes:
            raise ConfigError(
                f"num_modules={self.num_modules} cannot be searched with sizes={base.sizes}; leave one out"
            )
        for name in self.parameters:
            if name in _FIXED:
                raise ConfigError(
                    f"parameters has {name!r}, which is the same for all trials; start one search for each value"
                )
            if name in _OWN_AXES or name in ("alpha" * bool(self.alphas), "lr" * bool(self.lr)):
                raise ConfigError(
                    f"parameters has {name!r}; search it by {_OWN_AXES.get(name, name + ' alone')} of the space"
                )
        for run in self.at_each_k(base):
            run.check_units(num_units)
            for name, among in self.searched.items():
                for value in _ends(among) if name not in _OWN_AXES else ():
                    run.replace(**{name: value})

    @property
    def text(self) -> str:
        """Return the space in words."""
        names = {"num_modules": "K", "propagation_length": "l", "lr": "eta"}
        return ", ".join(f"{names.get(name, name)} in {_text(among)}" for name, among in self.searched.items())


def _suggest(trial: Any, name: str, among: Distribution) -> Any:
    if isinstance(among, CategoricalDistribution):
        return trial.suggest_categorical(name, among.choices)
    suggest = {FloatDistribution: trial.suggest_float, IntDistribution: trial.suggest_int}[type(among)]
    return suggest(name, among.low, among.high, step=among.step, log=among.log)


def _ends(among: Distribution) -> tuple[Any, ...]:
    return among.choices if isinstance(among, CategoricalDistribution) else (among.low, among.high)


def _text(among: Distribution) -> str:
    return str(among.choices) if isinstance(among, CategoricalDistribution) else f"{among.low}..{among.high}"

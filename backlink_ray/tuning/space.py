"""Space: the values of K, l, alpha and eta that a search chooses from."""

from dataclasses import dataclass
from typing import Any

from backlink_ray.local.sizes import longest_propagation, module_sizes
from backlink_ray.nets.names import unit_count
from backlink_ray.runs.config import RunConfig

SEARCHED = ("num_modules", "propagation_length", "alpha", "lr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The values that a search chooses from. Every suggestion is a valid run: l is bounded by the smallest module at K.

    Attributes:
        num_modules: values of K, each 2 or more.
        longest: largest propagation length, even if K allows more.
        alphas: values of alpha; default: the paper's grid.
        lr: lowest and highest eta, searched on a logarithmic scale.
    """

    num_modules: tuple[int, ...] = (2, 4, 8, 16)
    longest: int = 4
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    lr: tuple[float, float] = (0.05, 1.0)

    def suggest(self, base: RunConfig, trial: Any) -> dict[str, Any]:
        """Choose K, then l within its bound, alpha and eta.

        Args:
            base: its network and remainder bound l.
            trial: an optuna.Trial, or Ray's substitute for one.

        Returns:
            The fields of RunConfig that SEARCHED names.
        """
        k = trial.suggest_categorical("num_modules", list(self.num_modules))
        limit = longest_propagation(module_sizes(unit_count(base.network), k, base.remainder, base.network))
        return {
            "num_modules": k,
            "propagation_length": trial.suggest_int("propagation_length", 1, min(limit, self.longest)),
            "alpha": trial.suggest_categorical("alpha", list(self.alphas)),
            "lr": trial.suggest_float("lr", *self.lr, log=True),
        }

    @property
    def text(self) -> str:
        """Return the space in words."""
        return (
            f"K in {self.num_modules}, l in 1..{self.longest} within the smallest module, alpha in {self.alphas}, "
            f"eta in {self.lr[0]}..{self.lr[1]}"
        )

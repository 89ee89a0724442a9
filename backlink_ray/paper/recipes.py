"""Recipes: how the paper trains each cell, and budgets that change its recipe for smaller runs."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backlink_ray.errors import ConfigError
from backlink_ray.paper.cells import Cell
from backlink_ray.runs.config import RunConfig

# Section IV.B of the paper.
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH_SIZES = {"cifar10": 512, "cifar100": 512, "cifar10-lt": 512, "svhn": 1024, "stl10": 128}
FC_LR = {"alexnet": 0.01, "vgg16": 0.01, "resnet32": 0.5, "resnet110": 0.3}
CONV_LR, STL10_LR = 0.5, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Changes to the paper's recipe for smaller runs; 0 and "" keep the recipe's value."""

    dataset: str = ""
    """Instead of the cell's own."""
    epochs: int = 0
    """Budget: epochs; 0 is the paper's 200."""
    train_images: int = 0
    """Budget: the first N training images; 0 is all."""
    test_images: int = 0
    """Budget: the first N test images; 0 is all."""
    batch_size: int = 0
    """Budget: images per step; 0 is the recipe's for the data set."""
    lr: float = 0.0
    """Budget: learning rate of every cell; 0 is the recipe's for network and heads."""
    warmup_fraction: float = 0.05
    """Budget: fraction of the run with a rising learning rate; the default is the paper's 10 of 200 epochs."""

    engine: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `local.engine.Engine` that differ from the default."""

    def __post_init__(self) -> None:
        for name in ("epochs", "train_images", "test_images", "batch_size", "lr"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; allowed 0 (the recipe's) or more")

    def over(self, other: "Budget") -> "Budget":
        """Return `other`, overridden by all values of this budget that differ from the defaults."""
        fields, default = dataclasses.fields(self), Budget()
        asked = {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != getattr(default, f.name)}
        return dataclasses.replace(other, **asked)

    @property
    def is_paper(self) -> bool:
        """Return whether nothing is changed that changes a result by more than rounding."""
        precision = self.engine.get("precision", "fp32")
        return precision == "fp32" and dataclasses.replace(self.over(PAPER), engine={}) == PAPER

    @property
    def slug(self) -> str:
        """Return a name for folders, for example 8epochs-10000images-b128-e0.1; "" for the paper's budget."""
        parts = (
            self.dataset, f"{self.epochs}epochs" * bool(self.epochs), f"{self.train_images}images" * bool(self.train_images),
            f"{self.test_images}test" * bool(self.test_images), f"b{self.batch_size}" * bool(self.batch_size),
            f"e{self.lr:g}" * bool(self.lr), f"w{self.warmup_fraction:g}" * (self.warmup_fraction != 0.05),
        )  # fmt: skip
        return "-".join(part for part in parts if part)

    @property
    def text(self) -> str:
        """Return the changes in words, for titles."""
        parts = (
            f"on {self.dataset}" * bool(self.dataset), f"{self.epochs} epoch{'s' * (self.epochs > 1)}" * bool(self.epochs),
            f"the first {self.train_images:,} training images" * bool(self.train_images),
            f"the first {self.test_images:,} test images" * bool(self.test_images),
            f"batch {self.batch_size}" * bool(self.batch_size), f"eta {self.lr:g}" * bool(self.lr),
            f"warm-up {self.warmup_fraction:g}" * (self.warmup_fraction != 0.05), self.engine.get("precision", ""),
        )  # fmt: skip
        return f"not the paper's budget ({', '.join(part for part in parts if part)})"


PAPER = Budget()
# Methods that were published with their own heads. With the heads of the table, DGL would equal GLL.
_OWN_HEADS = {"predsim": "pool", "dgl": "mlp-sr"}


def recipe(cell: Cell, budget: Budget = PAPER) -> RunConfig:
    """Return a cell's run at seed 0 without its alpha: the paper's recipe (section IV.B), as changed by a budget."""
    return RunConfig(
        network=cell.network,
        dataset=budget.dataset or cell.dataset,
        method=cell.method,
        base=cell.rerun if cell.propagation_length and cell.rerun else "gll",
        head=_OWN_HEADS.get(cell.rerun, cell.head),
        num_modules=cell.num_modules,
        propagation_length=cell.propagation_length,
        lr=budget.lr or paper_lr(cell),
        batch_size=budget.batch_size or BATCH_SIZES[cell.dataset],
        epochs=budget.epochs or 200,
        warmup_fraction=budget.warmup_fraction,
        train_images=budget.train_images,
        test_images=budget.test_images,
        **budget.engine,
    )


def paper_lr(cell: Cell) -> float:
    """Return the paper's learning rate: by network for fc heads, lower on STL-10; the same for all conv heads."""
    if cell.head == "conv":
        return CONV_LR
    return STL10_LR if cell.dataset == "stl10" else FC_LR[cell.network]


def with_alpha(config: RunConfig, alpha: float) -> RunConfig:
    """Return a run with its alpha. BackLink at alpha = 1 equals its base method, so the base's run is returned."""
    if config.method != "backlink":
        return config
    return config.replace(method=config.base) if alpha == 1.0 else config.replace(alpha=alpha)


def default_alpha(propagation_length: int) -> float:
    """Return alpha for BackLink runs without a choice of alpha: in the paper's Fig. 4, small values are best at large l."""
    return 0.25 if propagation_length > 2 else 0.5

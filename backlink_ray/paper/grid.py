"""Grid: the cells of the paper's tables as runs: which cells exist, each one's recipe, and how its alpha is chosen."""

import dataclasses
import difflib
import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import tyro

from backlink_ray.paper.cells import RERUN, Cell, cells, rerun_cells
from backlink_ray.runs.config import ConfigError, RunConfig, check_propagation, module_sizes, unit_count

# Section IV.B of the paper.
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH_SIZES = {"cifar10": 512, "cifar100": 512, "cifar10-lt": 512, "svhn": 1024, "stl10": 128}
FC_LR = {"alexnet": 0.01, "vgg16": 0.01, "resnet32": 0.5, "resnet110": 0.3}
CONV_LR, STL10_LR = 0.5, 0.1
SELECTION_SEED, SELECTION_FRACTION = 0, 0.1

Rows = Sequence[Mapping[str, Any]]


@cache
def addresses() -> dict[str, Cell]:
    """Return every cell that can be run by its address: the paper's 177, and our own columns of Table III."""
    return {cell.address: cell for cell in (*cells(), *rerun_cells())}


def find(address: str) -> Cell:
    """Return the cell at an address.

    Raises:
        ConfigError: no address, a cell that cannot exist (K or l does not fit the network), or one that the tables lack;
            names the rule, and what is there.
    """
    if address in addresses():
        return addresses()[address]
    parts = re.fullmatch(r"(table[234]/[^/]+/([^/]+)/[^/]+)/K(\d{1,9})/(?:(\w+)|(?:\w+\+)?l(\d{1,9}))", address)
    if not parts:
        raise ConfigError(
            f"cell={address!r} is no address; allowed: table2/cifar10/resnet110/fc/K8/l4 and its like "
            f"(GLL is l0, BP is K1/l0), and in table 3 .../K8/{{{','.join(RERUN)}}}{_nearest(address)}"
        )
    row, network, k, word, length = parts.groups()
    word_length = re.fullmatch(r"l(\d{1,9})", word or "")
    _check_exists(address, network, int(k), int(word_length[1] if word_length else length or 0))
    beside = [a for a in addresses() if a.startswith(f"{row}/K{k}/")]
    rule = f"at K={k} this row has {', '.join(a.rsplit('/', 1)[1] for a in beside)}" if beside else "no such row or K"
    raise ConfigError(f"cell={address!r} is not in the paper's tables: {rule}{_nearest(address)}")


def _check_exists(address: str, network: str, k: int, length: int) -> None:
    try:
        sizes = module_sizes(unit_count(network), k, network=network)
        check_propagation(length, sizes, network)
    except ConfigError as error:
        raise ConfigError(f"cell={address!r} cannot exist: {error}") from error


def _nearest(address: str) -> str:
    near = difflib.get_close_matches(address, addresses(), n=1, cutoff=0.8)
    return f"; nearest: {near[0]}" if near else ""


def choose(table: int, chosen: Iterable[str] = (), pattern: str = "") -> tuple[Cell, ...]:
    """Return cells of one table, in its order.

    Args:
        table: 2, 3 or 4.
        chosen: addresses.
        pattern: a glob over addresses, our own columns among them; "" is none. Without `chosen` and `pattern`: the paper's
            own cells.

    Raises:
        ConfigError: an address of no cell or of another table, or a pattern that matches nothing.
    """
    here = {a: cell for a, cell in addresses().items() if cell.table == table}
    wanted = {find(address).address for address in chosen}
    for address in wanted - set(here):
        raise ConfigError(f"cell={address!r} is not in table {table}; run studies/table_{address[5]}.py")
    matched = set(fnmatch.filter(here, pattern))
    if pattern and not matched:
        raise ConfigError(
            f"only={pattern!r} matches no cell of table {table}; allowed: a glob such as 'table{table}/*/K4/l*'"
            " (--dry-run lists the cells)"
        )
    if not wanted and not pattern:
        return tuple(cell for cell in here.values() if not cell.rerun)
    return tuple(cell for address, cell in here.items() if address in wanted | matched)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What replaces the paper's recipe in a smaller run; 0 and "" leave the recipe as it is."""

    dataset: Annotated[str, tyro.conf.Suppress] = ""
    """Instead of the cell's own."""
    epochs: int = 0
    """Budget: epochs; 0 is the paper's 200."""
    train_images: int = 0
    """Budget: the first N training images; 0 is all."""
    test_images: int = 0
    """Budget: the first N test images; 0 is all."""
    batch_size: int = 0
    """Budget: images a step; 0 is the recipe's for the data set."""
    lr: float = 0.0
    """Budget: learning rate of every cell; 0 is the recipe's for network and heads."""
    warmup_fraction: float = 0.05
    """Budget: part of the run in which the learning rate rises; the paper's 10 of 200 epochs is the default."""

    def __post_init__(self) -> None:
        for field in ("epochs", "train_images", "test_images", "batch_size", "lr"):
            if not getattr(self, field) >= 0:
                raise ConfigError(f"{field}={getattr(self, field)} is out of range; allowed 0 (the recipe's) or more")

    def over(self, other: "Budget") -> "Budget":
        """Return another budget with what this one asks for beside the recipe."""
        asked = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        return dataclasses.replace(other, **asked)

    @property
    def is_paper(self) -> bool:
        """Return whether this is the paper's own budget."""
        return self == Budget()

    @property
    def slug(self) -> str:
        """Return a name for folders, "" for the paper's budget, for example 8epochs-10000images-b128-e0.1."""
        parts = (
            self.dataset, f"{self.epochs}epochs" * bool(self.epochs), f"{self.train_images}images" * bool(self.train_images),
            f"{self.test_images}test" * bool(self.test_images), f"b{self.batch_size}" * bool(self.batch_size),
            f"e{self.lr:g}" * bool(self.lr), f"w{self.warmup_fraction:g}" * (self.warmup_fraction != 0.05),
        )  # fmt: skip
        return "-".join(part for part in parts if part)

    @property
    def text(self) -> str:
        """Return what is different, for titles."""
        parts = (
            f"on {self.dataset}" * bool(self.dataset), f"{self.epochs} epoch{'s' * (self.epochs > 1)}" * bool(self.epochs),
            f"the first {self.train_images:,} training images" * bool(self.train_images),
            f"the first {self.test_images:,} test images" * bool(self.test_images),
            f"batch {self.batch_size}" * bool(self.batch_size), f"eta {self.lr:g}" * bool(self.lr),
            f"warm-up {self.warmup_fraction:g}" * (self.warmup_fraction != 0.05),
        )  # fmt: skip
        return f"not the paper's budget ({', '.join(part for part in parts if part)})"


PAPER = Budget()


# Methods that were published with heads of their own. With those of the table DGL would be GLL over again.
_OWN_HEADS = {"predsim": "pool", "dgl": "mlp-sr"}


def recipe(cell: Cell, budget: Budget = PAPER) -> RunConfig:
    """Return a cell's run at seed 0, without its alpha: the paper's recipe (section IV.B), changed where a budget says so."""
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
    )


def paper_lr(cell: Cell) -> float:
    """Return the paper's learning rate: by network with fc heads, and less on STL-10; one for all with conv heads."""
    if cell.head == "conv":
        return CONV_LR
    return STL10_LR if cell.dataset == "stl10" else FC_LR[cell.network]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Cells with a budget, their seeds, and the values that alpha may take (one value: it is fixed)."""

    cells: tuple[Cell, ...]
    budget: Budget = PAPER
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    alphas: tuple[float, ...] = ALPHAS

    def candidates(self, cell: Cell) -> dict[float, RunConfig]:
        """Return the selection runs of a cell by alpha, on the training set without its held-out tenth; {} if none is needed."""
        if not cell.propagation_length or len(self.alphas) == 1:
            return {}
        base = recipe(cell, self.budget).replace(validation_fraction=SELECTION_FRACTION, seed=SELECTION_SEED)
        return {alpha: with_alpha(base, alpha) for alpha in self.alphas}

    def alpha(self, cell: Cell, rows: Rows) -> float:
        """Return a cell's alpha: of least held-out error, the smaller of equals. The test error is not looked at.

        Returns:
            nan while selection runs are missing, or when all of them failed.
        """
        candidates = self.candidates(cell)
        if not candidates:
            return self.alphas[0] if cell.propagation_length else 1.0
        ended = {row["run_id"]: row for row in rows}
        found = {alpha: ended.get(config.run_id) for alpha, config in candidates.items()}
        errors = {a: row["val_error_pct"] for a, row in found.items() if row and row["status"] == "FINISHED"}
        if None in found.values() or not errors:
            return math.nan
        return min(errors, key=lambda alpha: (errors[alpha], alpha))

    def runs(self, cell: Cell, rows: Rows) -> tuple[RunConfig, ...]:
        """Return a cell's full runs, one a seed, on the whole training set; () while its alpha is not known."""
        alpha = self.alpha(cell, rows)
        if math.isnan(alpha):
            return ()
        config = with_alpha(recipe(cell, self.budget), alpha)
        return tuple(config.replace(seed=seed) for seed in self.seeds)

    def todo(self, rows: Rows) -> tuple[RunConfig, ...]:
        """Return every run that is known to be wanted, each once: selection runs, and full runs where alpha is known."""
        wanted = [c for cell in self.cells for c in (*self.candidates(cell).values(), *self.runs(cell, rows))]
        return tuple({config.run_id: config for config in wanted}.values())

    def undecided(self, rows: Rows) -> tuple[Cell, ...]:
        """Return the cells whose alpha is not known."""
        return tuple(cell for cell in self.cells if math.isnan(self.alpha(cell, rows)))


def with_alpha(config: RunConfig, alpha: float) -> RunConfig:
    """Return a run with its alpha. BackLink at alpha = 1 is the method that it builds on, so it is that method's run."""
    if config.method != "backlink":
        return config
    return config.replace(method=config.base) if alpha == 1.0 else config.replace(alpha=alpha)


def usual_alpha(propagation_length: int) -> float:
    """Return alpha for a run of BackLink where nothing chooses it: the paper's Fig. 4 prefers small values at large l."""
    return 0.25 if propagation_length > 2 else 0.5


def as_choice(config: RunConfig, base: RunConfig) -> dict[str, Any]:
    """Return the fields in which a run differs from a study's base, as a Plan's cell; the executor is the base's."""
    values = ((f.name, getattr(config, f.name), getattr(base, f.name)) for f in dataclasses.fields(RunConfig))
    return {name: value for name, value, same in values if value != same and name != "executor"}

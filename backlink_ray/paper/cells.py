"""Cells: the published test errors of Tables II to IV and our additional columns, each cell with an address."""

import difflib
import fnmatch
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from backlink_ray.errors import ConfigError
from backlink_ray.local.sizes import check_propagation, module_sizes
from backlink_ray.nets.names import unit_count
from backlink_ray.runs.config import RunConfig

# Methods of Table III's columns that we run under the common recipe; the paper copied the first two, the others are ours.
RERUN = ("dgl", "infopro", "predsim", "dni", "ddg")
_BASES = ("dgl", "infopro", "predsim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One entry of the paper's tables (BP is K = 1, l = 0; GLL is l = 0), or of our additional columns.

    Attributes:
        error_pct: published test error in percent, mean of 5 trials. For BackLink the table gives the improvement over GLL
            in points, so this is GLL's error minus it, rounded to two decimals. None if the paper has no number.
        rerun: "" for the paper's runs, else one of RERUN: the method if l = 0, the base of BackLink if l > 0.
    """

    table: int
    dataset: str
    network: str
    head: str
    num_modules: int
    propagation_length: int
    error_pct: float | None
    rerun: str = ""

    @property
    def row(self) -> str:
        """Return the table, data set, network and head, for example table2/cifar10/resnet110/fc."""
        return f"table{self.table}/{self.dataset}/{self.network}/{self.head}"

    @property
    def address(self) -> str:
        """Return the address, for example table2/cifar10/resnet110/fc/K8/l4, .../K8/dgl or .../K8/infopro+l4."""
        length = f"l{self.propagation_length}"
        last = {"": length}.get(self.rerun, f"{self.rerun}+{length}" if self.propagation_length else self.rerun)
        return f"{self.row}/K{self.num_modules}/{last}"

    @property
    def method(self) -> str:
        """Return the method as in RunConfig: bp, gll, backlink, or one of RERUN."""
        if self.propagation_length:
            return "backlink"
        return self.rerun or ("bp" if self.num_modules == 1 else "gll")

    @property
    def copied(self) -> bool:
        """Return whether the paper copied the number from a paper with another recipe."""
        return bool(self.rerun) and self.error_pct is not None


@cache
def _rows() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads((Path(__file__).parent / "tables.json").read_text()))


@cache
def cells() -> tuple[Cell, ...]:
    """Return all published runs of Tables II, III and IV: 12 BP, 47 GLL and 118 BackLink."""
    return tuple(cell for row in _rows() for cell in _row_cells(row))


@cache
def rerun_cells() -> tuple[Cell, ...]:
    """Return our additional cells of Table III: RERUN at every K of the table, and BackLink on three of them at every l."""
    return tuple(cell for row in _rows() if "copied" in row for cell in _rerun_cells(row))


def _row_cells(row: dict[str, Any]) -> Iterator[Cell]:
    yield _cell(row, "1", "0", row["bp"])
    for k, gll in row["gll"].items():
        if gll is not None:
            yield _cell(row, k, "0", gll)
        for length, improvements in row["improvement"].items():
            if improvements[k] is not None:
                yield _cell(row, k, length, gll - improvements[k])


def _rerun_cells(row: dict[str, Any]) -> Iterator[Cell]:
    for k, gll in row["gll"].items():
        for method in RERUN:
            copied = row["copied"].get(method, {}).get(k)
            yield _cell(row, k, "0", None if copied is None else gll - copied, method)
        lengths = [length for length, improvements in row["improvement"].items() if improvements[k] is not None]
        yield from (_cell(row, k, length, None, base) for base in _BASES for length in lengths)


def _cell(row: dict[str, Any], num_modules: str, length: str, error: float | None, rerun: str = "") -> Cell:
    return Cell(
        **{key: row[key] for key in ("table", "dataset", "network", "head")},
        num_modules=int(num_modules),
        propagation_length=int(length),
        error_pct=None if error is None else round(error, 2),
        rerun=rerun,
    )


def published_error_pct(config: RunConfig) -> float | None:
    """Return the paper's test error for a run's network, data set, head, K and l; None if the paper has none."""
    if config.label not in ("bp", "gll", "backlink"):
        return None
    key = (config.dataset, config.network, config.head, config.num_modules, config.propagation_length)
    found = (c for c in cells() if (c.dataset, c.network, c.head, c.num_modules, c.propagation_length) == key)
    return next((cell.error_pct for cell in found), None)


@cache
def addresses() -> dict[str, Cell]:
    """Return all cells by address: the paper's 177, and our additional ones of Table III."""
    return {cell.address: cell for cell in (*cells(), *rerun_cells())}


def find(address: str) -> Cell:
    """Return the cell at an address.

    Raises:
        ConfigError: not an address, or a cell that cannot exist (K or l does not fit the network) or is not in the tables;
            names the rule and the cells nearby.
    """
    if address in addresses():
        return addresses()[address]
    parts = re.fullmatch(r"(table[234]/[^/]+/([^/]+)/[^/]+)/K(\d{1,9})/(?:(\w+)|(?:\w+\+)?l(\d{1,9}))", address)
    if not parts:
        raise ConfigError(
            f"cell={address!r} is not an address; allowed: for example table2/cifar10/resnet110/fc/K8/l4 "
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
    """Return cells of one table in its order.

    Args:
        pattern: a glob over addresses, including our additional cells. Without `chosen` and `pattern`, all cells of the
            paper are returned.

    Raises:
        ConfigError: an address of no cell or of another table, or a pattern without a match.
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

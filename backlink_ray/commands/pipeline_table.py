"""Pipeline table: measured pipelines on a terminal of 80 columns, and what to say where data parallel training is faster."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table

from backlink_ray.runs.results import Row

# By the heading: the column of a row, how it is written, and by what it is multiplied.
_NUMBERS = {
    "ms": ("step_s", ".0f", 1e3), "/ BP": ("ratio_to_bp", ".2f", 1), "of bound": ("fraction_of_bound", ".2f", 1),
    "waits": ("exposed_link_s", ".1f", 1e3), "plan": ("predicted_ratio", ".2f", 1),
}  # fmt: skip
_COLUMNS = ("run", "K", "l", "transport", "cut", "ms", "/ BP", "min..max", "of bound", "waits", "plan")
_LEGEND = "ms a step; waits: what the stage that waits least waits and exchanges; plan: predicted over measured"


def print_pipelines(rows: Sequence[Row]) -> None:
    """Print a table for each network."""
    for network, group in groupby(rows, key=lambda row: row["network"]):
        of_network = list(group)
        title = f"{network}, medians of {of_network[0]['n']} rounds; {_LEGEND}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=0)
        for heading in _COLUMNS:
            table.add_column(heading, justify="right" if heading in _NUMBERS else "left")
        for row in of_network:
            table.add_row(*_cells(row))
        Console(width=80).print(table)
        for line in notes(of_network):
            Console(width=80).print(line)


def _cells(row: Row) -> list[str]:
    written = {heading: _number(row, *how) for heading, how in _NUMBERS.items()}
    spread = f"{row['ratio_to_bp_min']:.2f}..{row['ratio_to_bp_max']:.2f}"
    names = (row["name"], row["num_modules"], row["propagation_length"], row["transport"], row["balance"])
    known = dict(zip(_COLUMNS, ("" if name is None else str(name) for name in names), strict=False))
    return [{**known, **written, "min..max": spread}[column] for column in _COLUMNS]


def _number(row: Row, column: str, how: str, unit: float) -> str:
    value = row[column]
    return "" if value is None else format(unit * value, how)


def notes(rows: Sequence[Row]) -> Iterator[str]:
    """Yield, for every K at which data parallel training is faster than all of ours, a sentence on that and on memory."""
    for ddp in (row for row in rows if row["name"] == "ddp"):
        ours = [row for row in rows if row["num_modules"] == ddp["num_modules"] and row["transport"]]
        if not ours or (best := min(ours, key=lambda row: row["step_s"]))["step_s"] <= ddp["step_s"]:
            continue
        yield (
            f"K = {ddp['num_modules']}: data parallel training (ddp) is faster, {ddp['ratio_to_bp']:.2f} of BP against "
            f"{best['ratio_to_bp']:.2f}. By plan each of its devices holds {ddp['device_mib']:,.0f} MiB, with the weights of the "
            f"whole network, and the fullest one of that cut {best['device_mib']:,.0f} MiB at the same batch, with those of its "
            f"module alone: {_verdict(ddp, best)}."
        )


def _verdict(ddp: Row, best: Row) -> str:
    if best["device_mib"] < ddp["device_mib"]:
        return "one cuts by modules what does not fit a device"
    return "here nothing speaks for that cut; where weights weigh more than activations, it needs less memory"

"""Figure: what the figures of the paper share: how they look, what a caption says, and their files."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from backlink_ray import provenance
from backlink_ray.commands.publish import made_with
from backlink_ray.paper.grid import BATCH_SIZES
from backlink_ray.runs.config import ConfigError, RunConfig
from backlink_ray.runs.results import Value
from backlink_ray.tracking.journal import NoTracker
from backlink_ray.tracking.spool import slug
from backlink_ray.tracking.tracker import Tracker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

INK, PALE = "#333333", "#BBBBBB"
# Okabe and Ito's colours, told apart with any colour vision; a series looks the same in every figure.
COLOURS = ("#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#D55E00")
_LOOKS = {
    "BP": (INK, "s"), "GLL": (COLOURS[4], "o"), "InfoPro": (COLOURS[5], "X"),
    "BackLink l=1": (COLOURS[0], "^"), "BackLink l=2": (COLOURS[1], "v"),
    "BackLink l=3": (COLOURS[2], "D"), "BackLink l=4": (COLOURS[3], "P"),
}  # fmt: skip
_OTHERS = (("#56B4E9", "^"), ("#0072B2", "v"), ("#009E73", "D"), ("#CC79A7", "P"), ("#E69F00", "o"), ("#D55E00", "X"))
_CAPTION_PT = 8.0


# How figures look


def series_of(config: RunConfig) -> str:
    """Return the name of a run's series: "BP", "GLL", "InfoPro", "BackLink l=2"."""
    if config.method == "backlink":
        base = {"gll": "", "infopro": "+InfoPro"}.get(config.base, f"+{config.base}")
        return f"BackLink{base} l={config.propagation_length}"
    return {"infopro": "InfoPro", "predsim": "PredSim"}.get(config.method, config.method.upper())


def name_of(config: RunConfig) -> str:
    """Return a run's name for people: "BP", "GLL K=4", "BackLink l=2 K=4"."""
    return series_of(config) + f" K={config.num_modules}" * (config.method != "bp")


def look(series: str, index: int = 0) -> dict[str, Any]:
    """Return colour and marker of a series for matplotlib; a series without a look of its own takes the index-th."""
    colour, marker = _LOOKS.get(series, _OTHERS[index % len(_OTHERS)])
    return {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": 1.5, "label": series}


def rank(series: str) -> int:
    """Return where a series stands in a legend: BP, GLL, InfoPro, BackLink by l, then what has no look of its own."""
    return [*_LOOKS, series].index(series)


def new_figure(columns: int, title: str, *, rows: int = 1, height_in: float = 4.2) -> "tuple[Figure, list[Axes]]":
    """Return a figure and its panels, row by row, under a title; it needs no screen.

    Args:
        columns, rows: of panels.
        title: of the whole.
        height_in: of one row; a panel is about as wide.
    """
    from matplotlib.figure import Figure  # here: a study without a picture needs no drawing library

    figure = Figure(figsize=(2.4 + 3.9 * columns, 0.6 + height_in * rows), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", color=INK)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def dress(axes: "Axes", title: str, x: str, y: str) -> None:
    """Give a panel its title and the names of its axes, with units."""
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)


def legend(figure: "Figure", title: str = "") -> None:
    """Put one legend of all panels' series beside them, each series once."""
    found = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    once = {label: handle for handle, label in sorted(found, key=lambda pair: rank(pair[1]))}
    figure.legend(
        list(once.values()), list(once), loc="outside right upper", frameon=False, fontsize=9, title=title or None
    )


def mark_paper(axes: "Axes", x: float, y: float, text: str, offset_pt: tuple[float, float] = (-8.0, 28.0)) -> None:
    """Draw a point that the paper's text quotes, as a star with its words; offset_pt is where they end, seen from it."""
    axes.plot([x], [y], marker="*", markersize=11, color="white", markeredgecolor=INK, linestyle="", zorder=6)
    axes.annotate(
        text, (x, y), xytext=offset_pt, textcoords="offset points", fontsize=7.5, color=INK, zorder=5, ha="right",
        arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.8, "relpos": (1.0, 0.5)},
    )  # fmt: skip


# What a caption says


def hardware(device: str) -> str:
    """Return the name of a device: the GPU's, or the processor's with its cores."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    about = provenance.describe()
    return f"{about['cpu_cores']} cores of {about['cpu'] or 'an unnamed processor'}"


def hardware_of_runs(rows: Sequence[Mapping[str, Any]], *folders: Path) -> str:
    """Return what the runs of some studies were carried out with, as their own folders say."""
    found = [line for folder in folders for line in made_with(folder, rows)]
    return f"Hardware: {'; '.join(found) or 'not recorded'}"


def is_paper_budget(config: RunConfig) -> bool:
    """Tell whether a run has the paper's epochs, images and batch size."""
    whole = config.dataset != "cifar10-sample" and not config.train_images and not config.test_images
    return whole and config.epochs == 200 and config.batch_size == BATCH_SIZES[config.dataset]


def budget(config: RunConfig) -> str:
    """Return what a run is trained with, and that this is not the paper's budget where it is not."""
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    text = f"{epochs} of {config.num_train_images:,} images, batch {config.batch_size}"
    return text if is_paper_budget(config) else f"{text} (not the paper's budget)"


def caption_of(config: RunConfig, where: str, seeds: Collection[int], *notes: str) -> str:
    """Return the caption of a figure of training runs: network, data set, budget, hardware, seeds of the points, notes."""
    low, high = min(seeds), max(seeds)
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    about = "1 seed a point" if high == 1 else f"Mean and standard deviation of {n} seeds a point"
    place = f"{config.network} on {config.dataset}, {config.head} heads"
    return ". ".join([place, budget(config), where, about, *filter(None, notes)])


def left_out(missing: Sequence[RunConfig]) -> str:
    """Return a caption's note on what has no result: how many, and the first of them by name; "" where nothing lacks."""
    names = ", ".join(f"{config.network} {config.label} {config.run_name}" for config in missing[:4])
    more = ", ..." * (len(missing) > 4)
    return f"Left out, without a result: {len(missing)} ({names}{more})" if missing else ""


# Files


def save_figure(
    figure: "Figure", rows: Sequence[Mapping[str, Value]], name: str, folder: Path, *, caption: str,
    tracker: Tracker | NoTracker | None = None,
) -> list[Path]:  # fmt: skip
    """Write a figure as PNG with its caption below, its data as CSV and Parquet, and log all three as MLflow artifacts.

    Args:
        figure: laid out by "constrained"; see `new_figure`.
        rows: the data, one row a point; a column that a row lacks is empty there.
        name: of the files, and of the figure's run in MLflow.
        folder: where they go; made if missing.
        caption: network, data set, budget, hardware, n.
        tracker: open; None tracks nothing.

    Returns:
        The PNG, the CSV and the Parquet file.

    Raises:
        ConfigError: no rows, or a folder that cannot be written.
    """
    if not rows:
        raise ConfigError(f"figure {name!r} has no data to draw; measure or run something first")
    _write_caption(figure, caption)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "csv", "parquet")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], dpi=150, metadata={"Description": caption})
        table = _table(rows)
        pyarrow.csv.write_csv(table, paths[1])
        pq.write_table(table, paths[2])
    except OSError as error:
        raise ConfigError(f"folder {str(folder)!r} cannot be written ({error.strerror}); give another") from error
    _track(paths, name, caption, tracker or NoTracker())
    return paths


def _write_caption(figure: "Figure", caption: str) -> None:
    width_in, height_in = figure.get_size_inches()
    lines = textwrap.wrap(caption, int(width_in * 72 / (_CAPTION_PT * 0.54)))
    share = (len(lines) * _CAPTION_PT * 1.35 + 6) / 72 / height_in
    figure.text(0.01, 0.012, "\n".join(lines), fontsize=_CAPTION_PT, color="#555555", ha="left", va="bottom")
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, share, 1, 1 - share))  # type: ignore[call-arg]  # constrained layout has it


def _table(rows: Sequence[Mapping[str, Value]]) -> pa.Table:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return pa.Table.from_pydict({column: [row.get(column) for row in rows] for column in columns})


def _track(paths: Sequence[Path], name: str, caption: str, tracker: Tracker | NoTracker) -> None:
    about = provenance.describe()
    tags = {"figure": name, "caption": caption, "version": about["backlink_ray"], "commit": about["commit"]}
    tracker.start_run(slug(name), name, {}, tags)
    for path in paths:
        tracker.log_artifact(slug(name), path)
    tracker.end_run(slug(name), "FINISHED", "drawn")

"""Sensitivity: the picture of test error over one hyper-parameter, a panel for each K, a line for each l (Figs. 4 and 5)."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backlink_ray.figures.captions import caption_of, hardware_of_runs, is_paper_budget, left_out
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.save import save_figure
from backlink_ray.figures.style import format_axes, legend, line_style, mark_paper, new_figure, series_of
from backlink_ray.paper.cells import find, published_error_pct
from backlink_ray.paper.recipes import recipe
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row, config_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PAPER = recipe(find("table2/cifar10/resnet32/fc/K4/l2"))
SMOKE = PAPER.replace(
    network="resnet14", dataset="cifar10-sample", lr=0.05, batch_size=32, epochs=1, train_images=320, test_images=200,
    executor="local",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is varied.

    Attributes:
        field: of RunConfig, "alpha" or "lr".
        label: of the axis, with its unit.
        values: its ticks.
        logarithmic: how it is drawn.
        quoted: values that the paper's text names, with its words.
    """

    field: str
    label: str
    values: tuple[float, ...]
    logarithmic: bool = False
    quoted: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """The runs of one series at one value: mean and standard deviation of the test error in percent over n seeds."""

    x: float
    mean: float
    std: float
    n: int


def curves(rows: Sequence[Row], axis: Axis) -> dict[str, list[Point]]:
    """Return each series' points in order of x, the seeds of a point taken together.

    Over alpha, GLL is not a series of its own: it is BackLink at alpha = 1 for every l, and ends every line.

    Args:
        rows: finished runs of one K.
        axis: what is varied.
    """
    groups: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        config = config_of(row)
        series = groups.setdefault(series_of(config), {})
        series.setdefault(float(getattr(config, axis.field)), []).append(float(row["test_error_pct"]))
    gll = groups.pop("GLL", {}) if axis.field == "alpha" and len(groups) > 1 else {}
    for series in groups.values():
        series.update(gll)
    return {name: [_point(x, errors) for x, errors in sorted(groups[name].items())] for name in sorted(groups)}


def _point(x: float, errors: list[float]) -> Point:
    return Point(x, statistics.mean(errors), statistics.stdev(errors) if len(errors) > 1 else 0.0, len(errors))


def draw_sensitivity(data: FigureData, axis: Axis, name: str, title: str, *notes: str) -> list[Path]:
    """Draw the picture of a finished grid, write and track it.

    Args:
        data: the grid's runs.
        axis: what they vary.
        name: of the files.
        title: above the panels.
        notes: ends of the caption.
    """
    rows: list[Row] = [dict(row) for row in data.rows]
    ks = sorted({int(row["num_modules"]) for row in rows})
    figure, panels = new_figure(len(ks), title)
    counts = set()
    for axes, k in zip(panels, ks, strict=True):
        of_k = [row for row in rows if row["num_modules"] == k]
        found = curves(of_k, axis)
        _draw_panel(axes, found, axis, f"K = {k}")
        _mark_gll(axes, of_k, axis)
        counts |= {point.n for points in found.values() for point in points}
    limits = [limit for axes in panels for limit in axes.get_ylim()]
    low, high = min(limits), max(limits)
    for axes in panels:  # one scale: how much more sensitive one K is than another is the question
        axes.set_ylim(low - 0.1 * (high - low), high + 0.12 * (high - low))  # with room for the paper's words
    legend(figure)
    made = hardware_of_runs(rows, data.folder)
    caption = caption_of(data.plan.base, made, counts, *notes, left_out(data.missing))
    return save_figure(figure, rows, name, data.folder, caption=caption)


def _draw_panel(axes: "Axes", found: dict[str, list[Point]], axis: Axis, title: str) -> None:
    format_axes(axes, title, axis.label, "test error [%]")
    for index, (series, points) in enumerate(found.items()):
        x, y, spread = [p.x for p in points], [p.mean for p in points], [p.std for p in points]
        if any(spread):
            axes.errorbar(x, y, yerr=spread, capsize=2.5, **line_style(series, index))
        else:
            axes.plot(x, y, **line_style(series, index))
    for value, words in axis.quoted:
        axes.axvline(value, color="#888888", linewidth=0.8, linestyle="--", zorder=0)
        axes.annotate(
            words, (value, 0.015), xycoords=axes.get_xaxis_transform(), xytext=(-4, 0), textcoords="offset points",
            fontsize=7.5, color="#666666", ha="right",
        )  # fmt: skip
    if axis.logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(axis.values, [f"{value:g}" for value in axis.values])
    axes.minorticks_off()


def _mark_gll(axes: "Axes", rows: Sequence[Row], axis: Axis) -> None:
    """At the paper's budget, mark its GLL error: Table II's, where alpha = 1 or eta is the recipe's."""
    gll: list[RunConfig] = [config for config in map(config_of, rows) if config.method == "gll"]
    published = published_error_pct(gll[0]) if gll else None
    if published is not None and is_paper_budget(gll[0]):
        mark_paper(axes, 1.0 if axis.field == "alpha" else PAPER.lr, published, f"paper: GLL {published:.2f} %")

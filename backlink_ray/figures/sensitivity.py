"""Sensitivity: test error over one hyperparameter, with a panel for each K and a line for each l (Figs. 4 and 5)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backlink_ray.figures.captions import caption_of, hardware_of_runs, is_paper_budget, left_out
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.save import save_figure
from backlink_ray.figures.style import (
    QUOTE,
    QUOTED_LINE,
    format_axes,
    label_values,
    legend,
    line_style,
    mark_paper,
    new_figure,
    series_of,
)
from backlink_ray.paper.cells import find, published_error_pct
from backlink_ray.paper.recipes import recipe
from backlink_ray.paper.scores import Spread
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
    """The hyperparameter that is varied.

    Attributes:
        field: of RunConfig, "alpha" or "lr".
        label: of the axis.
        values: its ticks.
        logarithmic: scale of the axis.
        quoted: values that the paper's text names, with labels.
    """

    field: str
    label: str
    values: tuple[float, ...]
    logarithmic: bool = False
    quoted: tuple[tuple[float, str], ...] = ()


def curves(rows: Sequence[Row], axis: Axis) -> dict[str, dict[float, Spread]]:
    """Return the test error in percent of each series by the value on the axis, in ascending order.

    Over alpha, GLL is not a series: it is BackLink at alpha = 1 for every l, so it is the last point of every line.

    Args:
        rows: finished runs at one K.
    """
    groups: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        config = config_of(row)
        series = groups.setdefault(series_of(config), {})
        series.setdefault(float(getattr(config, axis.field)), []).append(float(row["test_error_pct"]))
    gll = groups.pop("GLL", {}) if axis.field == "alpha" and len(groups) > 1 else {}
    for series in groups.values():
        series.update(gll)
    return {
        name: {x: spread for x in sorted(groups[name]) if (spread := Spread.of(groups[name][x]))}
        for name in sorted(groups)
    }


def draw_sensitivity(data: FigureData, axis: Axis, name: str, title: str, *notes: str) -> list[Path]:
    """Draw a sensitivity figure and return its files."""
    rows = data.rows
    ks = sorted({int(row["num_modules"]) for row in rows})
    figure, panels = new_figure(len(ks), title)
    counts = set()
    for axes, k in zip(panels, ks, strict=True):
        of_k = [row for row in rows if row["num_modules"] == k]
        found = curves(of_k, axis)
        _draw_panel(axes, found, axis, f"K = {k}")
        _mark_gll(axes, of_k, axis)
        counts |= {spread.n for points in found.values() for spread in points.values()}
    limits = [limit for axes in panels for limit in axes.get_ylim()]
    low, high = min(limits), max(limits)
    for axes in panels:  # one scale, so that the sensitivities at different K can be compared
        axes.set_ylim(low - 0.1 * (high - low), high + 0.12 * (high - low))  # room for the quotes
    legend(figure)
    made = hardware_of_runs(rows, data.folder)
    caption = caption_of(data.plan.base, made, counts, *notes, left_out(data.missing))
    return save_figure(figure, rows, name, data.folder, caption=caption)


def _draw_panel(axes: "Axes", found: dict[str, dict[float, Spread]], axis: Axis, title: str) -> None:
    format_axes(axes, title, axis.label, "test error [%]")
    for index, (series, points) in enumerate(found.items()):
        means, stds = [p.mean for p in points.values()], [p.std for p in points.values()]
        bars = None if all(map(math.isnan, stds)) else stds
        axes.errorbar(list(points), means, yerr=bars, capsize=2.5, **line_style(series, index))
    for value, words in axis.quoted:
        axes.axvline(value, **QUOTED_LINE)
        axes.annotate(
            words, (value, 0.015), xycoords=axes.get_xaxis_transform(), xytext=(-4, 0), textcoords="offset points",
            fontsize=7.5, color=QUOTE, ha="right",
        )  # fmt: skip
    label_values(axes, axis.values, base=10 if axis.logarithmic else 0)


def _mark_gll(axes: "Axes", rows: Sequence[Row], axis: Axis) -> None:
    """At the paper's budget, mark GLL's error from Table II, at alpha = 1 or at the eta of the recipe."""
    gll = [config for config in map(config_of, rows) if config.method == "gll"]
    published = published_error_pct(gll[0]) if gll else None
    if published is not None and is_paper_budget(gll[0]):
        mark_paper(axes, 1.0 if axis.field == "alpha" else PAPER.lr, published, f"paper: GLL {published:.2f} %")

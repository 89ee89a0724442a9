"""Style: colours, markers, axes and legends, the same in all figures."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from backlink_ray.runs.config import RunConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


TITLE_PT = 11.0
INK, PALE, QUOTE = "#333333", "#BBBBBB", "#666666"
# Okabe and Ito's palette, which is safe for colour blindness.
COLOURS = ("#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#D55E00")
MARKERS = "^vDPoX"
# Series with the same style in every figure.
_STYLES = {
    "BP": (INK, "s"), "GLL": (COLOURS[4], MARKERS[4]), "InfoPro": (COLOURS[5], MARKERS[5]),
    **{f"BackLink l={i + 1}": (COLOURS[i], MARKERS[i]) for i in range(4)},
}  # fmt: skip
# A value that the paper quotes, as a line across a panel.
QUOTED_LINE: dict[str, Any] = {"color": "#888888", "linewidth": 0.8, "linestyle": "--", "zorder": 0}


def series_of(config: RunConfig) -> str:
    """Return the name of a run's series: "BP", "GLL", "InfoPro", "BackLink l=2"."""
    if config.method == "backlink":
        base = {"gll": "", "infopro": "+InfoPro"}.get(config.base, f"+{config.base}")
        return f"BackLink{base} l={config.propagation_length}"
    return {"infopro": "InfoPro", "predsim": "PredSim"}.get(config.method, config.method.upper())


def name_of(config: RunConfig) -> str:
    """Return a run's name in messages: "BP", "GLL K=4", "BackLink l=2 K=4"."""
    return series_of(config) + f" K={config.num_modules}" * (config.method != "bp")


def line_style(series: str, index: int = 0) -> dict[str, Any]:
    """Return a series' colour, marker and label for matplotlib; a series without a fixed style gets the index-th."""
    colour, marker = _STYLES.get(series, (COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]))
    return {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": 1.5, "label": series}


def legend_order(series: str) -> int:
    """Return a series' position in a legend: BP, GLL, InfoPro, BackLink by l, then all others."""
    return [*_STYLES, series].index(series)


def new_figure(columns: int, title: str, *, rows: int = 1, height_in: float = 4.2) -> "tuple[Figure, list[Axes]]":
    """Return a figure and its panels, about square, row by row; needs no display. A row is height_in inches high."""
    from matplotlib.figure import Figure  # imported here so that studies without a figure do not need matplotlib

    width_in = 2.4 + 3.9 * columns
    figure = Figure(figsize=(width_in, 0.6 + height_in * rows), layout="constrained")
    lines = textwrap.wrap(title, int((width_in - 1.8) * 72 / (TITLE_PT * 0.58)))
    figure.suptitle("\n".join(lines), fontsize=TITLE_PT, x=0.01, ha="left", color=INK)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def format_axes(axes: "Axes", title: str, x: str, y: str) -> None:
    """Set a panel's title and axis labels (with units), and its spines and grid."""
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)


def label_values(axes: "Axes", values: Sequence[float], base: int = 0) -> None:
    """Put x-axis ticks exactly at `values`; base 2 or 10 makes the axis logarithmic."""
    if base:
        axes.set_xscale("log", base=base)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()


def legend(figure: "Figure") -> None:
    """Add one legend for all panels, with each series once."""
    found = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    once = {label: handle for handle, label in sorted(found, key=lambda pair: legend_order(pair[1]))}
    figure.legend(list(once.values()), list(once), loc="outside right upper", frameon=False, fontsize=9)


def quote(axes: "Axes", y: float, text: str) -> None:
    """Draw a value that the paper quotes as a line across a panel, with a label above its right end."""
    axes.axhline(y, **QUOTED_LINE)
    place, plain = axes.get_yaxis_transform(), {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.text(0.99, y + 0.015, text, fontsize=7, color=QUOTE, bbox=plain, zorder=3, ha="right", transform=place)


def mark_paper(axes: "Axes", x: float, y: float, text: str, offset_pt: tuple[float, float] = (-8.0, 28.0)) -> None:
    """Mark a point that the paper's text quotes with a star and a label, whose right end is offset_pt from the point."""
    axes.plot([x], [y], marker="*", markersize=11, color="white", markeredgecolor=INK, linestyle="", zorder=6)
    axes.annotate(
        text, (x, y), xytext=offset_pt, textcoords="offset points", fontsize=7.5, color=INK, zorder=5, ha="right",
        arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.8, "relpos": (1.0, 0.5)},
    )  # fmt: skip

"""Figure: what the figures of the paper share: how they look, what a caption says, and their files."""

from typing import TYPE_CHECKING, Any

from backlink_ray.runs.config import RunConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, PALE = "#333333", "#BBBBBB"
# Okabe and Ito's colours, told apart with any colour vision; a series looks the same in every figure.
COLOURS = ("#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#D55E00")
_LOOKS = {
    "BP": (INK, "s"), "GLL": (COLOURS[4], "o"), "InfoPro": (COLOURS[5], "X"),
    "BackLink l=1": (COLOURS[0], "^"), "BackLink l=2": (COLOURS[1], "v"),
    "BackLink l=3": (COLOURS[2], "D"), "BackLink l=4": (COLOURS[3], "P"),
}  # fmt: skip
_OTHERS = (("#56B4E9", "^"), ("#0072B2", "v"), ("#009E73", "D"), ("#CC79A7", "P"), ("#E69F00", "o"), ("#D55E00", "X"))


def series_of(config: RunConfig) -> str:
    """Return the name of a run's series: "BP", "GLL", "InfoPro", "BackLink l=2"."""
    if config.method == "backlink":
        base = {"gll": "", "infopro": "+InfoPro"}.get(config.base, f"+{config.base}")
        return f"BackLink{base} l={config.propagation_length}"
    return {"infopro": "InfoPro", "predsim": "PredSim"}.get(config.method, config.method.upper())


def name_of(config: RunConfig) -> str:
    """Return a run's name for people: "BP", "GLL K=4", "BackLink l=2 K=4"."""
    return series_of(config) + f" K={config.num_modules}" * (config.method != "bp")


def line_style(series: str, index: int = 0) -> dict[str, Any]:
    """Return colour and marker of a series for matplotlib; a series without a look of its own takes the index-th."""
    colour, marker = _LOOKS.get(series, _OTHERS[index % len(_OTHERS)])
    return {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": 1.5, "label": series}


def legend_order(series: str) -> int:
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


def format_axes(axes: "Axes", title: str, x: str, y: str) -> None:
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
    once = {label: handle for handle, label in sorted(found, key=lambda pair: legend_order(pair[1]))}
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

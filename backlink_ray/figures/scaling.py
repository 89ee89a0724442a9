"""Scaling: the predicted time of a step over the number of devices, and beyond which number more of them do not pay."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backlink_ray.figures.style import INK, QUOTED_LINE, format_axes, label_values, legend, line_style, new_figure
from backlink_ray.files import make_folder
from backlink_ray.planning.scaling import Choice, enough, linked, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_scaling(found: Sequence[Choice], bp_s: float, path: Path, title: str) -> None:
    """Write a PNG: over devices, the step of every l beside BP's, and BP's divided by the devices as a share of it.

    Args:
        found: for every l and number of devices the fastest pipeline; what is fastest with a link is marked where it is enough.
        bp_s: seconds of a step of BP on one device.
        path: the file; its folder is created.
        title: of the figure.
    """
    figure, (time, share) = new_figure(2, title)
    for index, length in enumerate(sorted({each.length for each in found})):
        own = [each for each in found if each.length == length]
        numbers, style = [each.devices for each in own], line_style(f"BackLink l={length}" if length else "GLL", index)
        time.plot(numbers, [1e3 * each.plan.step_s for each in own], **style)
        share.plot(numbers, [bp_s / each.devices / each.plan.step_s for each in own], **style)
    devices = sorted({each.devices for each in found})
    time.axhline(1e3 * bp_s, label="BP on one device", **QUOTED_LINE)
    ideal: dict[str, Any] = {"color": INK, "linestyle": ":", "label": "BP / N"}
    time.plot(devices, [1e3 * bp_s / number for number in devices], **ideal)
    share.plot(devices, [1.0 for _ in devices], **ideal)
    format_axes(time, "Time of a step", "N devices, each with one stage at most", "ms")
    format_axes(share, "Share of the ideal", "N devices, each with one stage at most", "(BP / N) / time of a step")
    share.set_ylim(bottom=0)
    for axes in (time, share):
        label_values(axes, devices, base=2)
    _label_times(time)
    _mark(time, linked(found))
    legend(figure)
    make_folder(path.parent, "picture")
    figure.savefig(path, dpi=115)  # 1,200 wide


def _label_times(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mark(axes: "Axes", found: Sequence[Choice]) -> None:
    """Ring the number of devices that is enough, and say so in the lower left corner, where no line goes."""
    at = enough(found)
    point = (at.devices, 1e3 * at.plan.step_s)
    axes.plot(*[[value] for value in point], marker="o", markersize=15, color=INK, fillstyle="none", linestyle="")
    axes.annotate(
        verdict(found).replace(", ", ",\n"), point, xytext=(0.03, 0.05), textcoords="axes fraction", color=INK,
        fontsize=9, arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkB": 8},
    )  # fmt: skip

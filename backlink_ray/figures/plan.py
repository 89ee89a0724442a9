"""Plan: the predicted time of a step over the number of modules, and the memory of the fullest device."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from backlink_ray.figures.style import (
    INK,
    QUOTED_LINE,
    format_axes,
    label_values,
    legend,
    line_style,
    new_figure,
    quote,
)
from backlink_ray.files import make_folder
from backlink_ray.planning.plan import Prediction


def draw_plan(found: Sequence[Prediction], path: Path, title: str, quoted: Mapping[float, str]) -> None:
    """Write a PNG: over K, the fastest step of every l as a ratio to BP's, what it would be without waiting, and its memory.

    Args:
        found: predictions; of several of one K and l the fastest is drawn.
        path: the file; its folder is created.
        title: of the figure.
        quoted: ratios that the paper quotes, each with whose it is.
    """
    figure, (time, memory) = new_figure(2, title)
    for index, length in enumerate(sorted({each.link.length for each in found if len(each.sizes) > 1})):
        best = _fastest(found, length)
        counts = [len(each.sizes) for each in best]
        style = line_style(f"BackLink l={length}" if length else "GLL", index)
        time.plot(counts, [each.ratio_to_bp for each in best], **style)
        time.plot(counts, [each.ratio_to_bp * max(each.busy) for each in best], color=style["color"], linestyle=":")
        memory.plot(counts, [each.memory_mib for each in best], **style)
    format_axes(
        time, "Time of a step (dotted: its slowest stage alone)", "K, local modules", "ratio to BP on one device"
    )
    format_axes(memory, "Memory of the fullest device", "K, local modules", "MiB")
    time.axhline(1.0, **QUOTED_LINE)
    for bp in (each for each in found if len(each.sizes) == each.replicas == 1):
        time.plot([1], [bp.ratio_to_bp], **line_style("BP"))
        memory.plot([1], [bp.memory_mib], **line_style("BP"))
    for ratio, text in quoted.items():
        quote(time, ratio, text)
    counts = sorted({len(each.sizes) for each in found})
    for axes in (time, memory):
        label_values(axes, [count for count in counts if count & (count - 1) == 0], base=2)
        axes.set_ylim(bottom=0)
        axes.tick_params(colors=INK)
    legend(figure)
    make_folder(path.parent, "picture")
    figure.savefig(path, dpi=115)  # 1,200 wide


def _fastest(found: Sequence[Prediction], length: int) -> list[Prediction]:
    best: dict[int, Prediction] = {}
    for each in sorted(found, key=lambda each: each.step_s):
        if each.link.length == length and len(each.sizes) > 1:
            best.setdefault(len(each.sizes), each)
    return [best[count] for count in sorted(best)]

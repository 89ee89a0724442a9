"""Figure 7: peak memory of a training step over the number of local modules K, all modules on one device.

BP, GLL, BackLink l = 1..4 with the tail's graph retained or recomputed, and InfoPro, with conv heads. On a GPU it is the peak
that CUDA allocated; without one it is counted on meta tensors, also at the paper's batch size.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from backlink_ray import RunConfig
from backlink_ray.benchmarks.memory import footprint_mib, memory_runs, source_of
from backlink_ray.commands.figure import FigureCommand, Measurement, figure_main
from backlink_ray.figures.captions import left_out
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.save import save_figure
from backlink_ray.figures.style import format_axes, label_values, legend, line_style, mark_paper, new_figure, series_of
from backlink_ray.paper.cells import find
from backlink_ray.paper.recipes import recipe
from backlink_ray.runs.results import config_of
from backlink_ray.tuning.plan import Plan

KS = (2, 4, 8, 16)
BASE = recipe(find("table3/cifar10/resnet32/conv/K4/l2"))
RUNS = {network: tuple(memory_runs(BASE.replace(network=network))) for network in ("resnet32", "resnet110")}


PRESETS = {
    "paper": Plan(base=BASE, runs=(*RUNS["resnet32"], *RUNS["resnet110"])),
    "smoke": Plan(base=BASE, runs=RUNS["resnet32"]),
}
# Quotes from the paper's text on Fig. 7, as fractions of BP's memory; the text does not state K, we assume K = 16.
PAPER = {
    "resnet32": [
        (16, 0.31 * 1.71, "paper: InfoPro, 71 % over GLL", (-10.0, 72.0)),
        (16, 0.31 * 1.23, "paper: BackLink, up to 23 % over GLL", (-10.0, 84.0)),
        (16, 0.31, "paper: GLL, 69 % less than BP", (-10.0, 82.0)),
    ],
    "resnet110": [
        (16, 0.21, "paper: BackLink, 79 % less than BP", (-10.0, 106.0)),
        (16, 0.19, "paper: GLL, 81 % less than BP", (-10.0, 95.0)),
    ],
}


def measure(configs: Sequence[RunConfig], figure: FigureCommand) -> Iterator[dict[str, Any]]:
    done = figure.results.done()
    for config in (c for c in configs if figure.row_id(c) not in done):
        with figure.attempt(config):  # continue after one that does not fit into memory
            mib = footprint_mib(config, figure.device)
            print(f"{config.network} {series_of(config)} K={config.num_modules} {config.tail_memory}: {mib:,.0f} MiB")
            yield figure.row(config, memory_mib=mib, memory_source=source_of(figure.device))


def picture(data: FigureData) -> list[Path]:
    networks = list(dict.fromkeys(str(row["network"]) for row in data.rows))
    title = "Fig. 7  Peak memory of a training step on one device"
    figure, panels = new_figure(2, title, rows=len(networks), height_in=3.6)
    for axes, (network, tail) in zip(panels, product(networks, ("retain", "recompute")), strict=True):
        panel(axes, network, tail, [row for row in data.rows if row["network"] == network])
    legend(figure)
    base = data.plan.base
    caption = (
        f"{' and '.join(networks)}, {base.head} heads, batch {base.batch_size} of 32 x 32 images, float32. Memory is "
        f"{source_of('cuda' if data.rows[0]['device'] == 'cuda' else 'cpu')}; n = 1, because nothing in it is random; "
        f"hardware: {data.rows[0]['hardware']}. Stars: the paper's text, for a Titan RTX and an unstated batch size."
    )
    caption += f" {left_out(data.missing)}"
    return save_figure(figure, data.rows, "figure_7_memory", data.folder, caption=caption)


def panel(axes: Any, network: str, tail: str, rows: list[dict[str, Any]]) -> None:
    bp = next((float(row["memory_mib"]) for row in rows if row["method"] == "bp"), 0.0)
    kept = {"retain": "retained", "recompute": "recomputed"}[tail]
    format_axes(axes, f"{network}, graph of the tail {kept}", "number of local modules K", "peak memory [MiB]")
    axes.set_ylim(0, 1.08 * max(float(row["memory_mib"]) for row in rows))
    for series, points in points_by_series(rows, tail).items():
        axes.plot(*zip(*points, strict=True), **line_style(series))
    label_values(axes, (1, *KS), base=2)
    if bp:
        add_bp_scale(axes, network, bp)


def add_bp_scale(axes: Any, network: str, bp: float) -> None:
    part = axes.secondary_yaxis("right", functions=(lambda mib: 100 * mib / bp, lambda pct: pct * bp / 100))
    part.set_ylabel("relative to BP [%]", fontsize=9)
    for k, share, text, offset_pt in PAPER.get(network, []):
        mark_paper(axes, k, share * bp, text, offset_pt)


def points_by_series(rows: list[dict[str, Any]], tail: str) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        config = config_of(row)
        if config.method != "backlink" or config.tail_memory == tail:
            found.setdefault(series_of(config), []).append((config.num_modules, float(row["memory_mib"])))
    return {series: sorted(points) for series, points in sorted(found.items())}


MEASUREMENT = Measurement(presets=PRESETS, measure=measure, picture=picture)

if __name__ == "__main__":
    sys.exit(figure_main("figure_7_memory", MEASUREMENT, __doc__ or ""))

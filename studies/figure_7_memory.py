"""Figure 7: peak memory of a training step over the number of local modules K, all modules on one device.

BP, GLL, BackLink l = 1..4 with the tail's graph retained or recomputed, and InfoPro, with conv heads. On a GPU memory is
what CUDA allocated at most; without one it is counted on tensors that hold no numbers, at the paper's batch size as well.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from backlink_ray import RunConfig
from backlink_ray.benchmarks.memory import footprint_mib, source_of
from backlink_ray.commands.figure import Measurement, MeasurementContext, figure_main
from backlink_ray.figures.captions import left_out
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.save import save_figure
from backlink_ray.figures.style import format_axes, legend, line_style, mark_paper, new_figure, series_of
from backlink_ray.local.sizes import longest_propagation, module_sizes
from backlink_ray.nets.names import unit_count
from backlink_ray.paper.cells import find
from backlink_ray.paper.recipes import recipe
from backlink_ray.runs.results import config_of
from backlink_ray.tuning.plan import Plan

KS = (2, 4, 8, 16)
BASE = recipe(find("table3/cifar10/resnet32/conv/K4/l2"))


def runs(network: str) -> tuple[RunConfig, ...]:
    base = BASE.replace(network=network, propagation_length=1)
    found = [base.replace(method="bp")]
    for k in KS:
        found += [base.replace(method=method, num_modules=k) for method in ("gll", "infopro")]
        longest = min(4, longest_propagation(module_sizes(unit_count(network), k)))
        for tail, n in product(("retain", "recompute"), range(1, longest + 1)):
            found.append(base.replace(num_modules=k, propagation_length=n, tail_memory=tail))
    return tuple(found)


PRESETS = {
    "paper": Plan(base=BASE, runs=(*runs("resnet32"), *runs("resnet110"))),
    "smoke": Plan(base=BASE, runs=runs("resnet32")),
}
# What the paper's text says of its Fig. 7, as parts of BP's memory; it does not say at which K, so K = 16 is our reading.
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


def measure(configs: Sequence[RunConfig], context: MeasurementContext) -> Iterator[dict[str, Any]]:
    done = context.measured()
    for config in (c for c in configs if context.row_id(c) not in done):
        with context.attempt(config):  # one that does not fit says nothing about the others
            mib = footprint_mib(config, context.device)
            print(f"{config.network} {series_of(config)} K={config.num_modules} {config.tail_memory}: {mib:,.0f} MiB")
            yield context.row(config, memory_mib=mib, memory_source=source_of(context.device))


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
        f"{source_of('cuda' if data.rows[0]['device'] == 'cuda' else 'cpu')}; n = 1, since nothing about it is random; "
        f"hardware: {data.rows[0]['hardware']}. Stars: what the paper's text says of its Titan RTX, at no stated batch size."
    )
    caption += f" {left_out(data.missing)}"
    return save_figure(figure, data.rows, "figure_7_memory", data.folder, caption=caption)


def panel(axes: Any, network: str, tail: str, rows: list[dict[str, Any]]) -> None:
    bp = next((float(row["memory_mib"]) for row in rows if row["method"] == "bp"), 0.0)
    kept = {"retain": "retained", "recompute": "recomputed"}[tail]
    format_axes(axes, f"{network}, graph of the tail {kept}", "number of local modules K", "peak memory [MiB]")
    axes.set_ylim(0, 1.08 * max(float(row["memory_mib"]) for row in rows))
    for series, points in lines(rows, tail).items():
        axes.plot(*zip(*points, strict=True), **line_style(series))
    axes.set_xscale("log", base=2)
    axes.set_xticks((1, *KS), [str(k) for k in (1, *KS)])
    axes.minorticks_off()
    if bp:
        beside_bp(axes, network, bp)


def beside_bp(axes: Any, network: str, bp: float) -> None:
    part = axes.secondary_yaxis("right", functions=(lambda mib: 100 * mib / bp, lambda pct: pct * bp / 100))
    part.set_ylabel("part of BP [%]", fontsize=9)
    for k, share, text, offset_pt in PAPER.get(network, []):
        mark_paper(axes, k, share * bp, text, offset_pt)


def lines(rows: list[dict[str, Any]], tail: str) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        config = config_of(row)
        if config.method != "backlink" or config.tail_memory == tail:
            found.setdefault(series_of(config), []).append((config.num_modules, float(row["memory_mib"])))
    return {series: sorted(points) for series, points in sorted(found.items())}


MEASUREMENT = Measurement(presets=PRESETS, measure=measure, picture=picture)

if __name__ == "__main__":
    sys.exit(figure_main("figure_7_memory", MEASUREMENT, __doc__ or ""))

"""Figure 10: the accuracy that BackLink gives up for less memory and time than BP, over K and l: ResNet110, conv heads.

Presets: paper and smoke run a grid of K and l; search lets Optuna choose K, l, alpha and eta by TPE, which minimises
error, memory and step time together. The figure marks the Pareto front. Finished runs of Table III's study under the same
storage path and recipe are drawn as well and not repeated.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from backlink_ray import RunConfig
from backlink_ray.benchmarks.memory import footprint_mib, source_of
from backlink_ray.commands.search import TRADE_OFF, main
from backlink_ray.figures.captions import caption_of, hardware_of_runs, left_out
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.save import save_figure
from backlink_ray.figures.style import INK, PALE, format_axes, legend, line_style, new_figure, series_of
from backlink_ray.figures.tradeoff import Trade, trades
from backlink_ray.paper.cells import find
from backlink_ray.paper.recipes import ALPHAS, default_alpha, recipe
from backlink_ray.runs.results import Results, columns_of, config_of
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.space import Space

PAPER = recipe(find("table3/cifar10/resnet110/conv/K4/l2"))
SMOKE = PAPER.replace(
    network="resnet14", dataset="cifar10-sample", num_modules=2, propagation_length=1, lr=0.05, batch_size=32, epochs=1,
    train_images=320, test_images=200, executor="threads",
)  # fmt: skip


def runs(base: RunConfig, lengths: dict[int, tuple[int, ...]]) -> tuple[RunConfig, ...]:
    pairs = ((k, n) for k, ls in lengths.items() for n in ls)
    linked = (base.replace(num_modules=k, propagation_length=n, alpha=default_alpha(n)) for k, n in pairs)
    return (base.replace(method="bp"), *linked)


PRESETS = {
    "paper": Plan(
        base=PAPER,
        runs=runs(PAPER, {2: (1, 2, 3, 4), 4: (1, 2, 3, 4), 8: (1, 2, 3, 4), 16: (1, 2, 3)}),
        metric="test_error_pct",
    ),
    "search": Plan(
        base=PAPER.replace(validation_fraction=0.1),
        space=Space(num_modules=(2, 4, 8, 16), longest=4, alphas=ALPHAS, lr=(0.05, 1.0)),
        num_samples=100,
        objectives=("val_error_pct", *TRADE_OFF),
    ),
    "smoke": Plan(base=SMOKE, runs=runs(SMOKE, {2: (1, 2), 4: (1,)}), metric="test_error_pct"),
}
# Quotes from the paper's text. At l = 2, doubling K adds 1.57 points of error and about 23 points to both reductions.
STEP_PCT, STEP_PP = 23.0, 1.57
# From l = 1 to 4: 0.87 points less error (at K = 4, by Table III), equal memory, and less than 6 % more time.
GAIN_PP, SLOWER_PCT = 0.87, 6.0
BROWN = "#D8B98A"

RELATIVE = {
    "x": [
        ("memory_reduction_pct", "memory reduction relative to BP [%]"),
        ("time_reduction_pct", "step time reduction relative to BP [%]"),
    ],
    "y": ("accuracy_drop_pp", "accuracy drop relative to BP [percentage points]"),
}
ABSOLUTE = {
    "x": [("memory_mib", "peak memory of a step [MiB]"), ("step_ms", "step time [ms]")],
    "y": ("error_pct", "test error [%]"),
}


def picture(data: FigureData) -> list[Path]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = trades(data.rows, lambda config: footprint_mib(config, device))
    figure, panels = new_figure(2, "Fig. 10  Trade-off of accuracy, memory and time relative to BP")
    axes = RELATIVE if any(trade.config.method == "bp" for trade in found) else ABSOLUTE
    for ax, (x, label) in zip(panels, axes["x"], strict=True):
        panel(ax, found, x, label, *axes["y"])
    panels[0].scatter([], [], s=150, facecolors="none", edgecolors=INK, label="Pareto front")
    notes = [f"Pareto front of error, memory and time. Memory on one device: {source_of(device)}"]
    if axes is RELATIVE:
        mark_quoted(panels[0], found, "memory_reduction_pct", 0.0)
        notes += mark_quoted(panels[1], found, "time_reduction_pct", SLOWER_PCT)
    else:
        notes.append("No BP run is recorded, so values are absolute")
    legend(figure)
    made = hardware_of_runs(data.rows, data.folder, table_3(data.folder.parent))
    caption = caption_of(data.plan.base, made, {trade.n for trade in found}, *notes, left_out(data.missing))
    points = [{**columns_of(t.config), **{k: v for k, v in asdict(t).items() if k != "config"}} for t in found]
    return save_figure(figure, points, "figure_10_tradeoff", data.folder, caption=caption)


def table_3(storage: Path) -> Path:
    return storage / "table_3"


def table_rows(storage: Path, base: RunConfig) -> list[dict[str, Any]]:
    """Return Table III's finished runs of BP and BackLink that differ from `base` only in K, l, alpha and seed."""
    rows = Results(table_3(storage)).rows()
    return [row for row in rows if row["status"] == "FINISHED" and has_recipe_of(config_of(row), base)]


def has_recipe_of(config: RunConfig, base: RunConfig) -> bool:
    varied = {name: getattr(config, name) for name in ("method", "num_modules", "propagation_length", "alpha", "seed")}
    return config.method in ("bp", "backlink") and config.run_id == base.replace(**varied).run_id


def panel(axes: Any, found: list[Trade], x: str, x_label: str, y: str, y_label: str) -> None:
    format_axes(axes, "", x_label, y_label)
    groups: dict[str, list[Trade]] = {}
    for trade in found:
        groups.setdefault(series_of(trade.config), []).append(trade)
    for index, (series, group) in enumerate(groups.items()):
        ks = {t.config.num_modules for t in group}
        line = {} if len(ks) == len(group) else {"linestyle": ""}  # no line through a search's many points per K
        at_x, at_y, bars = ([getattr(t, name) for t in group] for name in (x, y, "error_std_pp"))
        style = line_style(series, index) | line
        axes.errorbar(at_x, at_y, yerr=bars if any(bars) else None, capsize=2.5, elinewidth=1, **style)
    for trade in found:
        point = (getattr(trade, x), getattr(trade, y))
        if trade.on_front:
            axes.scatter(*point, s=150, facecolors="none", edgecolors=INK, zorder=4)
        if trade.on_front or len(found) <= 20:
            name = f"K={trade.config.num_modules}"
            axes.annotate(name, point, (7, 6), textcoords="offset points", fontsize=7.5, color=INK)


def mark_quoted(axes: Any, found: list[Trade], x: str, slower_pct: float) -> list[str]:
    """Draw the changes that the paper's text quotes, starting at our own points; return notes for the caption."""
    axes.axhline(0, color="#DDDDDD", linewidth=0.8, zorder=0)
    notes, line = [], {"linewidth": 2.5, "zorder": 0}
    if start := point_of(found, x, 2, 2):
        end = (start[0] + STEP_PCT, start[1] + STEP_PP)
        axes.plot(*zip(start, end, strict=True), color=PALE, label="paper: l = 2,\nK doubled", **line)
        notes.append("Grey: the paper's change at l = 2 when K doubles, from our point at K = 2")
    if start := point_of(found, x, 4, 1):
        down = start[1] - GAIN_PP
        path = [start, (start[0], down), (start[0] - slower_pct, down)]
        axes.plot(*zip(*path, strict=True), color=BROWN, label="paper: l = 1 to 4,\nK = 4", **line)
        notes.append(
            f"Brown: the paper's change from l = 1 to 4, from our point at K = 4, with up to {SLOWER_PCT:g} % more time"
        )
    return notes


def point_of(found: list[Trade], x: str, k: int, length: int) -> tuple[float, float] | None:
    """Return the point of BackLink at K and l; None if it was not run."""
    wanted = ("backlink", k, length)
    of = [t for t in found if (t.config.method, t.config.num_modules, t.config.propagation_length) == wanted]
    return (getattr(of[0], x), of[0].accuracy_drop_pp) if of else None


if __name__ == "__main__":
    sys.exit(main("figure_10_tradeoff", PRESETS, __doc__ or "", picture=picture, elsewhere=table_rows))

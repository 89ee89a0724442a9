"""Figure 10: what accuracy BackLink gives up for less memory and time than BP, over K and l: ResNet110, conv heads.

Presets: paper and smoke run a grid of K and l; search lets Optuna choose K, l, alpha and eta by NSGA-II, which looks for the
trade-off of error, memory and step time itself. The picture marks the Pareto front. Finished runs of Table III's study in the
same storage path count too, where they are of the same recipe.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from backlink_ray import RunConfig
from backlink_ray.study.command import TRADE_OFF, Finished, main
from backlink_ray.study.figure import (
    INK,
    PALE,
    caption_of,
    dress,
    hardware_of_runs,
    legend,
    look,
    new_figure,
    save_figure,
    series_of,
)
from backlink_ray.study.footprint import footprint_mib, source_of
from backlink_ray.study.record import Record
from backlink_ray.study.report import config_of
from backlink_ray.study.search import Space
from backlink_ray.study.tradeoff import Trade, trades
from backlink_ray.study.tuning import Plan

PAPER = RunConfig(network="resnet110", dataset="cifar10", head="conv", lr=0.5, batch_size=512, epochs=200)
SMOKE = PAPER.replace(
    network="resnet14", dataset="cifar10-sample", num_modules=2, propagation_length=1, lr=0.05, batch_size=32, epochs=1,
    train_images=320, test_images=200, executor="threads",
)  # fmt: skip
OBJECTIVES = ("val_error_pct", *TRADE_OFF)


def cells(lengths: dict[int, tuple[int, ...]]) -> tuple[dict[str, Any], ...]:
    linked = ({"K": k, "l": n, "alpha": 0.25 if n > 2 else 0.5} for k, ls in lengths.items() for n in ls)
    return ({"method": "bp"}, *linked)


PRESETS = {
    "paper": Plan(
        base=PAPER,
        cells=cells({2: (1, 2, 3, 4), 4: (1, 2, 3, 4), 8: (1, 2, 3, 4), 16: (1, 2, 3)}),
        metric="test_error_pct",
    ),
    "search": Plan(base=PAPER.replace(validation_fraction=0.1), space=Space(), num_samples=100, objectives=OBJECTIVES),
    "smoke": Plan(base=SMOKE, cells=cells({2: (1, 2), 4: (1,)}), metric="test_error_pct"),
}
# What the paper's text says of l = 2: when K doubles, the error grows by 1.57 points, and both reductions by about 23 points.
STEP_PCT, STEP_PP = 23.0, 1.57

BESIDE_BP = {
    "x": [
        ("memory_reduction_pct", "memory reduction against BP [%]"),
        ("time_reduction_pct", "reduction of a step's time against BP [%]"),
    ],
    "y": ("accuracy_drop_pp", "accuracy drop against BP [percentage points]"),
}
ALONE = {
    "x": [("memory_mib", "peak memory of a step [MiB]"), ("step_ms", "time of a step [ms]")],
    "y": ("error_pct", "test error [%]"),
}


def picture(done: Finished) -> list[Path]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [*done.rows, *table_rows(done)]
    found = trades(rows, lambda config: footprint_mib(config, device))
    figure, panels = new_figure(2, "Fig. 10  What BackLink gives up and saves beside BP")
    axes = BESIDE_BP if any(trade.config.method == "bp" for trade in found) else ALONE
    for ax, (x, label) in zip(panels, axes["x"], strict=True):
        panel(ax, found, x, label, *axes["y"])
    panels[0].scatter([], [], s=150, facecolors="none", edgecolors=INK, label="Pareto front")
    notes = [f"Pareto front of error, memory and time. Memory of a step on one device: {source_of(device)}"]
    if axes is BESIDE_BP and first_of_two(found):
        panels[0].plot([], [], color=PALE, linewidth=2.5, label="paper: l = 2,\nK doubled")
        notes.append("Grey: what the paper says of l = 2 when K doubles, drawn from our point at K = 2")
    legend(figure)
    if axes is ALONE:
        notes.append("No BP run is recorded, so nothing is shown beside it")
    n = min(trade.n for trade in found)
    caption = caption_of(done.plan.base, hardware_of_runs(rows), n, *notes)
    data = [{**asdict(t.config), **{k: v for k, v in asdict(t).items() if k != "config"}} for t in found]
    return save_figure(figure, data, "figure_10_tradeoff", done.folder, caption=caption, tracker=done.tracker)


def table_rows(done: Finished) -> list[dict[str, Any]]:
    """Return Table III's finished runs of the same network, data and budget: those that differ in method, K, l, alpha, seed."""
    folder, found = done.folder.parent / "table_3", []
    varied = {"method": "gll", "num_modules": 2, "seed": 0, "executor": "auto", "propagation_length": 0}
    wanted = done.plan.base.replace(**varied).run_id
    for row in Record(folder).rows() if folder.exists() else []:
        same = row["status"] == "FINISHED" and row["method"] in ("bp", "backlink")
        if same and config_of(row).replace(**varied).run_id == wanted:
            found.append(row)
    known = {row["run_id"] for row in done.rows}
    return [row for row in found if row["run_id"] not in known]


def panel(axes: Any, found: list[Trade], x: str, x_label: str, y: str, y_label: str) -> None:
    dress(axes, "", x_label, y_label)
    groups: dict[str, list[Trade]] = {}
    for trade in found:
        groups.setdefault(series_of(trade.config), []).append(trade)
    for index, (series, group) in enumerate(groups.items()):
        ks = {t.config.num_modules for t in group}
        line = {} if len(ks) == len(group) else {"linestyle": ""}  # a search has many points at one K
        axes.plot([getattr(t, x) for t in group], [getattr(t, y) for t in group], **look(series, index) | line)
    for trade in found:
        point = (getattr(trade, x), getattr(trade, y))
        if trade.on_front:
            axes.scatter(*point, s=150, facecolors="none", edgecolors=INK, zorder=4)
        if trade.on_front or len(found) <= 20:
            name = f"K={trade.config.num_modules}"
            axes.annotate(name, point, (7, 6), textcoords="offset points", fontsize=7.5, color=INK)
    if y != "accuracy_drop_pp":
        return
    axes.axhline(0, color="#DDDDDD", linewidth=0.8, zorder=0)
    for trade in first_of_two(found):
        start = (getattr(trade, x), trade.accuracy_drop_pp)
        axes.plot([start[0], start[0] + STEP_PCT], [start[1], start[1] + STEP_PP], color=PALE, linewidth=2.5, zorder=0)


def first_of_two(found: list[Trade]) -> list[Trade]:
    """Return the point of BackLink with K = 2 and l = 2, from which the paper's step is drawn; none if it is not there."""
    wanted = ("backlink", 2, 2)
    return [t for t in found if (t.config.method, t.config.num_modules, t.config.propagation_length) == wanted][:1]


if __name__ == "__main__":
    sys.exit(main("figure_10_tradeoff", PRESETS, __doc__ or "", picture=picture))

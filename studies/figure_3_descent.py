"""Figure 3: the sufficient direction constant of BackLink's gradient, and its norm relative to BP's, over a run's epochs.

Measured before the first epoch and after each: the gradient of the global loss and the mean of the method's gradients, both
over the training batches of the next epoch, in training mode. Drawn for all units together and per module, because the last
module's gradient is exact and makes the total look better.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from backlink_ray import RunConfig
from backlink_ray.benchmarks.descent import columns, directions
from backlink_ray.commands.figure import FigureCommand, Measurement, figure_main
from backlink_ray.data.datasets import data_root
from backlink_ray.data.tensors import Dataset
from backlink_ray.figures.captions import caption_of, left_out
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.save import save_figure
from backlink_ray.figures.style import INK, format_axes, legend, line_style, name_of, new_figure
from backlink_ray.paper.cells import find
from backlink_ray.paper.recipes import recipe
from backlink_ray.runs.data import data_key, load_for
from backlink_ray.runs.results import config_of
from backlink_ray.tuning.plan import Plan

PAPER = recipe(find("table2/cifar10/resnet32/fc/K4/l2"))
SMOKE = PAPER.replace(
    network="resnet8", dataset="cifar10-sample", num_modules=2, propagation_length=1, lr=0.05, batch_size=32, epochs=2,
    train_images=192, test_images=100,
)  # fmt: skip
Rows = list[dict[str, Any]]
Panel = tuple[int, int]  # K and l
Curve = tuple[str, str, Rows]
COLUMNS = (("constant", "∇L·g / ‖∇L‖²"), ("norm_ratio", "‖g‖ / ‖∇L‖"))
PAPER_SAYS = "Paper: the constant is positive in all settings, and the norm ratio is bounded"
SHOWN_ALPHA = 0.5  # alpha of the figure per module


def runs(base: RunConfig, panels: Sequence[Panel], alphas: tuple[float, ...]) -> tuple[RunConfig, ...]:
    linked = [base.replace(num_modules=k, propagation_length=n, alpha=alpha) for k, n in panels for alpha in alphas]
    return (*linked, *(base.replace(method="gll", num_modules=k) for k in sorted({k for k, _ in panels})))


PRESETS = {
    "paper": Plan(base=PAPER, runs=runs(PAPER, ((2, 1), (2, 4), (4, 1), (4, 4)), (0.0, 0.25, 0.5, 0.75))),
    "smoke": Plan(base=SMOKE, runs=runs(SMOKE, ((2, 1), (2, 2), (4, 1)), (0.0, 0.5))),
}


def measure(configs: Sequence[RunConfig], figure: FigureCommand) -> Iterator[dict[str, Any]]:
    return measured(configs, figure, load_for(configs, data_root(figure.flags.data_root)))


def measured(
    configs: Sequence[RunConfig], figure: FigureCommand, datasets: dict[str, Dataset]
) -> Iterator[dict[str, Any]]:
    done = figure.results.done()
    for config in configs:
        if figure.row_id(config, ending(config.epochs)) in done:
            continue
        folder = figure.folder / "checkpoints" / figure.row_id(config)
        with figure.attempt(config):
            for epoch, found in directions(config, datasets[data_key(config)], figure.device, folder):
                print(f"{config.label} {config.run_name} epoch {epoch}: {found[-1]}", flush=True)
                yield {**figure.row(config, ending(epoch)), "epoch": epoch, **columns(found)}


def images(config: RunConfig) -> int:
    """Count an epoch as one unit of work, and each of the two gradients before every epoch and after the last as another."""
    return (3 * config.epochs + 2) * config.num_train_images


def ending(epoch: int) -> str:
    return f"-e{epoch:03d}"


def picture(data: FigureData) -> list[Path]:
    rows = sorted(data.rows, key=lambda row: int(row["epoch"]))
    return [*all_units(data, rows), *per_module(data, rows)]


def all_units(data: FigureData, rows: Rows) -> list[Path]:
    def curves(by_alpha: dict[float, Rows], _k: int) -> list[Curve]:
        return [("GLL (α = 1)" if alpha == 1 else f"α = {alpha:g}", "", found) for alpha, found in by_alpha.items()]

    title = "Fig. 3  Is the gradient a descent direction of the global loss?"
    notes = ("g: mean of the method's gradients", PAPER_SAYS, left_out(data.missing), ended_early(rows))
    return draw_figure(data, rows, "figure_3_descent", title, "all units", curves, *notes)


def per_module(data: FigureData, rows: Rows) -> list[Path]:
    def curves(by_alpha: dict[float, Rows], k: int) -> list[Curve]:
        return [(f"module {m}", f"_module_{m}", by_alpha.get(SHOWN_ALPHA, [])) for m in range(k)]

    title = f"Fig. 3, per module: BackLink, α = {SHOWN_ALPHA}"
    last = "The gradient of the last module is exact, so both its values are 1. The data files have all other α"
    return draw_figure(data, rows, "figure_3_modules", title, "each module", curves, last, left_out(data.missing))


def draw_figure(
    data: FigureData, rows: Rows, name: str, title: str, what: str,
    curves: Callable[[dict[float, Rows], int], list[Curve]], *notes: str,
) -> list[Path]:  # fmt: skip
    """Draw both columns for every K and l, with the curves (label, suffix of the column, rows) of a panel's rows by alpha."""
    panels = sorted({(r["num_modules"], r["propagation_length"]) for r in rows if r["method"] == "backlink"})
    figure, axes = new_figure(len(panels), title, rows=2, height_in=3.0)
    for ax, ((column, label), (k, n)) in zip(axes, product(COLUMNS, panels), strict=True):
        format_axes(ax, f"K = {k}, l = {n}, {what}", "epochs trained", label)
        for index, (text, suffix, points) in enumerate(curves(rows_by_alpha(rows, (k, n)), k)):
            draw(ax, points, column + suffix, text, index)
        mark_zero_and_one(ax)
    legend(figure)
    caption = caption_of(data.plan.base, f"Hardware: {rows[0]['hardware']}", (1,), *notes)
    return save_figure(figure, rows, name, data.folder, caption=caption)


def rows_by_alpha(rows: Rows, panel: Panel) -> dict[float, Rows]:
    """Return a panel's rows by alpha; GLL counts as alpha = 1 for every l."""
    found: dict[float, Rows] = {}
    for row in rows:
        if row["num_modules"] == panel[0] and (row["method"] == "gll" or row["propagation_length"] == panel[1]):
            found.setdefault(float(row["alpha"]), []).append(row)
    return dict(sorted(found.items()))


def ended_early(rows: Rows) -> str:
    """Name the runs without rows for their last epochs, which diverged or are unfinished."""
    last = {config_of(row).run_id: row for row in rows}  # rows come in order of epochs
    early = [row for row in last.values() if row["epoch"] < row["epochs"]]
    names = ", ".join(f"{name_of(config_of(r))} α = {r['alpha']:g} (to epoch {r['epoch']})" for r in early)
    return f"Not measured to the end: {names}" if early else ""


def draw(axes: Any, points: Rows, column: str, label: str, index: int) -> None:
    style = line_style(label, index) | ({} if len(points) <= 20 else {"marker": ""})
    axes.plot([p["epoch"] for p in points], [p[column] for p in points], **style)


def mark_zero_and_one(axes: Any) -> None:
    """Draw lines at 0, below which a step increases the loss, and at 1, the value of BP; tick whole epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.axhline(0, color=INK, linewidth=1.0)
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


MEASUREMENT = Measurement(presets=PRESETS, measure=measure, picture=picture, images=images)

if __name__ == "__main__":
    sys.exit(figure_main("figure_3_descent", MEASUREMENT, __doc__ or ""))

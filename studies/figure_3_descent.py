"""Figure 3: the sufficient direction constant of BackLink's gradient, and its norm beside BP's, over the epochs of a run.

Before the first epoch and after each: the gradient of the whole network's loss and the mean of the method's gradients, both
over the training batches of the epoch to come, in training mode. Drawn for all units, and module by module: the last
module's gradient is exact and flatters the total.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from backlink_ray import RunConfig
from backlink_ray.data.datasets import data_root, dataset_of
from backlink_ray.study.command import Finished
from backlink_ray.study.directions import columns, directions
from backlink_ray.study.figure import COLOURS, INK, caption_of, dress, legend, new_figure, save_figure
from backlink_ray.study.measuring import Room, figure_main, recorded, row_of
from backlink_ray.study.tuning import Plan

PAPER = RunConfig(network="resnet32", dataset="cifar10", lr=0.5, batch_size=512, epochs=200)
SMOKE = PAPER.replace(
    network="resnet8", dataset="cifar10-sample", num_modules=2, propagation_length=1, lr=0.05, batch_size=32, epochs=2,
    train_images=192, test_images=100,
)  # fmt: skip
Panel = tuple[int, int]  # K and l


def cells(panels: Sequence[Panel], alphas: tuple[float, ...]) -> tuple[dict[str, Any], ...]:
    linked = tuple({"K": k, "l": n, "alpha": alpha} for k, n in panels for alpha in alphas)
    return (*linked, *({"method": "gll", "K": k} for k in sorted({k for k, _ in panels})))


PRESETS = {
    "paper": Plan(base=PAPER, cells=cells(((2, 1), (2, 4), (4, 1), (4, 4)), (0.0, 0.25, 0.5, 0.75))),
    "smoke": Plan(base=SMOKE, cells=cells(((2, 1), (2, 2), (4, 1)), (0.0, 0.5))),
}


def measure(configs: Sequence[RunConfig], room: Room) -> Iterator[dict[str, Any]]:
    done = recorded(room)
    for config in configs:
        if row_of(config, room, ending(config.epochs))["run_id"] in done:
            continue
        dataset = dataset_of(config, data_root(room.flags.data_root))
        for epoch, found in directions(config, dataset, room.device, room.folder / "checkpoints" / config.run_id):
            print(f"{config.label} {config.run_name} epoch {epoch}: {found[-1]}", flush=True)
            yield {**row_of(config, room, ending(epoch)), "epoch": epoch, **columns(found)}


def ending(epoch: int) -> str:
    return f"-e{epoch:03d}"


def picture(done: Finished) -> list[Path]:
    rows = sorted(done.rows, key=lambda row: int(row["epoch"]))
    return [*whole(done, rows), *by_module(done, rows)]


def panels_of(rows: list[dict[str, Any]]) -> list[Panel]:
    return sorted({(r["num_modules"], r["propagation_length"]) for r in rows if r["method"] == "backlink"})


def lines(rows: list[dict[str, Any]], panel: Panel) -> dict[float, list[dict[str, Any]]]:
    """Return a panel's rows by alpha; GLL is alpha = 1 at every l."""
    found: dict[float, list[dict[str, Any]]] = {}
    for row in rows:
        if row["num_modules"] == panel[0] and (row["method"] == "gll" or row["propagation_length"] == panel[1]):
            found.setdefault(float(row["alpha"]), []).append(row)
    return dict(sorted(found.items()))


def whole(done: Finished, rows: list[dict[str, Any]]) -> list[Path]:
    panels = panels_of(rows)
    figure, axes = new_figure(
        len(panels), "Fig. 3  Does the gradient point down the loss of the whole network?", rows=2, height_in=3.0
    )
    for j, (column, label) in enumerate((("constant", "∇L·g / ‖∇L‖²"), ("norm_ratio", "‖g‖ / ‖∇L‖"))):
        for i, (k, n) in enumerate(panels):
            ax = axes[j * len(panels) + i]
            dress(ax, f"K = {k}, l = {n}, all units", "epochs trained", label)
            for index, (alpha, points) in enumerate(lines(rows, (k, n)).items()):
                draw(ax, points, column, "GLL (α = 1)" if alpha == 1 else f"α = {alpha:g}", index)
            finish(ax)
    legend(figure)
    caption = caption_of(
        done.plan.base, f"Hardware: {rows[0]['hardware']}", 1, "g: mean of the method's gradients", PAPER_SAYS
    )
    return save_figure(figure, rows, "figure_3_descent", done.folder, caption=caption, tracker=done.tracker)


def by_module(done: Finished, rows: list[dict[str, Any]]) -> list[Path]:
    panels = panels_of(rows)
    alpha = 0.5
    figure, axes = new_figure(
        len(panels), f"Fig. 3, module by module: sufficient direction constant of BackLink, α = {alpha}", height_in=3.2
    )
    for ax, (k, n) in zip(axes, panels, strict=True):
        dress(ax, f"K = {k}, l = {n}", "epochs trained", "∇L·g / ‖∇L‖²")
        points = lines(rows, (k, n)).get(alpha, [])
        for module in range(k):
            label = f"module {module}" + (", the last" if module == k - 1 else "")
            draw(ax, points, f"constant_module_{module}", label if k == max(panels)[0] else "", module)
        finish(ax)
    legend(figure)
    caption = caption_of(
        done.plan.base,
        f"Hardware: {rows[0]['hardware']}",
        1,
        "The last module's gradient is exact, so its constant is 1",
    )
    return save_figure(figure, rows, "figure_3_modules", done.folder, caption=caption, tracker=done.tracker)


PAPER_SAYS = "Paper: the constant is above 0 in all settings, and the norm ratio is bounded"


def draw(axes: Any, points: list[dict[str, Any]], column: str, label: str, index: int) -> None:
    markers = {"marker": "^vDPoX"[index % 6], "markersize": 5} if len(points) <= 20 else {}
    x, y = [p["epoch"] for p in points], [p[column] for p in points]
    axes.plot(x, y, color=COLOURS[index % len(COLOURS)], linewidth=1.5, label=label, **markers)


def finish(axes: Any) -> None:
    """Show 0, below which a step would go up, and 1, where the gradient is BP's; whole epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.axhline(0, color=INK, linewidth=1.0)
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


if __name__ == "__main__":
    sys.exit(figure_main("figure_3_descent", PRESETS, measure, picture, __doc__ or ""))

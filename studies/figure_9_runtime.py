"""Figure 9: the time of a training step with K local modules on K devices, relative to BP's on one, over K.

GLL, BackLink l = 1..4 and InfoPro with conv heads, the stages as threads of one process and as Ray actors. BP and the
stages take turns, round by round, on one machine. Without a GPU a device is a core, with one torch thread.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from backlink_ray import RunConfig
from backlink_ray.benchmarks.jobs import propagation_lengths
from backlink_ray.benchmarks.runtime import step_times
from backlink_ray.commands.figure import FigureCommand, Measurement, figure_main, number_of_devices
from backlink_ray.errors import ConfigError
from backlink_ray.figures import style
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.save import save_figure
from backlink_ray.nets.names import unit_count
from backlink_ray.paper.cells import find
from backlink_ray.paper.claims import quoted_times
from backlink_ray.paper.recipes import recipe
from backlink_ray.runs.results import config_of
from backlink_ray.tuning.plan import Plan

KS = (2, 4, 8, 16)
PAPER = recipe(find("table3/cifar10/resnet110/conv/K4/l2"))
SMOKE = PAPER.replace(network="resnet14", dataset="cifar10-sample", num_modules=2, propagation_length=1, batch_size=64)
TIMING = {"paper": {"steps": 10, "rounds": 7}, "smoke": {"steps": 2, "rounds": 3}}
RECORDED = ("step_ms", "time_ratio", "time_ratio_min", "time_ratio_max", "n", "steps")


def runs(base: RunConfig, longest: int) -> tuple[RunConfig, ...]:
    found = []
    for k in (k for k in KS if k <= unit_count(base.network)):
        found += [base.replace(method=method, num_modules=k) for method in ("gll", "infopro")]
        lengths = propagation_lengths(base.network, k, longest)
        found += [base.replace(num_modules=k, propagation_length=length) for length in lengths]
    return tuple(found)


PRESETS = {
    "paper": Plan(base=PAPER, runs=runs(PAPER, 4)),
    "smoke": Plan(base=SMOKE, runs=runs(SMOKE, 2)),
}


def measure(configs: Sequence[RunConfig], figure: FigureCommand) -> Iterator[dict[str, Any]]:
    """Refuse a cluster, where BP and the stages could be timed on different machines."""
    address = figure.flags.address or os.environ.get("RAY_ADDRESS", "")
    if address and figure.flags.executor != "threads":
        raise ConfigError(
            f"address={address!r} names a cluster, but figure 9 compares devices of one machine; drop --address and "
            "$RAY_ADDRESS, or use --executor threads"
        )
    return measured(configs, figure)


def measured(configs: Sequence[RunConfig], figure: FigureCommand) -> Iterator[dict[str, Any]]:
    done, count = figure.results.done(), number_of_devices(figure.device)
    # Threads first, before Ray has started any processes.
    for executor in ("threads", "ray") if figure.flags.executor == "auto" else (figure.flags.executor,):
        for config in (c for c in configs if figure.row_id(c, f"-{executor}") not in done):
            with figure.attempt(config):
                bp, stages = step_times(config, (executor,), figure.device, count=count, **timing(config))
                low, median, high = (float(stages[f"time_ratio{end}"]) for end in ("_min", "", "_max"))
                print(f"{executor} {style.name_of(config)}: {median:.2f} of BP ({low:.2f}..{high:.2f})", flush=True)
                found = {name: stages[name] for name in RECORDED} | {"bp_step_ms": bp["step_ms"]}
                about = {"executor": executor, "devices": count, "load_average": os.getloadavg()[0]}
                yield {**figure.row(config, f"-{executor}"), **found, **about}


def timing(config: RunConfig) -> dict[str, int]:
    return TIMING["paper" if config.network == PAPER.network else "smoke"]


def images(config: RunConfig) -> int:
    """Count BP and the stages under two executors, with their warm-up rounds."""
    return 4 * config.batch_size * timing(config)["steps"] * (timing(config)["rounds"] + 1)


def refuse(config: RunConfig, device: str) -> str:
    count, k = number_of_devices(device), config.num_modules
    return f"K={k} stages need K devices, and this machine has {count}" * (k > count)


def picture(data: FigureData) -> list[Path]:
    rows = data.rows
    executors = sorted({str(row["executor"]) for row in rows}, reverse=True)
    device = "GPU" if rows[0]["device"] == "cuda" else "core"
    figure, panels = style.new_figure(
        len(executors), f"Fig. 9  Time of a training step, K local modules on K {device}s"
    )
    for axes, executor in zip(panels, executors, strict=True):
        panel(axes, [row for row in rows if row["executor"] == executor], f"stages: {executor}", device)
        # One scale for all panels; bars may be cut off, medians are not.
        axes.set_ylim(0, max(1.1, 1.2 * max(float(row["time_ratio"]) for row in rows)))
    style.legend(figure)
    base, first = data.plan.base, rows[0]
    caption = (
        f"{base.network}, {base.head} heads, batch {base.batch_size} of 32 x 32 images, {first['steps']} steps per round, median "
        f"of n = {first['n']} interleaved rounds, bars from minimum to maximum. Hardware: {first['hardware']}"
        f"{', a device is a core' if device == 'core' else ''}; BP on one of {first['devices']} devices takes "
        f"{first['bp_step_ms']:,.0f} ms per step. Dotted: BP / K. Dashed: the best cases the paper quotes, for ResNet110"
    )  # fmt: skip
    if base.network != PAPER.network or base.batch_size != PAPER.batch_size:
        caption += " (not the paper's budget)"
    if left := sorted({config.num_modules for config in data.missing}):
        caption += f". {first['devices']} devices; left out in whole or in part: K = {', '.join(map(str, left))}"
    load, cores = max(float(row["load_average"]) for row in rows), os.cpu_count() or 1
    if load > 1.5 * cores:
        caption += f". The machine was also busy with other work: load average up to {load:.1f} on {cores} cores"
    return save_figure(figure, rows, "figure_9_runtime", data.folder, caption=caption)


def panel(axes: Any, rows: list[dict[str, Any]], title: str, device: str) -> None:
    style.format_axes(axes, title, f"number of local modules K, one {device} each", "time of a step, BP = 1")
    ks = sorted({1, *(int(row["num_modules"]) for row in rows)})
    axes.plot([1], [1], **style.line_style("BP"))
    names = sorted({style.series_of(config_of(row)) for row in rows}, key=style.legend_order)
    for index, name in enumerate(names):
        of = sorted((r for r in rows if style.series_of(config_of(r)) == name), key=lambda r: int(r["num_modules"]))
        # Shifted around K so that the bars do not overlap.
        x = [float(r["num_modules"]) * 2 ** (0.06 * (index - (len(names) - 1) / 2)) for r in of]
        y = [float(r["time_ratio"]) for r in of]
        low, high = (
            [abs(float(r["time_ratio"]) - float(r[f"time_ratio_{end}"])) for r in of] for end in ("min", "max")
        )
        axes.errorbar(x, y, yerr=[low, high], capsize=2, elinewidth=1, **style.line_style(name, index))
    axes.plot(ks, [1 / k for k in ks], color=style.INK, linewidth=0.9, linestyle=":")
    for share, text in quoted_times().items():
        style.quote(axes, share, text)
    style.label_values(axes, ks, base=2)
    axes.set_xlim(0.9, max(ks) * 1.25)


MEASUREMENT = Measurement(presets=PRESETS, measure=measure, picture=picture, refuse=refuse, images=images)

if __name__ == "__main__":
    sys.exit(figure_main("figure_9_runtime", MEASUREMENT, __doc__ or ""))

"""Captions: what stands below a figure: network, data set, budget, hardware, seeds."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from backlink_ray.paper.recipes import BATCH_SIZES
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import made_with


def hardware_of_runs(rows: Sequence[Mapping[str, Any]], *folders: Path) -> str:
    """Return what the runs of some studies were carried out with, as their own folders say."""
    found = [line for folder in folders for line in made_with(folder, rows)]
    return f"Hardware: {'; '.join(found) or 'not recorded'}"


def is_paper_budget(config: RunConfig) -> bool:
    """Tell whether a run has the paper's epochs, images and batch size."""
    whole = config.dataset != "cifar10-sample" and not config.train_images and not config.test_images
    return whole and config.epochs == 200 and config.batch_size == BATCH_SIZES[config.dataset]


def budget(config: RunConfig) -> str:
    """Return what a run is trained with, and that this is not the paper's budget where it is not."""
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    text = f"{epochs} of {config.num_train_images:,} images, batch {config.batch_size}"
    return text if is_paper_budget(config) else f"{text} (not the paper's budget)"


def caption_of(config: RunConfig, where: str, seeds: Collection[int], *notes: str) -> str:
    """Return the caption of a figure of training runs: network, data set, budget, hardware, seeds of the points, notes."""
    low, high = min(seeds), max(seeds)
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    about = "1 seed a point" if high == 1 else f"Mean and standard deviation of {n} seeds a point"
    place = f"{config.network} on {config.dataset}, {config.head} heads"
    return ". ".join([place, budget(config), where, about, *filter(None, notes)])


def left_out(missing: Sequence[RunConfig]) -> str:
    """Return a caption's note on what has no result: how many, and the first of them by name; "" where nothing lacks."""
    names = ", ".join(f"{config.network} {config.label} {config.run_name}" for config in missing[:4])
    more = ", ..." * (len(missing) > 4)
    return f"Left out, without a result: {len(missing)} ({names}{more})" if missing else ""

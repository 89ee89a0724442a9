"""Captions of figures: network, data set, budget, hardware, seeds."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from backlink_ray.paper.recipes import BATCH_SIZES
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import made_with


def hardware_of_runs(rows: Sequence[Mapping[str, Any]], *folders: Path) -> str:
    """Return the hardware and versions that runs were made with, as recorded in the folders of their studies."""
    found = [line for folder in folders for line in made_with(folder, rows)]
    return f"Hardware: {'; '.join(found) or 'not recorded'}"


def is_paper_budget(config: RunConfig) -> bool:
    """Return whether a run has the paper's epochs, images and batch size."""
    whole = config.dataset != "cifar10-sample" and not config.train_images and not config.test_images
    return whole and config.epochs == 200 and config.batch_size == BATCH_SIZES.get(config.dataset)


def budget(config: RunConfig) -> str:
    """Return a run's budget in words, marked if it is not the paper's."""
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    images = f" of {config.num_train_images:,} images" if config.num_train_images else ""
    text = f"{epochs}{images}, batch {config.batch_size}"
    return text if is_paper_budget(config) else f"{text} (not the paper's budget)"


def caption_of(config: RunConfig, where: str, seeds: Collection[int], *notes: str) -> str:
    """Return the caption of a figure of training runs.

    Args:
        seeds: numbers of seeds of the points.
        notes: further sentences, without a full stop; "" is skipped.
    """
    low, high = min(seeds), max(seeds)
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    about = "1 seed per point" if high == 1 else f"Mean and standard deviation of {n} seeds per point"
    place = f"{config.network} on {config.dataset}, {config.head} heads"
    return ". ".join([place, budget(config), where, about, *filter(None, notes)])


def left_out(missing: Sequence[RunConfig]) -> str:
    """Return a caption's note on runs without a result: their number and the first names; "" if there are none."""
    names = ", ".join(f"{config.network} {config.label} {config.run_name}" for config in missing[:4])
    more = ", ..." * (len(missing) > 4)
    return f"Left out for lack of a result: {len(missing)} ({names}{more})" if missing else ""

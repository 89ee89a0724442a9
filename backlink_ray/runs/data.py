"""Data of runs: each run's data set, loaded once for all runs that share it."""

from collections.abc import Iterable
from pathlib import Path

from backlink_ray.data.datasets import hold_out, load_dataset
from backlink_ray.data.images import Dataset
from backlink_ray.data.loader import check_batch_size
from backlink_ray.runs.config import RunConfig

# Data sets whose training images are chosen by the run's seed: runs of two seeds see two of them.
_CHOSEN_BY_SEED = ("cifar10-lt",)


def data_key(config: RunConfig) -> str:
    """Return a name that runs on the same images share."""
    return f"{config.dataset}-s{config.seed}" if config.dataset in _CHOSEN_BY_SEED else config.dataset


def dataset_of(config: RunConfig, root: Path | None = None, *, download: bool = True) -> Dataset:
    """Return the data set of one run: `load_dataset` with the run's name, budgets and seed."""
    budgets = {"train_images": config.train_images, "test_images": config.test_images}
    return load_dataset(config.dataset, root, **budgets, seed=config.seed, download=download)


def load_for(configs: Iterable[RunConfig], root: Path) -> dict[str, Dataset]:
    """Return the data sets of some runs by `data_key`, each loaded once and checked against the runs' batch sizes.

    Raises:
        ConfigError, DataError: data that cannot be had, or that a run does not fit.
    """
    found: dict[str, Dataset] = {}
    kept: dict[tuple[str, float], int] = {}
    for config in configs:
        key = data_key(config)
        if key not in found:
            found[key] = dataset_of(config, root)
        part = (key, config.validation_fraction)
        if part not in kept:
            kept[part] = len(hold_out(found[key], config.validation_fraction, config.seed)[0])
        check_batch_size(config.batch_size, kept[part])
    return found

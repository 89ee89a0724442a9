"""Data of runs: every data set is loaded once for all runs that share it."""

from collections.abc import Iterable
from pathlib import Path

from backlink_ray.data.choice import hold_out_indices
from backlink_ray.data.datasets import load_dataset
from backlink_ray.data.loader import check_batch_size
from backlink_ray.data.tensors import Dataset
from backlink_ray.importing import is_path
from backlink_ray.runs.config import RunConfig

# Data sets whose training images are chosen by the run's seed.
_CHOSEN_BY_SEED = ("cifar10-lt",)


def data_key(config: RunConfig) -> str:
    """Return a key that is equal for runs on the same images."""
    by_seed = config.dataset in _CHOSEN_BY_SEED or is_path(config.dataset)
    return f"{config.dataset}-s{config.seed}" if by_seed else config.dataset


def dataset_of(config: RunConfig, root: Path | None = None) -> Dataset:
    """Return the data set of one run; errors as in `load_dataset`."""
    n, m = config.train_images, config.test_images
    return load_dataset(config.dataset, root, train_images=n, test_images=m, seed=config.seed)


def load_for(configs: Iterable[RunConfig], root: Path) -> dict[str, Dataset]:
    """Load the data sets of some runs, each once, and check them against the runs' batch sizes; return them by `data_key`.

    Raises:
        ConfigError, DataError: data is unavailable, or too small for a run.
    """
    found: dict[str, Dataset] = {}
    for config in configs:
        key = data_key(config)
        if key not in found:
            found[key] = dataset_of(config, root)
        kept, _ = hold_out_indices(found[key].train.labels, config.validation_fraction, config.seed)
        check_batch_size(config.batch_size, len(kept))
    return found

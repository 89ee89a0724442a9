"""A study folder: claimed by one study, and driven by one process at a time."""

from pathlib import Path

import pytest

from backlink_ray.errors import ConfigError
from backlink_ray.runs.config import RunConfig
from backlink_ray.tuning.folder import claim, lock_study_folder
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.resources import ClusterResources


def test_a_folder_is_driven_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    claim(folder, "study", Plan(base=RunConfig(), num_samples=1), "auto")
    with lock_study_folder(folder):
        with (
            pytest.raises(ConfigError, match="in use by another process that runs this study"),
            lock_study_folder(folder),
        ):
            pass
        claim(folder, "study", Plan(base=RunConfig(), num_samples=1), "must")
    with lock_study_folder(folder):
        pass


def test_a_trial_that_can_never_be_placed_is_refused_before_anything_starts() -> None:
    config = RunConfig(num_modules=4, propagation_length=1, executor="ray")
    with pytest.raises(ConfigError, match=r"K=4 stages need 0\.9 CPUs, the cluster has 0\.5"):
        ClusterResources(num_gpus=0, num_cpus=0.5).check(config)
    with pytest.raises(ConfigError, match=r"K=4 stages need 0\.75 GPUs each, the cluster has 3, places for 3"):
        ClusterResources(num_gpus=3, num_cpus=8, gpus_per_stage=0.75).check(config)
    ClusterResources(num_gpus=2, num_cpus=8, gpus_per_stage=0.5).check(config)
    assert ClusterResources(num_gpus=3, num_cpus=8).resolve(config.replace(executor="auto")).executor == "local"

"""A study folder: claimed by one study, and driven by one process at a time."""

from pathlib import Path

import pytest

from backlink_ray.config import ConfigError, RunConfig
from backlink_ray.study.tuning import Plan, claim, only_driver


def test_a_folder_is_driven_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    claim(folder, "study", Plan(base=RunConfig(), num_samples=1), "auto")
    with only_driver(folder):
        with pytest.raises(ConfigError, match="in use by another process that runs this study"), only_driver(folder):
            pass
        claim(folder, "study", Plan(base=RunConfig(), num_samples=1), "must")
    with only_driver(folder):
        pass

"""What is free on a machine whose container has a limit."""

import math
from pathlib import Path

from backlink_ray.measure.metrics import _free_in_container_mib


def test_a_container_has_what_is_left_of_its_limit_and_its_cache_of_files(tmp_path: Path) -> None:
    assert _free_in_container_mib(tmp_path) == math.inf
    (tmp_path / "memory.current").write_text(f"{3 * 2**30}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**30}\n")
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n")
    assert _free_in_container_mib(tmp_path) == 2048.0
    (tmp_path / "memory.max").write_text("max\n")
    assert _free_in_container_mib(tmp_path) == math.inf

"""A run that is killed with kill -9 and started again ends as if nothing had happened, whatever its optimizer keeps."""

import time
from pathlib import Path
from typing import Any

import pytest

from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run
from tests.children import started


def train(pipe: Any, config: RunConfig, folder: Path) -> None:
    """Run two epochs, and wait to be killed."""

    def report(metrics: dict[str, Any]) -> None:
        pipe.send(metrics["epoch"])
        time.sleep(60 * (metrics["epoch"] == 2))

    run(config, folder, options=RunOptions(on_epoch=report))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("optimizer", "executor"), [("torch.optim:AdamW", "local"), ("tests.own:CountedSgd", "threads")]
)
def test_a_killed_run_continues_bit_for_bit(tmp_path: Path, optimizer: str, executor: str) -> None:
    config = RunConfig(
        network="resnet8", num_modules=2, propagation_length=1, optimizer=optimizer, lr=0.01, epochs=4, batch_size=20,
        train_images=60, test_images=20, executor=executor,
    )  # fmt: skip
    with started(train, config, tmp_path / "killed") as child:
        while child.receive() < 2:
            pass
        child.kill()
    assert not (tmp_path / "killed" / "result.json").exists()
    again = run(config.replace(executor="local"), tmp_path / "killed")
    assert again["weights_sha256"] == run(config, tmp_path / "whole")["weights_sha256"]

"""Checkpoints inside an epoch: a run that is cut anywhere ends bit for bit as the one that is not."""

import contextlib
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from backlink_ray.data.datasets import load_dataset
from backlink_ray.errors import ConfigError
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run
from backlink_ray.train.checkpoint import Checkpoints
from backlink_ray.train.state import PARTS

CONFIG = RunConfig(
    network="resnet8", num_modules=2, propagation_length=1, lr=0.05, batch_size=16, epochs=2, train_images=64,
    test_images=20, executor="local",
)  # fmt: skip
THREADS = CONFIG.replace(mode="stale", executor="threads")
ASYNC = CONFIG.replace(method="dgl", mode="async", propagation_length=0)
STEPS = 4  # of an epoch
EVERY_S = 3.0
DATA = load_dataset("cifar10-sample", train_images=64, test_images=20)


def left_after(asked: int) -> Callable[[], bool]:
    """Return a reason to stop that appears when it is asked for the n-th time."""
    calls = iter(range(asked - 1))
    return lambda: next(calls, None) is None


def ending(folder: Path) -> tuple[Any, ...]:
    """Return what a run left that must not depend on how it was cut: weights, momentum and curve."""
    found = Checkpoints(folder / "checkpoints").newest()
    assert found is not None
    state = found[0]
    tensors = {f"{part}/{n}": t.tolist() for part in PARTS for n, t in getattr(state, part).items()}
    curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return state.step, tensors, [(m["epoch"], m["local_loss"], m["test_loss"]) for m in curve]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("asked", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", [CONFIG, ASYNC, THREADS], ids=["backlink", "async", "stale threads"])
def test_a_run_that_is_left_after_every_step_ends_as_if_it_had_not_been(
    config: RunConfig, asked: int, tmp_path: Path
) -> None:
    run(config, tmp_path / "whole", dataset=DATA)
    attempts = 0
    while not (tmp_path / "cut" / "result.json").exists():
        attempts += 1
        assert attempts < 20, "it gets nowhere"
        with contextlib.suppress(KeyboardInterrupt):
            run(config, tmp_path / "cut", dataset=DATA, options=RunOptions(stop=left_after(asked)))
    assert ending(tmp_path / "cut") == ending(tmp_path / "whole")
    assert attempts > (2 if asked == 1 else 1)  # threads are asked every tenth of a second


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*/state.json"))


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """The checkpoints that runs write: name, begin and end."""
    noted, real = list[tuple[str, float, float]](), Checkpoints.save

    def save(self: Checkpoints, *what: Any) -> Path:
        started = time.monotonic()
        path = real(self, *what)
        noted.append((path.name, started, time.monotonic()))
        return path

    monkeypatch.setattr(Checkpoints, "save", save)
    return noted


def test_checkpoints_inside_an_epoch_are_named_by_their_step_and_change_nothing(
    tmp_path: Path, saves: list[tuple[str, float, float]]
) -> None:
    run(CONFIG, tmp_path / "whole", dataset=DATA)
    saves.clear()
    run(CONFIG, tmp_path / "often", dataset=DATA, options=RunOptions(checkpoint_every_s=1e-6))
    assert ending(tmp_path / "often") == ending(tmp_path / "whole")
    assert {name for name, _, _ in saves} == {f"step-{step:09d}" for step in range(1, 2 * STEPS + 1)}


def test_the_seconds_of_an_epoch_add_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, tmp_path, dataset=DATA, options=RunOptions(stop=left_after(2)))
    state = json.loads(newest(tmp_path).read_text())
    begun = state["extra"]["begun"]
    assert state["step"] == len(begun["losses"][0]) == 2
    assert torch.tensor(begun["losses"]).shape == (2, 2)
    result = run(CONFIG, tmp_path, dataset=DATA)
    first, second = (m["step_ms"] * STEPS / 1e3 for m in result["curve"])
    assert first > begun["seconds"] > 0
    assert second > 0
    assert "begun" not in json.loads(newest(tmp_path).read_text())["extra"]


def test_checkpoints_that_never_come_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint_every_s=0 is out of range; allowed above 0, in seconds"):
        RunOptions(checkpoint_every_s=0)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("executor", ["local", "threads"])
def test_no_more_work_is_lost_than_between_two_checkpoints(
    executor: str, tmp_path: Path, saves: list[tuple[str, float, float]]
) -> None:
    """At any time, the newest state on disk is at most that old, evaluation included."""
    data = load_dataset("cifar10-sample", train_images=1600, test_images=500)
    config = CONFIG.replace(train_images=1600, test_images=500, epochs=7, batch_size=10, executor=executor)
    run(config, tmp_path, dataset=data, options=RunOptions(checkpoint_every_s=EVERY_S))
    ages = [written - started for (_, started, _), (_, _, written) in pairwise(saves)]
    print(
        f"{executor}: {len(saves)} checkpoints, at most {max(ages):.2f} s of work lost with checkpoint_every_s={EVERY_S}"
    )
    assert max(ages) <= EVERY_S
    assert len(saves) > 5

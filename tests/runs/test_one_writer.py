"""A run folder has one writer: a second start is one line and changes nothing, however often it is tried."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from backlink_ray.data.datasets import load_dataset
from backlink_ray.data.tensors import Dataset
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run
from backlink_ray.train.checkpoint import Checkpoints, newest
from tests.children import started

CONFIG = RunConfig(
    network="resnet8", num_modules=2, propagation_length=1, lr=0.001, batch_size=20, epochs=100_000, train_images=20,
    test_images=20, executor="local",
)  # fmt: skip
SECOND_STARTS = 300


def train(pipe: Any, folder: Path, data: Dataset) -> None:
    """Train until a file named stop exists, and say how many epochs that were, or why they were no more."""
    epochs = 0

    def report(metrics: dict[str, Any]) -> None:
        nonlocal epochs
        epochs = metrics["epoch"]
        if epochs == 1:
            pipe.send("works")
        if (folder.parent / "stop").exists():
            raise KeyboardInterrupt

    try:
        run(CONFIG, folder, dataset=data, options=RunOptions(on_epoch=report))
    except BaseException as error:
        pipe.send((type(error).__name__, str(error), epochs))


def start_again(pipe: Any, folder: Path, data: Dataset) -> None:
    try:
        run(CONFIG, folder, dataset=data)
    except BaseException as error:
        pipe.send((type(error).__name__, str(error)))


def content(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return what a stopped process cannot change: every entry's inode and time."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*"))}


def hold(pipe: Any, folder: Path, data: Dataset) -> None:
    def report(metrics: dict[str, Any]) -> None:
        pipe.send("works")
        time.sleep(60)

    run(CONFIG, folder, dataset=data, options=RunOptions(on_epoch=report))


@pytest.mark.timeout(120)
def test_a_second_start_is_one_line_and_changes_nothing_and_a_dead_writer_blocks_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = tmp_path / "run", load_dataset("cifar10-sample", train_images=20, test_images=20)
    with started(hold, folder, data) as child:
        assert child.receive() == "works"
        (folder / ".result.json.0123456789ab.tmp").touch()  # somebody's, it cannot know whose
        before = content(folder)
        flags = [
            f"--{name.replace('_', '-')}={getattr(CONFIG, name)}"
            for name in (
                "network", "num_modules", "propagation_length", "lr", "batch_size", "epochs", "train_images",
                "test_images", "executor",
            )
        ]  # fmt: skip
        from backlink_ray.cli import main  # imported here: the processes started from this file need it not

        assert main(["train", *flags, f"--output-dir={folder}"]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err) == (
            "",
            f"error: output_dir={str(folder)!r} is in use by another process; wait for it, or give another folder\n",
        )
        assert content(folder) == before
    # It is dead now: the folder is free, and what it left is removed.
    (tmp_path / "stop").touch()
    with started(train, folder, data) as child:
        assert child.receive()[0] == "KeyboardInterrupt"
    assert not list(folder.rglob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_hundreds_of_second_starts_cost_the_writer_nothing(tmp_path: Path) -> None:
    folder, data = tmp_path / "run", load_dataset("cifar10-sample", train_images=20, test_images=20)
    with started(train, folder, data) as writer:
        assert writer.receive() == "works"
        seen = []
        for _ in range(SECOND_STARTS):
            with started(start_again, folder, data) as second:
                seen.append(second.receive())
            assert newest(folder / "checkpoints", CONFIG.run_id)
        (tmp_path / "stop").touch()
        name, reason, epochs = writer.receive()
    kinds = {kind: sum(name == kind for name, _ in seen) for kind, _ in seen}
    print(f"{len(seen)} second starts: {kinds}; the writer: {epochs} saves, then {name} {reason}")
    assert (kinds, name) == ({"BusyError": SECOND_STARTS}, "KeyboardInterrupt")
    lines = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, epochs + 1))
    found = Checkpoints(folder / "checkpoints", CONFIG.run_id).newest()
    assert found is not None
    assert found[0].step == epochs
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        f"step-{n:09d}" for n in (epochs - 1, epochs)
    ]

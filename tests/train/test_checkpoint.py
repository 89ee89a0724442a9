"""Checkpoints: complete or absent, checked for corruption, and without code."""

import itertools
import random
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

import backlink_ray as bl
from backlink_ray.errors import StorageError
from backlink_ray.train.checkpoint import Checkpoints, newest, weights_sha256
from backlink_ray.train.state import TrainState
from tests.children import started
from tests.examples import batch, different_states, tiny_network


def trained(k: int = 4) -> bl.Trainer:
    trainer = bl.Trainer(bl.split(tiny_network().double(), k), bl.BackLink(propagation_length=1), lr=0.1)
    trainer.step(*batch())
    return trainer


def test_round_trip(tmp_path: Path) -> None:
    state = trained().state()
    Checkpoints(tmp_path).save(state, {"curve": [1, 2]})
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found[1] == {"curve": [1, 2]}
    assert found[0].step == 1
    assert different_states(found[0], state) == []
    assert weights_sha256(found[0]) == weights_sha256(state)


def test_a_checkpoint_outlives_later_ones_that_could_not_be_used(tmp_path: Path) -> None:
    state = trained().state()
    for step in (400, 500, 100, 100, 200, 300):
        Checkpoints(tmp_path).save(TrainState(state.weights, state.optimizer, step), {"steps": step})
        found = newest(tmp_path)
        assert found is not None
        assert found[1] == {"steps": step}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000200", "step-000000300"]


def test_fifty_bit_flips_are_all_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = trained().state()
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        latest = checkpoints.save(TrainState(state.weights, state.optimizer, step), {})
    rng = random.Random(0)
    for _ in range(50):
        file = rng.choice(sorted(latest.iterdir()))
        raw = bytearray(file.read_bytes())
        good = bytes(raw)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        file.write_bytes(raw)
        found = checkpoints.newest()
        assert found is not None
        assert found[0].step == 1
        file.write_bytes(good)
    assert capsys.readouterr().err.count("trying the one before") == 50


def state_of(size: int, step: int) -> TrainState:
    return TrainState({"units.0.w": torch.full((size,), float(step))}, {}, step)


def save_forever(pipe: Connection, folder: Path) -> None:
    for step in itertools.count(1):
        Checkpoints(folder).save(state_of(300_000, step), {})
        pipe.send(step)


@pytest.mark.timeout(120)
def test_kill_during_writing_leaves_the_newest_complete(tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(5):
        with started(save_forever, tmp_path) as child:
            for _ in range(rng.randrange(1, 8)):
                child.receive()
        checkpoints = Checkpoints(tmp_path)
        assert not list(tmp_path.glob(".*"))
        found = checkpoints.newest()
        assert found is not None
        assert set(found[0].weights["units.0.w"].tolist()) == {float(found[0].step)}


def fill_the_disk(pipe: Connection, folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpoints = Checkpoints(folder)
    checkpoints.save(state_of(10, 1), {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        checkpoints.save(state_of(100_000, 2), {})
    except StorageError as error:
        pipe.send(str(error))


def test_a_full_disk_names_path_and_bytes_and_keeps_the_old_one(tmp_path: Path) -> None:
    with started(fill_the_disk, tmp_path) as child:
        message = child.receive()
    assert "step-000000002 (400" in message
    assert "bytes) cannot be written: File too large" in message
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found[0].step == 1
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_that_is_a_pickle_is_never_run(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    folder = tmp_path / "step-000000001"
    folder.mkdir()
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        (folder / name).write_bytes(pickle.dumps(Evil()))
    assert Checkpoints(tmp_path).newest() is None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("manifest", ["{}", "null", "[1]", '{"state.json": "x"}'])
def test_an_empty_or_malformed_manifest_is_a_broken_checkpoint(tmp_path: Path, manifest: str) -> None:
    checkpoints, state = Checkpoints(tmp_path), trained().state()
    checkpoints.save(TrainState(state.weights, state.optimizer, 1), {})
    (checkpoints.save(TrainState(state.weights, state.optimizer, 2), {}) / "manifest.json").write_text(manifest)
    found = checkpoints.newest()
    assert found is not None
    assert found[0].step == 1


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(StorageError, match="checkpoints cannot be used for checkpoints: File exists"):
        Checkpoints(tmp_path / "checkpoints")

"""backlink-ray from the outside: exit codes, one clear line, and what it leaves behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from backlink_ray.cli import main

SMALL = [
    "--network", "resnet8", "--dataset", "cifar10-sample", "--num-modules", "2", "--propagation-length", "1", "--lr", "0.1",
    "--batch-size", "40", "--epochs", "1", "--train-images", "80", "--test-images", "50",
]  # fmt: skip


def train(folder: Path, *more: str) -> list[str]:
    return ["train", *SMALL, "--output-dir", str(folder), *more]


def test_train_over_ray_in_a_process_of_its_own(tmp_path: Path) -> None:
    picture = tmp_path / "timeline.png"
    arguments = train(tmp_path / "run", "--executor", "ray", "--timeline", str(picture))
    command = [sys.executable, "-m", "backlink_ray.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "run", "ray", done.stdout, picture)


@pytest.mark.parametrize("executor", ["local", "threads"])
def test_train(tmp_path: Path, executor: str, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "timeline.png"
    more = ["--timeline", str(picture)] if executor != "local" else []
    assert main(train(tmp_path / "run", "--executor", executor, *more)) == 0
    check_run(tmp_path / "run", executor, capsys.readouterr().out, picture)


def check_run(folder: Path, executor: str, out: str, picture: Path) -> None:
    assert "epoch 1/1  test error" in out
    assert json.loads((folder / "result.json").read_text())["executor"] == executor
    if executor != "local":
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--num-modules", "5"], 2, "num_modules=5 is out of range for resnet8 with 4 units; allowed 1..4"),
        (["--propagation-length", "3"], 2, "propagation_length=3 exceeds 2"),
        (["--alpha", "1.5"], 2, "alpha=1.5 is out of range; allowed 0..1"),
        (["--network", "resnet9"], 2, "network='resnet9' is not known"),
        (["--dataset", "imagenet"], 2, "dataset='imagenet' is not known; allowed:"),
        (["--head", "mlp"], 2, "head='mlp' is not known"),
        (["--method", "sgd"], 2, "method='sgd' is not known"),
        (["--batch-size", "81"], 2, "batch_size=81 does not fit 80 training images; allowed 1..80"),
        (["--train-images", "2001"], 2, "train_images=2001 does not fit the 2000 images there are"),
        (["--dataset", "cifar10", "--data-root", "/dev/null/x"], 2, "data root /dev/null/x cannot be written"),
        (["--lr", "1e30", "--executor", "local"], 1, "the local loss of stage"),
        (["--timeline", "x.foo", "--executor", "threads"], 2, "timeline='x.foo' is no PNG file"),
        (["--timeline", "x.png", "--executor", "local"], 2, "executor local has one; use executor threads or ray"),
        (["--executor", "ray", "--cpus-per-stage", "1000"], 2, "K=2 stages need 2000.1 CPUs, the cluster has"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], ray_here: None
) -> None:
    assert main(train(tmp_path / "run", *arguments)) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help_says_what_there_is() -> None:
    done = subprocess.run([sys.executable, "-m", "backlink_ray.cli", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for flag in ("--alpha", "--timeline", "--data-root", "--tail-memory", "--executor"):
        assert flag in done.stdout


def test_sync_brings_a_storage_to_mlflow_and_refuses_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from backlink_ray.runs.tracked import start_tracking
    from backlink_ray.tracking.tracker import ExperimentInfo

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "storage" / "study" / "runs" / "r"
    assert main([*train(folder), "--executor", "local"]) == 0
    start_tracking(folder, ExperimentInfo(name="e"), "name", params={"K": 2}, tags={}, dataset={})
    assert main(["sync", str(tmp_path / "storage")]) == 0
    assert f"in MLflow at sqlite:///{tmp_path}/storage/mlflow.db: 1 of 1 runs\n" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{tmp_path / 'storage' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert (run.info.status, run.data.metrics["curve/epoch"]) == ("FINISHED", 1.0)
    (tmp_path / "empty").mkdir()
    for path, uri, message in (
        ("none", "", "is no folder; give the --storage-path of a study"),
        ("empty", "", "has nothing to sync"),
        ("storage", "/folder", "'/folder' is a folder"),
    ):
        assert main(["sync", str(tmp_path / path), *(("--tracking-uri", uri) if uri else ())]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert list((tmp_path / "empty").iterdir()) == []

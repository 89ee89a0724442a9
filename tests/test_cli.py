"""backlink-ray from the outside: exit codes, one clear line per error, and the files it writes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from backlink_ray.cli import main
from tests.users import imported_from, write_project

SMALL = [
    "--network", "resnet8", "--dataset", "cifar10-sample", "--num-modules", "2", "--propagation-length", "1", "--lr", "0.1",
    "--batch-size", "40", "--epochs", "1", "--train-images", "80", "--test-images", "50",
]  # fmt: skip


def train(folder: Path, *more: str) -> list[str]:
    return ["train", *SMALL, "--output-dir", str(folder), *more]


def test_train_over_ray(tmp_path: Path, ray_here: None, capsys: pytest.CaptureFixture[str]) -> None:
    """On a Ray that runs; examples and studies start their own."""
    check_train(tmp_path, "ray", capsys)


@pytest.mark.parametrize("executor", ["local", "threads"])
def test_train(tmp_path: Path, executor: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_train(tmp_path, executor, capsys)


def check_train(tmp_path: Path, executor: str, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "folder" / "timeline.png"
    more = ["--timeline", str(picture)] if executor != "local" else []
    arguments = train(tmp_path / "run", "--executor", executor, *more)
    assert main(arguments) == 0
    assert "epoch 1/1  test error" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["executor"] == executor
    if more:
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert main(arguments) == 0
    assert ("is not drawn: every step of the run was taken before" in capsys.readouterr().err) == bool(more)


@pytest.mark.parametrize(
    ("arguments", "code", "values"),
    [
        (["--num-modules", "5"], 2, r"num_modules=5 .*resnet8 .*1\.\.4"),
        (["--propagation-length", "3"], 2, "propagation_length=3 .*2"),
        (
            ["--alpha", "1.5"],
            2,
            r"alpha=1\.5 is out of range; allowed 0\.\.1",
        ),  # the wording of all ranges is tested once
        (
            ["--network", "resnet9"],
            2,
            "network='resnet9' is not known; allowed: ",
        ),  # the wording of all names is tested once
        (["--dataset", "imagenet"], 2, "dataset='imagenet' .*cifar10-sample"),
        (["--head", "mlp"], 2, "head='mlp' .*fc, conv, pool, mlp-sr"),
        (["--method", "sgd"], 2, "method='sgd' .*backlink"),
        (["--batch-size", "81"], 2, r"batch_size=81 .*1\.\.80"),
        (["--train-images", "2001"], 2, "train_images=2001 .*2000"),
        (["--dataset", "cifar10", "--data-root", "/dev/null/x"], 2, "/dev/null/x "),
        (["--lr", "1e30", "--executor", "local"], 1, r"stage [01] is .*smaller lr"),
        (["--timeline", "x.foo", "--executor", "threads"], 2, r"timeline='x\.foo'.*PNG"),
        (["--timeline", "x.png", "--executor", "local"], 2, "executor local .*threads or ray"),
        (["--timeline", "/dev/null/x.png", "--executor", "threads"], 2, "timeline='/dev/null' cannot be written"),
        (["--transport", "collective", "--executor", "threads"], 2, "transport='collective' .*executor ray"),
        (["--transport", "objectstore", "--executor", "local"], 2, "transport='objectstore' .*executor ray"),
        (["--precision", "tf32", "--executor", "threads"], 2, "precision='tf32' is for GPUs"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, arguments: list[str], code: int, values: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(train(tmp_path / "run", *arguments), code, values, capsys)
    assert (tmp_path / "run").exists() == (code != 2)  # what is refused leaves nothing behind


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    write_project(tmp_path, "cli")
    monkeypatch.chdir(tmp_path)
    with imported_from(tmp_path):
        yield tmp_path


def test_parts_of_the_users_are_trained_and_own_options_are_flags(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [
        "--network",
        "cli_model:network",
        "--optimizer",
        "torch.optim:AdamW",
        "--sizes",
        "1",
        "3",
        "--executor",
        "local",
    ]
    on_base = [*train(project / "run"), *own, "--base", "cli_method:Mine", "--gamma", "0.7", "--twice"]
    assert main(on_base) == 0
    stored = yaml.safe_load((project / "run" / "config.yaml").read_text())
    assert stored["options"] == {"gamma": 0.7, "twice": True}
    assert (stored["sizes"], stored["base"]) == ([1, 3], "cli_method:Mine")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--method=cli_method:Mine", "--help"])
    assert "--gamma" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "cli_none:network"], "network='cli_none:network' cannot be imported: there is no module cli_none in "),
        (["--method", "cli_other:Mine"], "has a field 'timeline', which is another flag; give it another name"),
        (["--network", "cli_model:nets"], r"cli_model.py defines network"),
        (["--method", "cli_none:Mine"], "method='cli_none:Mine' cannot be imported"),
        (["--network", "cli_model:network", "--sizes", "1", "1"], r"sizes=\(1, 1\) sum to 2"),
        (["--network", "cli_model:network", "--num-modules", "5"], "num_modules=5 is out of range .* 4 units"),
        (["--network", "cli_other:shape"], r"have shape \(3, 32, 32\), but the network was built for \(3, 8, 8\)"),
        (["--network", "cli_other:classes"], "has 7 outputs; dataset='cifar10-sample' needs 10"),
        (["--network", "cli_other:nothing"], "returns a NoneType; allowed: a backlink_ray.Network"),
        (["--dataset", "cli_other:data"], "dataset='cli_other:data' returns a int; allowed: a backlink_ray.Dataset"),
        (["--optimizer", "torch.optim:AdamW", "--momentum", "0.5"], "momentum=0.5 .*torch.optim:AdamW"),
    ],
)  # fmt: skip
def test_bad_parts_of_the_users_are_one_line(
    project: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "cli_other.py").write_text(OTHER)
    check_refused(train(project / "run", *arguments), 2, message, capsys)


OTHER = """
from dataclasses import dataclass
from backlink_ray import Method
from cli_model import network
@dataclass(frozen=True)
class Mine(Method):
    timeline: float = 1.0
def shape(num_classes, image_size, seed): return network(num_classes, 8, seed)
def classes(num_classes, image_size, seed): return network(7, image_size, seed)
def nothing(**_): ...
def data(**_): return 3
"""


def test_a_cluster_too_small_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_here: None) -> None:
    arguments = train(tmp_path / "run", "--executor", "ray", "--cpus-per-stage", "1000")
    check_refused(arguments, 2, r"2 stages .*2000\.1 CPUs.* 2;", capsys)


def check_refused(arguments: list[str], code: int, values: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert re.search(values, lines[-1])
    assert not [line for line in lines if line.startswith("Traceback")]


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    out = capsys.readouterr().out
    for flag in ("--alpha", "--timeline", "--data-root", "--tail-memory", "--executor"):
        assert flag in out


def test_sync_brings_a_storage_path_to_mlflow_and_refuses_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from backlink_ray.runs.tracked import start_tracking
    from backlink_ray.tracking.run import ExperimentInfo

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "storage" / "study" / "runs" / "r"
    assert main([*train(folder), "--executor", "local"]) == 0
    start_tracking(folder, ExperimentInfo(name="e"), "name", params={"K": 2}, tags={}, dataset={})
    assert main(["sync", str(tmp_path / "storage")]) == 0
    assert f"in MLflow at sqlite:///{tmp_path}/storage/mlflow.db: 1 of 1 runs\n" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{tmp_path / 'storage' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert (run.info.status, run.data.metrics["progress/epoch"]) == ("FINISHED", 1.0)
    (tmp_path / "storage" / "study" / "study.json").write_text("{}")
    assert main(["sync", str(tmp_path / "storage" / "study")]) == 0  # one study's folder: the same database
    assert f"{tmp_path}/storage/mlflow.db: 1 of 1 runs\n" in capsys.readouterr().out
    assert not (tmp_path / "storage" / "study" / "mlflow.db").exists()
    (tmp_path / "empty").mkdir()
    for path, uri, message in (
        ("none", "", "is not a folder; give the --storage-path of a study"),
        ("empty", "", "has nothing to sync"),
        ("storage", "/folder", "'/folder' is a folder"),
    ):
        assert main(["sync", str(tmp_path / path), *(("--tracking-uri", uri) if uri else ())]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert list((tmp_path / "empty").iterdir()) == []

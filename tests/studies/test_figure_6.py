"""Figure 6 from its command line: files, numbers, MLflow, and refusals."""

import csv
import math
from pathlib import Path

import pytest
from PIL import Image

from tests.data.tiny import Tiny, install
from tests.studies.recipes import run_recipe


def figure(*flags: str) -> int:
    return run_recipe("figure_6_classes", *flags)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tiny]:
    """Tiny CIFAR-10 and SVHN in separate folders, with download addresses where nothing listens."""
    return {name: install(name, tmp_path / name, monkeypatch) for name in ("cifar10", "svhn")}


@pytest.mark.timeout(120)
def test_the_smoke_test_writes_the_figure_and_its_data(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    assert figure("--smoke-test", "--storage-path", str(storage), "--data-root", str(tmp_path / "no data")) == 0
    folder = storage / "figure_6_classes-smoke"
    picture = folder / "figure_6_classes-smoke.png"
    assert str(picture) in capsys.readouterr().out
    with Image.open(picture) as image:
        assert min(image.size) > 500
        assert "floor(200 / 1.3^i)" in image.info["Description"]
        assert "scaled by 200 / 5000" in image.info["Description"]
    rows = rows_of(picture.with_suffix(".csv"))
    assert [int(row["train_images"]) for row in rows] == [math.floor(200 / 1.3**i) for i in range(10)]
    assert [row["name"] for row in rows][::9] == ["airplane", "truck"]
    assert {(row["train_images_before"], row["test_images"]) for row in rows} == {("200", "50")}
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("backlink-figure_6_classes-smoke")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {
        f"figure_6_classes-smoke.{kind}" for kind in ("png", "csv", "parquet")
    }


@pytest.mark.timeout(120)
def test_svhn_is_the_second_panel_if_its_files_exist(
    originals: dict[str, Tiny], storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cifar10, svhn = originals["cifar10"].folder, originals["svhn"].folder
    flags = ("--data-root", str(cifar10), "--storage-path", str(storage))
    table = storage / "figure_6_classes" / "figure_6_classes.csv"
    assert figure(*flags) == 0
    assert "panel (b) is left out: " in capsys.readouterr().err
    assert [row["dataset"] for row in rows_of(table)] == ["cifar10-lt"] * 10
    for file in originals["svhn"].files:
        (svhn / file).rename(cifar10 / file)
    assert figure(*flags, "--seed", "1") == 0
    rows = rows_of(table)
    assert [row["dataset"] for row in rows] == ["cifar10-lt"] * 10 + ["svhn"] * 10
    assert [int(row["train_images"]) for row in rows] == [10, 7, 5, 4, 3, 2, 2, 1, 1, 0] + [10] * 10
    assert (rows[0]["seed"], rows[10]["seed"]) == ("1", "-1")


@pytest.mark.parametrize(
    "case", ["no data", "corrupt", "corrupt svhn", "no svhn", "no storage", "bad address", "unknown flag"]
)
def test_bad_input_is_one_line(
    case: str, originals: dict[str, Tiny], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cifar10 = originals["cifar10"]
    good = ("--data-root", str(cifar10.folder), "--storage-path", str(tmp_path / "s"))
    (tmp_path / "file").write_text("not a folder")
    if case == "corrupt":
        (cifar10.folder / cifar10.files[0]).write_bytes(b"other")
    if case == "corrupt svhn":
        for file in originals["svhn"].files:
            (cifar10.folder / file).write_bytes(b"other")
    cannot = "cannot be written (File exists); give another folder"
    flags, message = {
        "no data": ((*good, "--data-root", str(tmp_path / "empty")), "download failed"),
        "corrupt": (good, f"{cifar10.files[0]} is corrupt: expected md5"),
        "corrupt svhn": (good, f"{originals['svhn'].files[0]} is corrupt: expected md5"),
        "no svhn": ((*good, "--svhn"), "train_32x32.mat is missing; download failed"),
        "no storage": ((*good, "--storage-path", str(tmp_path / "file" / "s")), cannot),
        "bad address": ((*good, "--tracking-uri", "/some/folder"), "MLflow 3 no longer accepts"),
        "unknown flag": (("--smoke",), "nrecognized"),
    }[case]
    assert figure(*flags) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert ("panel (b) is left out" in said) == (
        case in ("no storage", "bad address")
    )  # SVHN's files are missing there


def test_a_dry_run_draws_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figure("--dry-run", "--storage-path", str(tmp_path / "s"), "--data-root", str(tmp_path), "--seed", "4") == 0
    said = capsys.readouterr().out
    assert f"(a) cifar10-lt, seed 4, files in {tmp_path}" in said
    assert "(b) svhn" in said
    assert not (tmp_path / "s").exists()

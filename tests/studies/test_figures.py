"""Figures from their command line: files from measurements and records, repeated runs, and refusals."""

import dataclasses
import io
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from backlink_ray import RunConfig
from backlink_ray.benchmarks.descent import directions
from backlink_ray.commands import trials
from backlink_ray.commands.figure import FigureCommand, FigureFlags, Measurement, figure_main
from backlink_ray.commands.search import main
from backlink_ray.errors import ConfigError, NotFiniteError
from backlink_ray.figures.captions import budget, is_paper_budget
from backlink_ray.figures.save import save_figure
from backlink_ray.figures.style import new_figure, series_of
from backlink_ray.runs.results import Results, columns_of
from backlink_ray.runs.runner import run
from backlink_ray.tuning.folder import open_study_folder
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.space import Space
from tests.examples import sample
from tests.paper.rows import row_of
from tests.studies.recipes import run_recipe, script, start_recipe

NOBODY = 65534
MEASURED = ("figure_3_descent", "figure_7_memory", "figure_9_runtime")
GRIDS = ("figure_4_alpha", "figure_5_lr", "figure_10_tradeoff")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def check_files(folder: Path, name: str, rows: int) -> dict[str, Any]:
    """Check a figure and both its data files; return the columns, and the caption from the PNG's metadata."""
    with Image.open(folder / f"{name}.png") as image:
        assert image.width > 800
        caption = str(image.info["Description"])
    table = pq.read_table(folder / f"{name}.parquet")
    assert table.num_rows == pyarrow.csv.read_csv(folder / f"{name}.csv").num_rows == rows
    assert "Hardware" in caption or "cores of" in caption
    assert "Hardware: not recorded" not in caption
    return {"caption": caption, **table.to_pydict()}


SMALL = RunConfig(network="resnet8", num_modules=2, propagation_length=1, batch_size=16, lr=0.05)


def memory_plan(**changes: Any) -> Plan:
    base = SMALL.replace(**changes)
    others = tuple(base.replace(method=method) for method in ("bp", "gll", "infopro"))
    return Plan(base=base, runs=(*others, base, base.replace(tail_memory="recompute")))


def draw(name: str, plan: Plan, storage: Path, *flags: str, of: dict[str, Any] | None = None) -> int:
    """Run a figure of studies/ with another smoke preset; return the exit code."""
    found: Measurement = (of or script(name))["MEASUREMENT"]
    given = ["--smoke-test", "--device", "cpu", "--storage-path", str(storage), *flags]
    return figure_main(name, dataclasses.replace(found, presets={"smoke": plan}), "", given)


def test_a_figure_that_measures_draws_tracks_and_measures_nothing_twice(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    plan = memory_plan(head="conv", batch_size=256)
    assert draw("figure_7_memory", plan, storage) == 0
    first = capsys.readouterr().out
    assert first.count(" MiB\n") == 5
    found = check_files(storage / "figure_7_memory-smoke", "figure_7_memory", 5)
    assert "counted, not computed" in found["caption"]
    bp, gll, _, retain, recompute = found["memory_mib"]
    assert bp > retain > recompute == gll
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    (tracked,) = [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]
    kept = {Path(a.path).suffix for a in client.list_artifacts(tracked.info.run_id)}
    assert (tracked.info.status, kept) == ("FINISHED", {".png", ".csv", ".parquet"})
    assert draw("figure_7_memory", plan, storage) == 0
    assert " MiB\n" not in capsys.readouterr().out


def test_a_figure_in_another_precision_has_a_folder_of_its_own(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = memory_plan(head="conv", batch_size=16)
    assert draw("figure_7_memory", plan, storage, "--graph") == 2
    assert "graph=True captures the work of a GPU" in capsys.readouterr().err
    assert draw("figure_7_memory", plan, storage, "--precision", "bf16") == 0
    assert not list(storage.glob("*graph*"))
    rows = Results(storage / "figure_7_memory-smoke-bf16").rows()
    assert {row["precision"] for row in rows} == {"bf16"}


def test_a_configuration_that_does_not_fit_is_left_out_and_the_rest_is_drawn(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of = script("figure_7_memory")

    def footprint_mib(config: RunConfig, _device: str) -> float:
        if config.method == "bp":
            raise torch.OutOfMemoryError("CUDA out of memory.\nAdvice on the allocator.")
        return 100.0

    monkeypatch.setitem(of["measure"].__globals__, "footprint_mib", footprint_mib)
    assert draw("figure_7_memory", memory_plan(), storage, of=of) == 1
    assert "BP failed and is left out: CUDA out of memory.\n" in capsys.readouterr().err
    found = check_files(storage / "figure_7_memory-smoke", "figure_7_memory", 4)
    assert "Left out for lack of a result: 1 (resnet8 bp K01" in found["caption"]


def test_the_descent_figure_from_a_real_run(storage: Path) -> None:
    of = script("figure_3_descent")
    base = SMALL.replace(dataset="cifar10-sample", train_images=32, test_images=20, epochs=1)
    assert draw("figure_3_descent", Plan(base=base, runs=of["runs"](base, ((2, 1),), (0.5,))), storage) == 0
    # Two runs, before and after an epoch.
    found = check_files(storage / "figure_3_descent-smoke", "figure_3_descent", 4)
    check_files(storage / "figure_3_descent-smoke", "figure_3_modules", 4)
    assert "not the paper's budget" in found["caption"]
    assert sorted(found["epoch"]) == [0, 0, 1, 1]
    assert found["constant_module_1"] == pytest.approx([1.0] * 4, abs=1e-6)


def test_another_machine_measures_descent_from_the_first_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, folders = script("figure_3_descent"), []
    monkeypatch.setitem(
        of["measure"].__globals__, "directions", lambda _config, _data, _device, folder: folders.append(folder) or []
    )
    config = SMALL.replace(train_images=32, test_images=20)
    for hardware in ("A", "B", "A"):
        figure = FigureCommand("f", of["MEASUREMENT"], FigureFlags(smoke_test=True, storage_path=str(tmp_path)))
        figure.hardware = hardware
        assert list(of["measure"]([config], figure)) == []
    first, second, third = folders
    assert first == third != second


def test_a_run_that_diverges_is_not_measured_on(tmp_path: Path) -> None:
    config = SMALL.replace(epochs=1, train_images=32, test_images=20, lr=1e30, num_modules=1)
    found = directions(config, sample(), "cpu", tmp_path)
    assert next(found)[0] == 0
    with pytest.raises(NotFiniteError, match="try a smaller lr"):
        next(found)


def test_data_is_checked_before_a_folder_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = script("figure_3_descent")
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"other")
    flags = [
        "--preset",
        "paper",
        "--device",
        "cpu",
        "--data-root",
        str(tmp_path),
        "--storage-path",
        str(tmp_path / "s"),
    ]
    assert figure_main("figure_3_descent", of["MEASUREMENT"], "", flags) == 2
    assert "data_batch_1 is corrupt" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.timeout(100)
def test_the_runtime_figure_on_threads(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = script("figure_9_runtime")
    monkeypatch.setitem(of["measure"].__globals__, "number_of_devices", lambda _device: 2)
    base = SMALL.replace(head="conv")
    runs = (base.replace(method="gll"), base, base.replace(method="gll", num_modules=4))
    assert draw("figure_9_runtime", Plan(base=base, runs=runs), storage, "--executor", "threads", of=of) == 0
    found = check_files(storage / "figure_9_runtime-smoke", "figure_9_runtime", 2)
    assert "a device is a core" in found["caption"]
    rows = zip(found["time_ratio_min"], found["time_ratio"], found["time_ratio_max"], strict=True)
    assert all(0 < low <= middle <= high for low, middle, high in rows)
    assert found["n"] == [3, 3]
    assert "2 devices; left out in whole or in part: K = 4" in found["caption"]


def record_of(folder: Path, name: str, plan: Plan) -> None:
    """Run a plan in this process, without Tune, and record its runs as a study does."""
    with open_study_folder(folder, name, plan, "auto"):
        for config in plan.runs:
            result = run(config, folder / "runs" / config.run_id, dataset=sample())
            numbers = {k: v for k, v in result.items() if isinstance(v, int | float | str)}
            Results(folder).append({**columns_of(config), **numbers, "run_id": config.run_id, "reason": "done"})


GRID_RUNS: dict[str, tuple[dict[str, Any], ...]] = {
    "figure_4_alpha": ({"alpha": 0.0}, {"alpha": 0.5}, {"method": "gll"}),
    "figure_5_lr": ({"lr": 0.01}, {"lr": 0.1}, {"lr": 0.1, "seed": 1}),
    "figure_10_tradeoff": ({"method": "bp"}, {}, {"num_modules": 4}),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_becomes_its_picture_from_the_record(
    name: str, storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = SMALL.replace(
        head="conv" if "10" in name else "fc",
        epochs=1,
        batch_size=48,
        train_images=96,
        test_images=40,
        executor="local",
    )
    runs = tuple(base.replace(**changes) for changes in GRID_RUNS[name])
    plan = Plan(base=base, runs=runs, metric="test_error_pct")
    folder = storage / f"{name}-smoke"
    record_of(folder, f"{name}-smoke", plan)
    flags = ["--smoke-test", "--report-only", "--storage-path", str(storage)]
    mask = os.umask(0o002)
    try:
        assert main(name, {"smoke": plan}, "", flags, picture=script(name)["picture"]) == 0
    finally:
        os.umask(mask)
    assert not any(path.stat().st_mode & 0o022 for path in folder.rglob("*"))
    found = check_files(folder, name, 3)
    assert "not the paper's budget" in found["caption"]
    assert f"{name}.png" in capsys.readouterr().out
    if name == "figure_10_tradeoff":
        assert found["memory_reduction_pct"][0] == found["accuracy_drop_pp"][0] == 0.0  # BP beside itself
        assert all(reduction > 0 for reduction in found["memory_reduction_pct"][1:])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_report_of_another_users_study_needs_no_right_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    plan = memory_plan(epochs=1)
    with TemporaryDirectory() as place:  # pytest's own folders are closed to others
        folder, storage = Path(place) / "lists-smoke", ["--smoke-test", "--report-only", "--storage-path", place]
        with open_study_folder(folder, "lists-smoke", plan, "auto"):
            Results(folder).append(row_of(plan.base, 50.0))
        assert main("lists", {"smoke": plan}, "", storage) == 0  # and imports what only root may read
        table = (folder / "table.md").read_bytes()
        Path(place).chmod(0o755)
        capsys.readouterr()
        os.seteuid(NOBODY)
        try:
            assert main("lists", {"smoke": plan}, "", storage) == 0
        finally:
            os.seteuid(0)
        said = capsys.readouterr()
        assert "50.00" in said.out
        assert "is not writable, so its tables and figures are not updated" in said.err
        assert (folder / "table.md").read_bytes() == table


@pytest.mark.parametrize("name", [*MEASURED, *GRIDS])
def test_a_report_without_a_record_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--smoke-test", "--report-only", "--storage-path", str(tmp_path / "s"))
    assert run_recipe(name, *flags) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "holds no study to report" in said[0]
    assert not (tmp_path / "s").exists()


def test_refusals_are_one_line(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(base=SMALL, runs=(SMALL.replace(method="bp"),))
    with open_study_folder(storage / "figure_7_memory-smoke", "figure_7_memory-smoke", plan, "auto"):
        pass  # killed before the first row
    for flags, message in (
        (("--device", "cuda:77"), "device='cuda:77' cannot be used"),
        (("--tracking-uri", "/some/folder"), "MLflow 3 no longer accepts"),
        (("--report-only",), "has no finished run to report"),
    ):
        assert draw("figure_7_memory", plan, storage, *flags) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("devices", "flags", "message"),
    [
        (1, (), "K=2 stages need K devices, and this machine has 1"),
        (2, ("--address", "10.0.0.1:6379"), "address='10.0.0.1:6379' names a cluster"),
        (2, ("--executor", "local"), "invalid choice 'local'"),
    ],
)
def test_what_figure_9_cannot_compare_is_refused_before_a_folder_is_opened(
    devices: int, flags: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("backlink_ray.commands.figure.number_of_devices", lambda _device: devices)
    given = ["--smoke-test", "--device", "cpu", "--storage-path", str(tmp_path / "s"), *flags]
    assert run_recipe("figure_9_runtime", *given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", [*MEASURED, *GRIDS])
def test_a_dry_run_lists_the_papers_cells_and_what_they_cost(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials, "images_per_s", lambda _config, _device: 100.0)  # measured in other tests
    monkeypatch.setattr("backlink_ray.commands.figure.number_of_devices", lambda _device: 8)
    paper = script(name)["PRESETS"]["paper"]
    assert len({run.run_id for run in paper.runs}) == len(paper.runs)
    assert run_recipe(name, "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    runs = paper.runs
    listed = said[: len(runs)]
    assert all(config.run_name in line for config, line in zip(runs, listed, strict=True))
    assert {c.network for c in runs} <= {"resnet32", "resnet110"}
    assert {(c.dataset, c.batch_size, c.epochs) for c in runs} == {("cifar10", 512, 200)}
    assert [("left out: K=16" in line) for line in listed] == [c.num_modules == 16 and "9" in name for c in runs]
    hours = {
        "figure_3_descent": 18 * 602 * 50_000 / 100 / 3600, "figure_4_alpha": 34 * 200 * 50_000 / 100 / 3600,
        "figure_5_lr": 50 * 200 * 50_000 / 100 / 3600, "figure_10_tradeoff": 16 * 200 * 50_000 / 100 / 3600,
        "figure_9_runtime": 18 * 4 * 512 * 10 * 8 / 100 / 3600,
    }  # fmt: skip
    costs = [line for line in said if line.startswith("estimated: ")]
    assert [line.split(" of ")[0] for line in costs] == [
        f"estimated: {hours[n]:.3g} device-hours" for n in {name} & set(hours)
    ]


def test_a_list_is_run_with_as_many_seeds_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials, "images_per_s", lambda _config, _device: 100.0)
    flags = ("--smoke-test", "--dry-run", "--storage-path", str(tmp_path))
    assert run_recipe("figure_4_alpha", *flags, "--seed", "5", "--seeds", "3") == 0
    said = capsys.readouterr().out
    assert "18 trials of 1 epochs" in said
    assert [said.count(f"-s{seed}  ") for seed in (4, 5, 6, 7, 8)] == [0, 6, 6, 6, 0]
    searched = {"smoke": Plan(base=SMALL, space=Space())}
    for plans, seeds in ((searched, "2"), ({"smoke": memory_plan()}, "0")):
        assert main("s", plans, "", [*flags, "--seeds", seeds]) == 2
        assert f"seeds={seeds} cannot be run; allowed: 1 or more" in capsys.readouterr().err


def test_runs_of_another_study_are_not_run_again_and_are_enough_for_a_picture(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials, "images_per_s", lambda _config, _device: 100.0)
    of, base = script("figure_10_tradeoff"), SMALL.replace(head="conv", dataset="cifar10")
    runs = (base.replace(method="bp"), base, base.replace(num_modules=4))
    plans = {"paper": Plan(base=base, runs=runs, metric="test_error_pct")}
    for error, config in ((9.0, base.replace(method="bp")), (10.0, base.replace(alpha=0.25, seed=0))):
        Results(storage / "table_3").append(row_of(config, error, step_ms=9.0))
    given = {"picture": of["picture"], "elsewhere": of["table_rows"]}
    flags = ["--preset", "paper", "--storage-path", str(storage)]
    assert main("figure_10_tradeoff", plans, "", [*flags, "--dry-run"], **given) == 0
    said = capsys.readouterr().out
    assert "1 trials" in said
    assert "2 finished runs of other studies count too" in said
    assert "backlink/K04-l1" in said.splitlines()[0]
    # A report before the study's first start: the study can use the folder afterwards.
    assert main("figure_10_tradeoff", plans, "", [*flags, "--report-only"], **given) == 0
    with open_study_folder(storage / "figure_10_tradeoff", "figure_10_tradeoff", plans["paper"], "must"):
        Results(storage / "figure_10_tradeoff").append(
            row_of(base.replace(method="bp"), 9.0, step_ms=9.0)
        )  # ran here too
    assert main("figure_10_tradeoff", plans, "", [*flags, "--report-only"], **given) == 0
    drawn = pq.read_table(storage / "figure_10_tradeoff" / "figure_10_tradeoff.parquet").to_pydict()
    assert (drawn["error_pct"], drawn["n"]) == ([9.0, 10.0], [1, 1])


def test_a_figure_without_data_is_refused_and_its_columns_may_differ(tmp_path: Path) -> None:
    figure, _ = new_figure(1, "a title")
    with pytest.raises(ConfigError, match="'empty' has no data to draw"):
        save_figure(figure, [], "empty", tmp_path, caption="c")
    paths = save_figure(figure, [{"a": 1}, {"a": 2, "b": "x"}], "two", tmp_path, caption="what it shows")
    assert [path.suffix for path in paths] == [".png", ".csv", ".parquet"]
    assert pq.read_table(paths[2]).to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    assert Image.open(io.BytesIO(paths[0].read_bytes())).info["Description"] == "what it shows"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_figure(figure, [{"a": 1}], "two", tmp_path / "file", caption="c")


def test_the_papers_budget_is_distinguished_from_others() -> None:
    paper = RunConfig(dataset="cifar10", epochs=200, batch_size=512)
    assert is_paper_budget(paper)
    assert is_paper_budget(paper.replace(dataset="svhn", batch_size=1024))
    for change in ({"epochs": 199}, {"train_images": 1000}, {"dataset": "cifar10-sample"}, {"batch_size": 128}):
        assert not is_paper_budget(paper.replace(**change))
        assert "not the paper's budget" in budget(paper.replace(**change))
    assert "not the paper's" not in budget(paper)


def test_series_have_names() -> None:
    linked = RunConfig(method="backlink", propagation_length=2)
    names = [series_of(linked.replace(**c)) for c in ({}, {"base": "infopro"}, {"method": "bp"}, {"method": "infopro"})]
    assert names == ["BackLink l=2", "BackLink+InfoPro l=2", "BP", "InfoPro"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [*MEASURED, *GRIDS])
def test_smoke_tests_as_a_user_runs_them(name: str, tmp_path: Path) -> None:
    done = start_recipe(name, "--smoke-test", "--storage-path", str(tmp_path), timeout_s=300)
    assert done.returncode == 0, done.stderr
    rows = len(Results(tmp_path / f"{name}-smoke").rows())
    check_files(tmp_path / f"{name}-smoke", name, rows)
    assert json.loads((tmp_path / f"{name}-smoke" / "study.json").read_text())["study"] == f"{name}-smoke"

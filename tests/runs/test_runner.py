"""A run: its folder, its result, resuming, and what it refuses; on the embedded real images."""

import contextlib
import itertools
import json
from pathlib import Path

import pytest
import yaml

from backlink_ray.data.datasets import load_dataset
from backlink_ray.errors import ConfigError, StorageError
from backlink_ray.measure import convolutions
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.runs import executors, runner
from backlink_ray.runs.cluster import start_once
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.executors import choose_executor
from backlink_ray.runs.folder import RunFolder
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.results import made_with
from backlink_ray.runs.runner import run
from backlink_ray.train.checkpoint import Checkpoints

CONFIG = RunConfig(
    network="resnet8", num_modules=2, propagation_length=1, lr=0.1, batch_size=40, epochs=2, train_images=120,
    test_images=50, executor="local",
)  # fmt: skip
DATA = load_dataset("cifar10-sample", train_images=120, test_images=50)


def test_the_run_folder(tmp_path: Path) -> None:
    seen: list[int] = []
    result = run(CONFIG, tmp_path, dataset=DATA, options=RunOptions(on_epoch=lambda m: seen.append(m["epoch"])))
    assert seen == [1, 2]
    assert {p.name for p in tmp_path.iterdir()} == {
        ".lock", "config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "result.json",
    }  # fmt: skip
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["run_id"] == CONFIG.run_id
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert len(result["curve"]) == 2
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert {"test_error_pct", "images_per_s", "epoch_s", "peak_memory_mib", "weights_sha256", "curve"} <= result.keys()


def test_executors_give_one_result_and_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    local = run(CONFIG, tmp_path / "a", dataset=DATA)
    threads = run(CONFIG.replace(executor="threads"), tmp_path / "b", dataset=DATA)
    assert local["weights_sha256"] == threads["weights_sha256"]
    assert local["test_error_pct"] == threads["test_error_pct"]
    assert run(CONFIG, tmp_path / "b", dataset=DATA)["executor"] == "threads"


@pytest.mark.parametrize(("precision", "lines"), [("bf16", 1), ("fp32", 0)])
def test_a_run_in_bfloat16_warns_once(
    precision: str, lines: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convolutions, "_SLOWER", 0.0)
    for _ in range(2):  # the second call finds the result
        run(CONFIG.replace(precision=precision), tmp_path, dataset=DATA)
    assert capsys.readouterr().err.count("bfloat16 is slow here: 9 of 9 convolutions") == lines


def test_an_interrupted_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    whole = run(CONFIG, tmp_path / "whole", dataset=DATA)

    def interrupt(metrics: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, tmp_path / "cut", dataset=DATA, options=RunOptions(on_epoch=interrupt))
    seen: list[int] = []
    result = run(CONFIG, tmp_path / "cut", dataset=DATA, options=RunOptions(on_epoch=lambda m: seen.append(m["epoch"])))
    assert seen == [2]
    assert result["weights_sha256"] == whole["weights_sha256"]
    assert [m["test_error_pct"] for m in result["curve"]] == [m["test_error_pct"] for m in whole["curve"]]
    assert epochs_of(tmp_path / "cut") == [1, 2]
    attempts = json.loads((tmp_path / "cut" / "environment.json").read_text())["attempts"]
    assert [attempt["first_epoch"] for attempt in attempts] == [1, 2]


def epochs_of(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stop_at(patch: pytest.MonkeyPatch, owner: type, name: str, call: int) -> None:
    """End a run at the n-th call of a method, like a kill just before it."""
    real, calls = getattr(owner, name), itertools.count(1)

    def stop(*args: object) -> object:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*args)

    patch.setattr(owner, name, stop)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Checkpoints, "save", 1), (RunFolder, "append", 1), (Checkpoints, "save", 2), (RunFolder, "append", 2),
        (RunFolder, "finish", 1),
    ],
)  # fmt: skip
def test_a_kill_between_any_two_writes_leaves_each_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int
) -> None:
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        stop_at(patch, owner, name, call)
        run(CONFIG, tmp_path, dataset=DATA)
    torn = tmp_path / "metrics.jsonl"
    torn.write_bytes((torn.read_bytes() if torn.exists() else b"") + b'{"epoch": 9, "te')
    result = run(CONFIG, tmp_path, dataset=DATA)
    assert epochs_of(tmp_path) == [m["epoch"] for m in result["curve"]] == [1, 2]
    assert result["weights_sha256"] == WHOLE.setdefault("weights", result["weights_sha256"])


WHOLE: dict[str, str] = {}  # the weights are the same after any of the kills


def test_a_checkpoint_holds_its_own_epoch_alone_and_an_older_one_cuts_the_curve(tmp_path: Path) -> None:
    config = CONFIG.replace(epochs=3)

    def interrupt(metrics: dict[str, int]) -> None:
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, dataset=DATA, options=RunOptions(on_epoch=interrupt))
    *_, newest = sorted((tmp_path / "checkpoints").iterdir())
    assert json.loads((newest / "state.json").read_text())["extra"].keys() == {"run_id", "metrics"}
    (newest / "weights.safetensors").write_bytes(b"")
    times = [m["time_ms"] for m in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())]
    result = run(config, tmp_path, dataset=DATA)
    assert epochs_of(tmp_path) == [1, 2, 3]
    assert result["curve"][0]["time_ms"] == times[0]
    assert result["curve"][1]["time_ms"] > times[1]  # trained again


@pytest.mark.parametrize("damage", ["", '{"epoch": 2}\n', '{"epoch": 1\n{"epoch": 2}\n'])
def test_a_curve_that_lacks_epochs_is_refused_and_never_invented(tmp_path: Path, damage: str) -> None:
    folder = RunFolder(tmp_path, CONFIG, DATA)
    (tmp_path / "metrics.jsonl").write_text(damage)
    with pytest.raises(StorageError, match=r"metrics\.jsonl.*; fix: rm -r .*, and start again, from the beginning"):
        folder.resume({"epoch": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == damage


def test_a_finished_folder_is_left_as_it_is(tmp_path: Path) -> None:
    run(CONFIG, tmp_path, dataset=DATA)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    run(CONFIG.replace(executor="threads"), tmp_path, dataset=DATA)
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()
    } == before


@pytest.mark.parametrize(("executor", "stages"), [("local", 1), ("threads", 2), ("ray", 2)])
def test_every_stage_reports_its_own_environment(
    tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch, executor: str, stages: int
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "the driver's machine")  # actors are processes of their own
    run(CONFIG.replace(executor=executor, epochs=1), tmp_path / "runs" / "r", dataset=DATA)
    (attempt,) = json.loads((tmp_path / "runs" / "r" / "environment.json").read_text())["attempts"]
    assert (attempt["executor"], attempt["first_epoch"], len(attempt["stages"])) == (executor, 1, stages)
    for stage in attempt["stages"]:
        assert {"versions", "commit", "cpu", "hardware", "device"} <= stage.keys()
        assert (stage["host"] == "the driver's machine") == (executor != "ray")
    (line,) = made_with(tmp_path, [{"run_id": "r", "status": "FINISHED", "executor": executor}])
    assert line.startswith(f"{stage['hardware']}, torch {stage['versions']['torch']}, backlink_ray ")
    assert line.endswith(f", commit {stage['commit']}, executor {executor}: 1 run")


def test_a_folder_of_the_first_version_is_refused_with_its_version(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"run_id: {CONFIG.run_id}\n")
    with pytest.raises(ConfigError, match=r"was written by backlink_ray 0\.1\.0, .*; give another folder") as caught:
        run(CONFIG, tmp_path, dataset=DATA)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_folder_of_another_run_or_of_other_data_is_refused_also_if_it_is_not_finished(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG, DATA).opened():
        pass
    with pytest.raises(ConfigError, match=r"holds run \w+, not \w+; give another folder"):
        run(CONFIG.replace(seed=1), tmp_path, dataset=DATA)
    with pytest.raises(ConfigError, match=r"holds this run on other data \(digest \w+, here \w+\); restore the data"):
        run(CONFIG, tmp_path, dataset=DATA.first(test_images=49))
    with pytest.raises(ConfigError, match="lies in the run folder .*; give a folder outside of it"):
        run(CONFIG.replace(seed=1), tmp_path / "checkpoints" / "step-000000008", dataset=DATA)
    assert not (tmp_path / "checkpoints").exists()
    (tmp_path / "failure.json").write_text("{}")
    (tmp_path / "metrics.jsonl").touch()  # it has trained, although a damaged environment.json was removed
    with pytest.raises(ConfigError, match=r"holds run \w+, not \w+; give another folder"):
        run(CONFIG.replace(seed=1), tmp_path, dataset=DATA)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("file/x", "cannot be written .File exists"), ("x" * 300, "cannot be used .File name too long"),
        ("a\0b", "cannot be used .embedded null"), ("s3://bucket/x", "is an address; allowed: a path"),
        ("~nobody-here/x", "cannot be used .Could not determine home"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_one_is_named_with_its_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"^output_dir=.*{words}"):
        run(CONFIG, folder, dataset=DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_held_out_images_are_evaluated_and_not_trained_on(tmp_path: Path) -> None:
    config = CONFIG.replace(validation_fraction=0.25)
    job = runner.make_job(config, DATA)
    train, held = ({x.numpy().tobytes() for x in s.inputs} for s in (job.train, job.evaluations["val"]))
    assert len(train) + len(held) == 120
    assert len(held) >= 30
    assert not train & held
    result = run(config, tmp_path, dataset=DATA)
    assert result["val_error_pct"] * len(held) / 100 == pytest.approx(round(result["val_error_pct"] * len(held) / 100))


@pytest.mark.parametrize(
    ("k", "gpus", "cpus", "expected"),
    [(1, 8, 8, "local"), (4, 4, 64, "ray"), (4, 2, 64, "local"), (2, 0, 2, "ray"), (4, 0, 2, "local")],
)
def test_auto(k: int, gpus: float, cpus: float, expected: str) -> None:
    config = RunConfig(network="resnet32", num_modules=k, propagation_length=1)
    name, why = choose_executor(config, gpus, cpus)
    assert name == expected
    assert f"K={k}" in why
    assert choose_executor(config.replace(executor="threads"), gpus, cpus)[0] == "threads"


def test_auto_looks_at_the_cluster_of_the_environment_not_at_this_machine(
    ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert executors._available(CONFIG)[1] == 64
    monkeypatch.setenv("RAY_ADDRESS", "connected already")
    assert executors._available(CONFIG) == (0.0, 2.0)


def test_four_stages_may_share_two_gpus() -> None:
    config = RunConfig(network="resnet32", num_modules=4, propagation_length=1)
    assert choose_executor(config, 2, 8, StageResources(gpus_per_stage=0.5))[0] == "ray"


@pytest.mark.parametrize("address", ["foo", "ray://127.0.0.1:1"])
def test_an_address_that_ray_cannot_use_is_named(address: str) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process is connected already")
    with pytest.raises(ConfigError, match=f"address='{address}' cannot be used"):
        start_once(address)


def test_without_gpus_per_stage_cores_count() -> None:
    config = RunConfig(network="resnet32", num_modules=2, propagation_length=1)
    assert choose_executor(config, 1, 8, StageResources(gpus_per_stage=0)) == ("ray", "8 CPU slots for K=2 stages")

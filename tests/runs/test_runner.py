"""A run: its folder, its end, going on, and what it refuses; on the embedded real images."""

import json
from pathlib import Path

import pytest
import yaml

from backlink_ray.data.datasets import load_dataset
from backlink_ray.errors import ConfigError
from backlink_ray.runs import executors, runner
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.executors import choose_executor
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run

CONFIG = RunConfig(
    network="resnet8", num_modules=2, propagation_length=1, lr=0.1, batch_size=40, epochs=2, train_images=120,
    test_images=50, executor="local",
)  # fmt: skip
DATA = load_dataset("cifar10-sample", train_images=120, test_images=50)


def test_the_run_folder(tmp_path: Path) -> None:
    seen: list[int] = []
    result = run(CONFIG, DATA, RunOptions(output_dir=tmp_path, on_epoch=lambda m: seen.append(m["epoch"])))
    assert seen == [1, 2]
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "result.json",
    }  # fmt: skip
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["run_id"] == CONFIG.run_id
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert {"versions", "commit", "cpu"} <= json.loads((tmp_path / "environment.json").read_text()).keys()
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert {"test_error_pct", "images_per_s", "epoch_s", "peak_memory_mib", "weights_sha256", "curve"} <= result.keys()


def test_executors_give_one_result_and_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    local = run(CONFIG, DATA, RunOptions(output_dir=tmp_path / "a"))
    threads = run(CONFIG.replace(executor="threads"), DATA, RunOptions(output_dir=tmp_path / "b"))
    assert local["weights_sha256"] == threads["weights_sha256"]
    assert local["test_error_pct"] == threads["test_error_pct"]
    assert run(CONFIG, DATA, RunOptions(output_dir=tmp_path / "b"))["executor"] == "threads"


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = run(CONFIG, DATA, RunOptions(output_dir=tmp_path / "whole"))

    def interrupt(metrics: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, DATA, RunOptions(output_dir=tmp_path / "cut", on_epoch=interrupt))
    seen: list[int] = []
    result = run(CONFIG, DATA, RunOptions(output_dir=tmp_path / "cut", on_epoch=lambda m: seen.append(m["epoch"])))
    assert seen == [2]
    assert result["weights_sha256"] == whole["weights_sha256"]
    assert [m["test_error_pct"] for m in result["curve"]] == [m["test_error_pct"] for m in whole["curve"]]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run(CONFIG, DATA, RunOptions(output_dir=tmp_path))
    with pytest.raises(ConfigError, match=r"holds run \w+, not \w+; give another folder"):
        run(CONFIG.replace(seed=1), DATA, RunOptions(output_dir=tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        run(CONFIG, DATA, RunOptions(output_dir=tmp_path / "file" / "x"))


def test_a_held_out_part_is_ranked_by_and_not_trained_on(tmp_path: Path) -> None:
    config, options = CONFIG.replace(validation_fraction=0.25), RunOptions(output_dir=tmp_path)
    job = runner.make_job(config, DATA, options)
    train, held = ({x.numpy().tobytes() for x in s.pixels} for s in (job.train, job.evaluations["val"]))
    assert len(train) + len(held) == 120
    assert len(held) >= 30
    assert not train & held
    result = run(config, DATA, options)
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


def test_the_cluster_named_by_the_environment_counts_not_this_machine(
    ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert executors._within_reach()[1] == 64
    monkeypatch.setenv("RAY_ADDRESS", "the one that is joined already")
    assert executors._within_reach() == (0.0, 2.0)


def test_four_stages_may_share_two_gpus() -> None:
    config = RunConfig(network="resnet32", num_modules=4, propagation_length=1)
    assert choose_executor(config, 2, 8, gpus_per_stage=0.5)[0] == "ray"

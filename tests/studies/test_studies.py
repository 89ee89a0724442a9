"""Studies from their command line, on the embedded real images: complete runs, resumed runs, and refusals."""

import contextlib
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from backlink_ray.commands.search import SearchCommand
from tests.pages import README, blocks, unseen
from tests.studies.recipes import ROOT, run_recipe, start_recipe
from tests.tracking.mlflow_store import Store


@pytest.mark.timeout(400)
def test_the_main_job_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    flags = ("--smoke-test", "--storage-path", str(tmp_path))
    done = start_recipe("tune_resnet110", *flags)
    assert done.returncode == 0, done.stderr
    assert "backlink K=2 l=3 alpha=0.5 eta=0.02 ray  epoch 3/3" in done.stdout
    (shown,) = [block for block in blocks(README.read_text(), "text") if "[0/3 done]" in block]
    assert unseen(shown, done.stdout) == []
    assert run_recipe("tune_resnet110", *flags, "--resume", "auto") == 0
    again = capsys.readouterr()
    assert "nothing left to run" in again.err
    assert " epoch 1/3 " not in again.out
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = trials_of(client)
    assert [r.info.status for r in runs] == ["FINISHED"] * 3
    (study,) = client.search_runs(["1"], "tags.kind = 'study'")
    assert [file.path for file in client.list_artifacts(study.info.run_id)] == ["table.md"]
    for r in runs:
        assert set(r.data.params) == {
            "K", "l", "alpha", "eta", "seed", "dataset", "network", "head", "method", "batch_size", "epochs",
            "memory_format", "precision", "compile", "graph", "replicas", "batch_norm",
        }  # fmt: skip
        assert {"test_error_pct", "images_per_s", "epoch_s", "peak_memory_mib", "local_loss/stage_00"} <= set(
            r.data.metrics
        )
        assert len(client.get_metric_history(r.info.run_id, "curve/test_error_pct")) == 3
        assert r.data.tags["study"] == "tune_resnet110-smoke"
        assert r.data.params["precision"] == "bf16"


def trials_of(client: Any) -> list[Any]:
    """Return the runs of trials in MLflow: those that the printed link shows."""
    only = SearchCommand.only
    return [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id], only)]


RECIPE = """
import sys
from backlink_ray import RunConfig
from backlink_ray.commands.search import main
from backlink_ray.tuning.space import Space
from backlink_ray.tuning.plan import Plan
BASE = RunConfig(network="resnet8", num_modules=2, propagation_length=1,
    lr=0.1, batch_size=40, epochs=1, train_images=80, test_images=40)
sys.exit(main("tiny", {"smoke": PLAN}, ""))
"""
# The second one diverges at once.
SEARCH = """Plan(base=BASE.replace(epochs=12), space=Space(lr=(1e-9, 1e30)), num_samples=2, metric="train_loss",
    first=(BASE.replace(epochs=12, lr=0.05), BASE.replace(epochs=12, lr=1e30)))"""
# The second one cannot learn, so it ranks low by its loss whatever the first one's is.
ASHA = """Plan(base=BASE.replace(epochs=6), space=Space(lr=(1e-9, 0.2)), num_samples=2, metric="train_loss",
    first=(BASE.replace(epochs=6, lr=0.05), BASE.replace(epochs=6, lr=1e-9)))"""


def recipe(folder: Path, plan: str) -> list[str]:
    """Return the command of a user's study."""
    file = folder / "tiny.py"
    file.write_text(RECIPE.replace("PLAN", plan))
    return [sys.executable, str(file), "--smoke-test", "--storage-path", str(folder / "s"), "--executor", "local"]


def started_until_epoch(epoch: int, command: list[str]) -> subprocess.Popen[str]:
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    until_epoch(epoch, child)
    return child


def until_epoch(epoch: int, child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    while f"epoch {epoch}/" not in child.stdout.readline():
        assert child.poll() is None


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_asha_stops_the_worse_trial_and_keeps_its_results(tmp_path: Path) -> None:
    from backlink_ray.runs.results import Results

    command = recipe(tmp_path, ASHA)
    done = subprocess.run([*command, "--asha"], capture_output=True, text=True, timeout=170, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = Results(tmp_path / "s" / "tiny-smoke").rows()
    assert [row["status"] for row in rows] == ["FINISHED", "STOPPED"]
    assert re.fullmatch(r"stopped early, after epoch [13]", str(rows[1]["reason"]))
    assert 0 < float(rows[1]["test_error_pct"]) <= 100
    assert "stopped early" in done.stdout
    again = subprocess.run([*command, "--asha"], capture_output=True, text=True, timeout=170, cwd=ROOT)
    assert "nothing left to run" in again.stderr


def tracked(storage: Path) -> tuple[list[str], Counter[tuple[str, int]]]:
    """Return the status of each trial's run in MLflow, and how often each point of a curve is recorded."""
    store = Store(storage / "mlflow.db")
    points = Counter((key, step) for run, key, step, _ in store.points().elements() if "/" in key)
    return [status for run, status in store.runs() if run != "tiny-smoke"], points


def optuna_states(storage: Path) -> Counter[str]:
    with contextlib.closing(sqlite3.connect(storage / "tiny-smoke" / "optuna.db")) as database:
        return Counter(state for (state,) in database.execute("SELECT state FROM trials"))


def kill_with_children(child: subprocess.Popen[str]) -> None:
    """Kill a driver as `kill -9` does, and then its Ray processes, which would otherwise live on for a while."""
    children = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait()
    for process in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.timeout(400)
def test_a_study_continues_after_a_killed_trial_a_diverging_one_ctrl_c_and_a_killed_driver(tmp_path: Path) -> None:
    from backlink_ray.runs.results import Results

    def rows() -> list[tuple[object, object]]:
        return [(row["status"], row["lr"]) for row in Results(tmp_path / "s" / "tiny-smoke").rows()]

    command = recipe(tmp_path, SEARCH)
    child = started_until_epoch(2, command)
    (trial,) = [
        p for p in psutil.Process(child.pid).children(recursive=True) if "ImplicitFunc" in " ".join(p.cmdline())
    ]
    trial.kill()
    until_epoch(5, child)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 3, err
    assert "RUNNING" not in optuna_states(tmp_path / "s")
    assert len(re.findall(r"^trial .* was lost: .*; it is started again \(1 of 3\)$", err, re.MULTILINE)) == 1
    assert f"resume: {shlex.join(command)} --resume auto" in out
    assert "Traceback" not in err
    failed = ("FAILED", 1e30)
    assert rows() == []
    assert tracked(tmp_path / "s")[0] == ["KILLED"]

    child = started_until_epoch(7, command)
    kill_with_children(child)
    assert child.stderr is not None
    assert "the local loss of stage" in (err := child.stderr.read())
    assert "is started again" not in err  # it would fail again
    assert rows() == [failed]

    done = subprocess.run(command, capture_output=True, text=True, timeout=170, cwd=ROOT)
    assert done.returncode == 1, done.stderr  # one trial failed
    assert " epoch 1/" not in done.stdout
    assert " epoch 6/" not in done.stdout
    assert "│ done" in done.stdout
    assert rows() == [failed, ("FINISHED", 0.05)]
    statuses, points = tracked(tmp_path / "s")
    assert sorted(statuses) == ["FAILED", "FINISHED"]
    reasons = Store(tmp_path / "s" / "mlflow.db").query("SELECT value FROM tags WHERE key = 'end_reason'")
    assert "the local loss of stage" in " ".join(str(reason) for (reason,) in reasons)
    states = optuna_states(tmp_path / "s")
    assert (states["COMPLETE"], states["RUNNING"], states["FAIL"] > 0) == (1, 0, True)
    assert set(points.values()) == {1}
    assert {step for _, step in points} == set(range(1, 13))


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("pause_s", [0.05, 0.4])
def test_a_second_ctrl_c_while_trials_end_and_after(tmp_path: Path, pause_s: float) -> None:
    command = recipe(tmp_path, SEARCH)
    child = started_until_epoch(2, command)
    child.send_signal(signal.SIGINT)
    time.sleep(pause_s)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert "Traceback" not in err
    assert f"resume: {shlex.join(command)} --resume auto" in out + err
    assert "interrupted" in err
    assert child.returncode in (130, 3), err  # 3 if the trials had ended in order before the second Ctrl-C


def test_dry_run_says_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_recipe("tune_resnet32", "--dry-run", "--preset", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("bp/K01-l0")
    assert "paper 7.51 %" in lines[0]
    assert "5 trials of 8 epochs" in lines[-2]
    assert re.fullmatch(r"estimated: [\d.]+ device-hours of training, at the images/s .*: resnet\d+ \d+", lines[-1])


def test_a_dry_run_says_how_many_runs_share_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    flags = ("--dry-run", "--preset", "smoke", "--executor", "local", "--runs-per-gpu")
    assert run_recipe("tune_resnet32", *flags, "4") == 0
    assert "executor local  needs 1 CPU, 0.25 GPU, shared by 4" in capsys.readouterr().out
    assert run_recipe("tune_resnet32", *flags, "auto") == 0
    line = "executor local  needs 1 CPU, 1 GPU, shared by as many runs as a measurement at the start says"
    assert line in capsys.readouterr().out
    monkeypatch.undo()
    assert run_recipe("tune_resnet32", *flags, "4") == 0
    assert "executor local  needs 1 CPU, 0 GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prepare", "flags", "message"),
    [
        ("alien", (), "holds no study of backlink_ray"),
        ("nothing", ("--resume", "must"), "holds no study to resume"),
        ("open", (), "is writable for everybody"),
        ("file", (), "cannot be written"),
        ("nothing", ("--preset", "huge"), "preset='huge' is not known; allowed: paper, cpu, smoke"),
        (
            "nothing",
            ("--smoke-test", "--preset", "cpu"),
            "--smoke-test is the preset 'smoke'; leave out --preset 'cpu'",
        ),
        ("nothing", ("--num-samples", "-1"), "num_samples=-1 is out of range; allowed 0"),
        ("nothing", ("--gpus", "4"), "gpus=4 is for an autoscaling cluster"),
        ("nothing", ("--gpus-per-stage", "-1"), "gpus_per_stage=-1.0 is out of range"),
        (
            "nothing",
            ("--transport", "collective", "--executor", "threads"),
            "transport='collective' is between stages on Ray, and the executor is threads; use executor ray",
        ),
        ("nothing", ("--runs-per-gpu", "0"), "runs_per_gpu=0 is out of range; allowed: 1 or more, or auto"),
        ("nothing", ("--runs-per-gpu", "-1"), "runs_per_gpu=-1 is out of range"),
        ("nothing", ("--runs-per-gpu", "many"), "runs_per_gpu=many is out of range"),
        ("nothing", ("--preset", "cpu", "--asha"), "preset 'cpu' is a list of runs"),
        ("nothing", ("--tracking-uri", "/some/folder"), "MLflow 3 no longer accepts"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path, prepare: str, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "storage"
    folder = storage / "tune_resnet32-smoke"
    if prepare in ("alien", "open"):
        folder.mkdir(parents=True)
        (folder / "something.pkl").write_text("x")
        folder.chmod(0o777 if prepare == "open" else 0o755)
    if prepare == "file":
        storage.write_text("")
    preset = () if "--preset" in flags else ("--smoke-test",)
    flags = (*preset, "--storage-path", str(storage), *flags)
    assert run_recipe("tune_resnet32", *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    done = start_recipe("tune_resnet32", "--smoke-test", "--storage-path", str(tmp_path), "--address", "127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert "address='127.0.0.1:1' does not answer" in done.stderr.splitlines()[-1]

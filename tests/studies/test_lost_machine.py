"""A study on several machines, one of which is taken away: its trials go on elsewhere, from their checkpoints."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Results
from backlink_ray.runs.runner import run
from backlink_ray.tracking.uri import sqlite_uri
from tests.studies.recipes import ROOT
from tests.tracking.mlflow_store import Store

BASE = RunConfig(
    network="resnet8", num_modules=2, propagation_length=1, lr=0.1, batch_size=40, epochs=60, train_images=80, test_images=40
)  # fmt: skip
RUNS = (BASE.replace(executor="ray"), BASE.replace(executor="local", seed=1))
RECIPE = """
import sys
from backlink_ray import Space
from backlink_ray.commands.search import main
from backlink_ray.tuning.plan import Plan
from tests.studies.test_lost_machine import BASE, RUNS
LIST = Plan(base=BASE, runs=RUNS, metric="test_error_pct")
SEARCH = Plan(base=RUNS[0], space=Space(lr=(0.01, 0.2)), num_samples=2, metric="train_loss")
sys.exit(main("tiny", {"list": LIST, "search": SEARCH}, ""))
"""
STAGE, TRIAL = "ray::StageActor", "ray::ImplicitFunc"


class Machines:
    """A head that nothing runs on, and three machines of one CPU, so that one trial on Ray needs two of them."""

    def __init__(self) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(3)]
        self.address = self._cluster.address

    def lose(self, *names: str) -> None:
        """Take the machine away on which processes of just these names work, without a word; another one comes."""
        node = waited_for(lambda: next((node for node in self._nodes if names_on(node) == set(names)), None))
        self._nodes.remove(node)
        self._cluster.remove_node(node, False)
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def processes(self) -> set[str]:
        return set().union(*map(names_on, self._nodes))

    def close(self) -> None:
        self._cluster.shutdown()


def names_on(node: Any) -> set[str]:
    """Return which of our processes work on a machine."""
    (raylet,) = node.all_processes["raylet"]
    found = set()
    for process in psutil.Process(raylet.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found |= {name for name in (STAGE, TRIAL) if " ".join(process.cmdline()).startswith(name)}
    return found


def waited_for(answer: Callable[[], Any]) -> Any:
    """Return the answer as soon as there is one."""
    deadline = time.monotonic() + 120
    while not (found := answer()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


@pytest.fixture
def machines() -> Iterator[Machines]:
    ray.shutdown()
    machines = Machines()
    yield machines
    machines.close()


def start(folder: Path, preset: str, address: str) -> subprocess.Popen[str]:
    (folder / "tiny.py").write_text(RECIPE)
    flags = ["--preset", preset, "--storage-path", str(folder), "--address", address, "--cpus-per-stage", "0.9"]
    command = [sys.executable, str(folder / "tiny.py"), *flags, "--max-concurrent", "2" if preset == "list" else "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (folder / "output").open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment)


def epochs_of(run_folder: Path) -> int:
    file = run_folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def first_epochs(run_folder: Path) -> list[int]:
    """Return where each attempt at a run began."""
    return [attempt["first_epoch"] for attempt in json.loads((run_folder / "environment.json").read_text())["attempts"]]


def check_ended(folder: Path, preset: str, machines: Machines) -> None:
    """Check that there is one finished row per trial, and nothing that still runs, here or in MLflow's eyes."""
    study = folder / f"tiny-{preset}"
    rows = Results(study).rows()
    assert [row["status"] for row in rows] == ["FINISHED"] * 2
    assert Results(study).ended() == 2  # each once
    finished = [*((str(row["run_id"]), "FINISHED") for row in rows), (study.name, "FINISHED")]
    assert Store(folder / "mlflow.db").runs() == sorted(finished)
    ray.init(address=machines.address, log_to_driver=False)
    try:
        waited_for(lambda: not machines.processes())
        assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_go_on_when_the_machine_of_a_stage_and_that_of_a_local_trial_are_lost(
    tmp_path: Path, machines: Machines
) -> None:
    study = start(tmp_path, "list", machines.address)
    on_ray, local = (tmp_path / "tiny-list" / "runs" / config.run_id for config in RUNS)
    waited_for(lambda: epochs_of(on_ray) > 3 and epochs_of(local) > 3)
    machines.lose(TRIAL)
    machines.lose(STAGE)
    assert study.wait(400) == 0, (tmp_path / "output").read_text()
    check_ended(tmp_path, "list", machines)
    assert "trial K02-l1-a0.50-e0.10-s1 was lost: " in (tmp_path / "output").read_text()
    for folder, config in zip((on_ray, local), RUNS, strict=True):
        assert len(first_epochs(folder)) == 2
        assert first_epochs(folder)[1] > 3  # from its checkpoint
        undisturbed = run(config, tmp_path / config.run_id, executor="local")
        assert json.loads((folder / "result.json").read_text())["weights_sha256"] == undisturbed["weights_sha256"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_goes_on_when_the_machine_of_a_trial_and_of_its_stage_is_lost(
    tmp_path: Path, machines: Machines
) -> None:
    study, runs = start(tmp_path, "search", machines.address), tmp_path / "tiny-search" / "runs"
    disturbed = waited_for(lambda: next((folder for folder in runs.glob("*") if epochs_of(folder) > 3), None))
    machines.lose(STAGE, TRIAL)
    assert study.wait(400) == 0, (tmp_path / "output").read_text()
    check_ended(tmp_path, "search", machines)
    assert first_epochs(disturbed)[1] > 3
    found = optuna.load_study(study_name="tiny-search", storage=sqlite_uri(tmp_path / "tiny-search" / "optuna.db"))
    assert Counter(trial.state.name for trial in found.trials) == {"COMPLETE": 2}

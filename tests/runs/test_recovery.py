"""A run that loses stages goes on, and ends as if nothing had happened."""

import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from backlink_ray.data.datasets import load_dataset
from backlink_ray.errors import ClusterError, ConfigError, StageError
from backlink_ray.pipeline import pool
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.runs import recovery, runner
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.recovery import Decision, decide, recovering
from backlink_ray.runs.runner import run
from backlink_ray.train.checkpoint import newest
from backlink_ray.train.faults import Fault, Phase
from backlink_ray.train.state import PARTS

DATA = load_dataset("cifar10-sample", train_images=100, test_images=20)
CONFIG = RunConfig(
    network="resnet8", num_modules=2, propagation_length=1, lr=0.1, batch_size=20, epochs=4, train_images=100,
    test_images=20, executor="ray",
)  # fmt: skip
STEPS = 20
PHASES: tuple[Phase, ...] = ("before_forward", "after_forward", "exchange", "after_step", "checkpoint")

DEAD = StageError(1, 2, "step 7", "ActorDiedError: gone", lost=True)
MACHINE = StageError(1, 2, "step 7", "ActorDiedError: gone", lost=True)
MACHINE.machine_lost = True


@pytest.mark.parametrize(
    ("error", "recoveries", "replaceable", "decision"),
    [
        (DEAD, 0, True, Decision(True)),
        (DEAD, 2, True, Decision(True)),
        (DEAD, 3, True, Decision(False, why_not="; recovered 3 times, max_recoveries=3")),
        (DEAD, 0, False, Decision(False, why_not="; a thread cannot be ended and started again, executor ray can")),
        (StageError(0, 2, "step 7", "ValueError: bad"), 0, True, Decision(False)),
        (MACHINE, 0, True, Decision(True, 2.0)),
        (MACHINE, 2, True, Decision(True, 8.0)),
        (ClusterError("no room"), 0, True, Decision(False)),
        (ClusterError("no room"), 1, True, Decision(True, 4.0)),
        (ClusterError("the head is gone", final=True), 1, True, Decision(False)),
    ],
)
def test_the_decision(error: Any, recoveries: int, replaceable: bool, decision: Decision) -> None:
    assert decide(error, recoveries, 3, replaceable) == decision


def test_a_wait_is_never_longer_than_a_minute() -> None:
    assert {decide(MACHINE, recoveries, 10**6, True).after_s for recoveries in (5, 100, 10**5)} == {60.0}


def test_an_attempt_is_repeated_until_it_succeeds_or_the_recoveries_are_used_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(recovery.time, "sleep", waits.append)

    def attempt(number: int) -> str:
        if number < 2:
            error = StageError(1, 2, "step 7", "gone", lost=True)
            error.machine_lost = number == 1
            raise error
        return "done"

    assert recovering(attempt, 2, lambda: True) == "done"
    assert waits == [0.0, 4.0]
    assert "stage 1 of 2 failed at step 7: gone; recovering from the newest checkpoint, in 4 s (2 of 2)" in (
        capsys.readouterr().err
    )
    with pytest.raises(StageError, match="gone; recovered 1 times, max_recoveries=1"):
        recovering(attempt, 1, lambda: True)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [({"max_recoveries": -1}, "max_recoveries=-1 .* 0"), ({"stage_timeout_s": 0.0}, "stage_timeout_s=0.0 .* above 0")],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        RunOptions(**wrong)


def digest(folder: Path) -> str:
    """Return a hash of weights, batch norm buffers, optimizer and step of a run's newest checkpoint."""
    found = newest(folder / "checkpoints")
    assert found
    state, total = found[0], hashlib.sha256(str(found[0].step).encode())
    for part in PARTS:
        for name, tensor in sorted(getattr(state, part).items()):
            total.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(CONFIG, folder, executor="local", dataset=DATA)
    return digest(folder)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process stands by from the first second."""
    monkeypatch.setattr(pool, "STANDBY_AFTER_S", 0.0)


def faults_of(seed: int, kind: Any = "kill") -> tuple[Fault, ...]:
    """Return one fault of every phase, in random order at random steps of random stages."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(STEPS), len(PHASES)))
    order = draw.sample(PHASES, len(PHASES))
    return tuple(
        Fault(stage=draw.randrange(2), step=step, phase=phase, kind=kind, attempt=i)
        for i, (step, phase) in enumerate(zip(steps, order, strict=True))
    )


def attempts(folder: Path) -> int:
    return len(json.loads((folder / "environment.json").read_text())["attempts"])


@pytest.mark.timeout(240)
def test_stages_killed_at_five_places_leave_no_trace(
    tmp_path: Path, undisturbed: str, ray_here: None, at_once: None
) -> None:
    from ray.util import placement_group_table

    others = placement_group_table()  # of other tests
    run(CONFIG, tmp_path, dataset=DATA, options=RunOptions(faults=faults_of(0), max_recoveries=5))
    assert attempts(tmp_path) == 6
    assert digest(tmp_path) == undisturbed
    own = {name: group for name, group in placement_group_table().items() if name not in others}
    assert {group["state"] for group in own.values()} == {"REMOVED"}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_stages_that_exchange_through_torch_distributed_leave_no_trace_either(
    tmp_path: Path, undisturbed: str, ray_here: None, at_once: None
) -> None:
    options = RunOptions(faults=faults_of(0), max_recoveries=5, transport="collective")
    run(CONFIG, tmp_path, dataset=DATA, options=options)
    assert attempts(tmp_path) == 6
    assert digest(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1, 11))
def test_stages_killed_at_fifty_places_leave_no_trace(
    seed: int, tmp_path: Path, undisturbed: str, ray_here: None, at_once: None
) -> None:
    run(CONFIG, tmp_path, dataset=DATA, options=RunOptions(faults=faults_of(seed), max_recoveries=5))
    assert attempts(tmp_path) == 6
    assert digest(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["stop", "hang"])
@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_that_hangs_is_named_ended_and_replaced(
    kind: Any, stage: int, tmp_path: Path, undisturbed: str, ray_here: None, capfd: pytest.CaptureFixture[str]
) -> None:
    fault = Fault(stage=stage, step=7, phase="after_forward", kind=kind)
    run(CONFIG, tmp_path, dataset=DATA, options=RunOptions(faults=(fault,), stage_timeout_s=5.0))
    assert f"stage {stage} of 2 failed at step" in capfd.readouterr().err
    assert attempts(tmp_path) == 2
    assert digest(tmp_path) == undisturbed


R4 = {
    "two at once": [Fault(stage=k, step=7) for k in (0, 1)],
    "during recovery": [Fault(stage=0, step=7), Fault(stage=1, phase="start", attempt=1)],
    "hangs during recovery": [Fault(stage=0, step=7), Fault(stage=1, phase="start", kind="stop", attempt=1)],
}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("faults", R4.values(), ids=R4)
def test_losses_at_once_and_during_recovery(
    faults: list[Fault], tmp_path: Path, undisturbed: str, ray_here: None
) -> None:
    run(CONFIG, tmp_path, dataset=DATA, options=RunOptions(faults=tuple(faults), ready_timeout_s=20.0))
    assert digest(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_stage_that_is_lost_again_and_again_ends_the_run_with_the_reason(tmp_path: Path, ray_here: None) -> None:
    faults = tuple(Fault(stage=1, step=7, attempt=i) for i in range(9))
    with pytest.raises(StageError, match="stage 1 of 2 .* recovered 2 times, max_recoveries=2"):
        run(CONFIG, tmp_path, dataset=DATA, options=RunOptions(faults=faults, max_recoveries=2))
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["status"] == "LOST"
    assert "recovered 2 times" in failure["reason"]
    assert attempts(tmp_path) == 3


@pytest.mark.timeout(120)
def test_a_unit_that_raises_is_not_repeated(tmp_path: Path) -> None:
    fault = Fault(stage=1, step=3, kind="raise")
    with pytest.raises(StageError, match=r"stage 1 of 2 failed at step 3 \(body_forward\): RuntimeError: a fault"):
        run(CONFIG, tmp_path, executor="threads", dataset=DATA, options=RunOptions(faults=(fault,)))
    assert json.loads((tmp_path / "failure.json").read_text())["status"] == "FAILED"


HUNG = """
import sys
from pathlib import Path
from backlink_ray.commands.exit_codes import guarded
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run
from backlink_ray.train.faults import Fault
from tests.runs.test_recovery import CONFIG, DATA

options = RunOptions(faults=(Fault(stage=1, step=3, kind="hang"),), stage_timeout_s=2.0)
sys.exit(guarded(lambda: len(run(CONFIG, sys.argv[1], executor="threads", dataset=DATA, options=options)), lambda: ""))
"""


def command(folder: Path, *more: str) -> list[str]:
    given = ["--network", "resnet8", "--num-modules", "2", "--propagation-length", "1", "--batch-size", "20"]
    return ["train", *given, "--train-images", "100", "--test-images", "20", "--output-dir", str(folder), *more]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_process_ends_although_one_of_its_threads_hangs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HUNG, str(tmp_path)], capture_output=True, text=True, timeout=90)
    assert done.returncode == 1
    assert "stage 1 of 2 failed at step 3 (body_forward): it has not finished body_forward for 2." in done.stderr
    assert json.loads((tmp_path / "failure.json").read_text())["status"] == "LOST"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "seconds"), [("gcs_server", 40), ("raylet/raylet", 20)])
def test_without_its_ray_a_run_ends_resumable(name: str, seconds: float, tmp_path: Path) -> None:
    import psutil

    arguments = command(tmp_path / "run", "--executor", "ray", "--epochs", "5000")
    errors = (tmp_path / "errors").open("w+")
    start = [sys.executable, "-m", "backlink_ray.cli", *arguments]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
        assert child.stdout
        assert child.stdout.readline().startswith("epoch 1/")
        family = psutil.Process(child.pid).children(recursive=True)
        next(p for p in family if name in p.cmdline()[0]).kill()
        assert child.wait(seconds) == 3
    errors.seek(0)
    assert errors.read().strip().splitlines()[-1].endswith("; run the same command again to resume")
    assert json.loads((tmp_path / "run" / "failure.json").read_text())["status"] == "LOST"
    assert psutil.wait_procs(family, timeout=10)[1] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lost_machine_is_replaced(tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage on a machine of its own, and one to spare; that of stage 1 is taken away without a word."""
    import ray
    from ray.cluster_utils import Cluster

    pools: list[pool.StagePool] = []

    def noted(*arguments: Any) -> pool.StagePool:
        pools.append(pool.StagePool(*arguments))
        return pools[0]

    monkeypatch.setattr(runner, "StagePool", noted)
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]

    def lose(metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == 2 and nodes:
            of_stage_1 = next(node for node in nodes if node.node_id == pools[0].homes[1].node_id)
            nodes.clear()
            threading.Timer(0.1, cluster.remove_node, (of_stage_1, False)).start()

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        options = RunOptions(resources=StageResources(cpus_per_stage=0.9), on_epoch=lose)
        run(CONFIG, tmp_path, dataset=DATA, options=options)
        assert attempts(tmp_path) == 2
        assert digest(tmp_path) == undisturbed
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("standby_after_s", "limit_s"), [(0.0, 3.0), (1e9, 10.0)], ids=["stand-by", "cold"])
def test_how_long_a_recovery_takes(
    standby_after_s: float, limit_s: float, tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From SIGKILL to the error, and to the first step of the next attempt; on an idle machine, medians of five."""
    from backlink_ray.pipeline.actors import RayExecutor

    monkeypatch.setattr(pool, "STANDBY_AFTER_S", standby_after_s)
    killed: list[float] = []
    noticed: list[float] = []
    trained: list[float] = []
    pools: list[pool.StagePool] = []

    def noted(*arguments: Any) -> pool.StagePool:
        pools.append(pool.StagePool(*arguments))
        return pools[0]

    def decided(*arguments: Any) -> Decision:
        noticed.append(time.monotonic() - killed[-1])
        return decide(*arguments)

    def train(executor: RayExecutor, *arguments: Any) -> Any:
        if len(trained) < len(noticed):
            trained.append(time.monotonic() - killed[-1])
            threading.Timer(1.0, kill).start()
        return original(executor, *arguments)

    def kill() -> None:
        import ray

        if len(killed) < 5:
            while not standby_after_s and pools[0]._standby is None:
                time.sleep(0.1)
            if not standby_after_s:
                ray.get(pools[0]._standby.ready.remote())
            killed.append(time.monotonic())
            os.kill(pools[0].homes[len(killed) % 2].process_id, signal.SIGKILL)

    original = RayExecutor.train
    monkeypatch.setattr(runner, "StagePool", noted)
    monkeypatch.setattr(recovery, "decide", decided)
    monkeypatch.setattr(RayExecutor, "train", train)
    threading.Timer(15.0, kill).start()
    options = RunOptions(max_recoveries=5, stop=lambda: len(trained) == 5)
    with pytest.raises(KeyboardInterrupt):
        run(CONFIG.replace(epochs=100_000), tmp_path, dataset=DATA, options=options)
    print("noticed after", sorted(noticed), "s, trained after", sorted(trained), "s")
    assert statistics.median(noticed) <= 3.0
    assert statistics.median(trained) <= limit_s

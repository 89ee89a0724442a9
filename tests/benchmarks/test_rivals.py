"""Rivals compute what BP computes, in processes that only this machine reaches, and that do not hang when one of them fails."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from backlink_ray.benchmarks import elsewhere, rivals
from backlink_ray.benchmarks.elsewhere import Elsewhere
from backlink_ray.benchmarks.rivals import SCHEDULES, Task, data_parallel
from backlink_ray.benchmarks.rounds import Run
from backlink_ray.errors import BacklinkError
from backlink_ray.local.engine import Engine
from backlink_ray.pipeline.collective import Address, Meeting

TASK = Task("resnet8", 8, Engine())
CUTS = {name: [2, 2] if schedule.stages == 1 else [1, 1, 1, 1] for name, schedule in SCHEDULES.items()}


def saving(run: Run, part: nn.Module, file: Path) -> Run:
    def both(steps: int) -> None:
        run(steps)
        torch.save([p.grad for p in part.parameters()], file)

    return both


def runs_of_all(folder: Path, address: Address, rank: int) -> Mapping[str, Run]:
    """All rivals in one process of two, which save the gradients of the last step."""
    rivals._join(address, address[0], rank, 2)
    found = {name: rivals._pipeline(TASK, SCHEDULES[name], sizes, rank, 2) for name, sizes in CUTS.items()}
    found["ddp"] = rivals._data_parallel(TASK, rank, 2)
    return {name: saving(run, part, folder / f"{name}.{rank}") for name, (run, part) in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradients")


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[Elsewhere]:
    meeting = Meeting("127.0.0.1")
    with Elsewhere(*(partial(runs_of_all, folder, meeting.address, rank) for rank in (0, 1))) as both:
        yield both
    assert not any(process.is_alive() for process in both.processes)


def gradients(microbatches: int) -> list[torch.Tensor]:
    """Of BP, whose batch norms see a microbatch at a time."""
    network, batches = rivals._part(TASK, 0, None), rivals._batches(TASK, TASK.batch_size)
    chunks = (tensor.chunk(microbatches) for tensor in (batches.inputs(0), batches.labels(0)))
    for x, y in zip(*chunks, strict=True):
        (rivals._loss(network(x), y) / microbatches).backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


def distance(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest difference of any tensor, beside its largest number."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def test_a_stage_may_begin_and_end_among_features_without_height() -> None:
    assert rivals.Part(Engine(), nn.Linear(4, 2))(torch.randn(3, 4)).shape == (3, 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_pipeline_computes_the_gradients_of_bp(name: str, two: Elsewhere, folder: Path) -> None:
    two.run(name, 1)
    of_stage: dict[int, list[torch.Tensor]] = {}
    for rank in (0, 1):
        own = iter(torch.load(folder / f"{name}.{rank}"))
        for k in SCHEDULES[name].places(rank, 2):
            first, stop = sum(CUTS[name][:k]), sum(CUTS[name][: k + 1])
            of_stage[k] = [next(own) for _ in rivals._part(TASK, first, stop).parameters()]
    found = [gradient for k in sorted(of_stage) for gradient in of_stage[k]]
    expected = gradients(SCHEDULES[name].microbatches)
    assert distance(found, expected) < 1e-4
    assert distance(gradients(4), expected) > 1e-2  # so the number of microbatches is seen


def test_data_parallel_training_computes_the_gradients_of_bp(two: Elsewhere, folder: Path) -> None:
    two.run("ddp", 1)
    for rank in (0, 1):
        assert distance(torch.load(folder / f"ddp.{rank}"), gradients(2)) < 1e-4


def test_processes_listen_to_this_machine_alone(two: Elsewhere) -> None:
    two.run("naive", 1)
    listening = [
        each.laddr.ip
        for process in two.processes
        for each in psutil.Process(process.pid).net_connections()
        if each.status == "LISTEN"
    ]
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("batch_size", "count", "number"), [(128, 2, 8), (100, 2, 4), (12, 2, 6), (6, 3, 6), (32, 16, 16)]
)
def test_microbatches_are_equal_and_no_fewer_than_processes(batch_size: int, count: int, number: int) -> None:
    assert SCHEDULES["1f1b"].microbatches_of(batch_size, count) == number


def test_a_process_that_hangs_or_is_killed_ends_the_run(two: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = two.processes[1].pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(elsewhere, "STEP_TIMEOUT_S", 0.25)
    with pytest.raises(BacklinkError) as hangs:
        two.run("1f1b", 1)
    assert str(hangs.value) == "1f1b: no answer within 0.5 s of process 0 1 of 2"
    os.kill(pid, signal.SIGKILL)  # the other one waits for its messages
    with pytest.raises(BacklinkError) as killed:
        two.run("1f1b", 1)
    assert str(killed.value) == "1f1b: process 1 of 2 is gone (killed by SIGKILL)"


def failing(_steps: int) -> None:
    raise ValueError("a unit\nfails")


def runs_that_fail() -> Mapping[str, Run]:
    return {"bad": failing}


def test_a_process_that_fails_gives_its_reason_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with Elsewhere(runs_that_fail) as other, pytest.raises(BacklinkError) as failed:
        other.run("bad", 1)
    assert str(failed.value) == "bad: process 0 of 1 failed: ValueError: a unit"
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_worker_of_data_parallel_training_that_is_killed_ends_it(ray_here: None) -> None:
    with pytest.raises(BacklinkError, match=r"^ddp: worker \d of 2 is gone$"), data_parallel(TASK, 2) as run:  # noqa: PT012
        run(1)
        workers = [
            p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name() + "".join(p.cmdline())
        ]
        assert len(workers) == 2
        workers[1].kill()
        run(10**6)
    assert not psutil.wait_procs(workers, timeout=30)[1]

"""D replicas of every stage, each with its own part of the batch: the bits of one process that takes the parts in turn."""

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.errors import LinkAbortedError, StageError
from backlink_ray.local.engine import Engine
from backlink_ray.pipeline.controller import CallEnd, first_failure
from backlink_ray.pipeline.exchange import Mailbox, QueueLink, flatten, unflatten
from backlink_ray.pipeline.group import Group
from backlink_ray.pipeline.progress import Position
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.pipeline.stage import Stage
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.runs.executors import choose_executor
from backlink_ray.runs.options import RunOptions
from backlink_ray.runs.runner import run
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from backlink_ray.train.faults import Fault
from backlink_ray.train.parts import mean
from backlink_ray.tuning.resources import ClusterResources
from tests.examples import different_states, job
from tests.methods.settings import SETTINGS
from tests.pipeline.test_transparency import Outcome, check_same, outcome
from tests.runs.test_recovery import CONFIG, DATA, attempts, digest

Make = Callable[[Job], Executor]


class Setting(NamedTuple):
    """Whether it is BackLink, K, D, and what must not change the result."""

    length: int
    num_modules: int
    replicas: int
    link: str = "replica"
    tail_memory: str = "retain"

    def job(self, dtype: torch.dtype = torch.float32, **options: Any) -> Job:
        method = bl.BackLink(propagation_length=self.length, alpha=0.25, link=self.link, tail_memory=self.tail_memory)
        made = job(method, self.num_modules, **{"batch_size": 12, "dropout": 0.2, "replicas": self.replicas, **options})
        for module in made.modules:
            module.to(dtype)
        return made


SETTINGS_HERE = [
    Setting(0, 1, 2),
    Setting(0, 2, 2),
    Setting(1, 2, 2),
    Setting(1, 2, 2, "replica", "recompute"),
    Setting(1, 2, 2, "error"),
    Setting(1, 2, 2, "error", "recompute"),
]
here = pytest.mark.parametrize("setting", SETTINGS_HERE, ids=lambda s: "-".join(map(str, s)))
more = pytest.mark.parametrize(
    "setting", [*SETTINGS_HERE, Setting(2, 3, 4), Setting(1, 2, 3, "error"), Setting(0, 1, 6)]
)


@here
def test_threads(setting: Setting) -> None:
    check_same(outcome(ThreadsExecutor, setting.job()), outcome(LocalExecutor, setting.job()))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@more
def test_threads_everywhere(setting: Setting, dtype: torch.dtype) -> None:
    check_same(outcome(ThreadsExecutor, setting.job(dtype)), outcome(LocalExecutor, setting.job(dtype)))


@pytest.mark.timeout(180)
def test_ray(pooled_executor: Make) -> None:
    setting = Setting(1, 2, 2, "error", "recompute")
    check_same(outcome(pooled_executor, setting.job()), outcome(LocalExecutor, setting.job()))


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("transport", ["objectstore", "collective"])
@here
def test_ray_everywhere(setting: Setting, transport: str, pooled_executor: Make) -> None:
    check_same(outcome(pooled_executor, setting.job(transport=transport)), outcome(LocalExecutor, setting.job()))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("setting", "transport"),
    [(Setting(0, 1, 4), "collective"), (Setting(1, 2, 2), "objectstore")],
    ids=lambda s: str(s),
)
def test_ray_in_float64(setting: Setting, transport: str, pooled_executor: Make) -> None:
    found = outcome(pooled_executor, setting.job(torch.float64, transport=transport))
    check_same(found, outcome(LocalExecutor, setting.job(torch.float64)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SETTINGS if not re.search("stale|ddg|async", n)])
def test_every_method_with_whole_steps(name: str) -> None:
    def new() -> Job:
        return job(SETTINGS[name], 2, "conv", batch_size=8, dropout=0.2, replicas=2, engine=Engine(precision="bf16"))

    check_same(outcome(ThreadsExecutor, new()), outcome(LocalExecutor, new()))


def same(one: Outcome, two: Outcome) -> bool:
    return all(torch.equal(tensor, two[0][name]) for name, tensor in one[0].items())


@pytest.mark.parametrize("forgotten", ["_link_backward", "_replica_backward", "_local_backward"])
def test_without_one_of_the_averages_it_is_another_result(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail."""
    setting = Setting(1, 2, 2, "error" if forgotten == "_link_backward" else "replica")
    average, action = Stage._average, getattr(Stage, forgotten)

    def without(self: Stage, step: int) -> None:
        self._average = lambda step, tensors, module: tensors  # type: ignore[assignment, method-assign]
        action(self, step)
        self._average = average.__get__(self)  # type: ignore[method-assign]

    expected = outcome(LocalExecutor, setting.job())
    assert same(outcome(ThreadsExecutor, setting.job()), expected)
    monkeypatch.setattr(Stage, forgotten, without)
    assert not same(outcome(ThreadsExecutor, setting.job()), expected)


class Closed(nn.Module):
    """A head, or a lock beside it, of which no copy does the same."""

    def __init__(self, lock: bool) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
        layer = self.layer
        self.kept: Any = threading.Lock() if lock else lambda x: layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("module", "place"), [(0, r"heads\.0"), (1, "classifier")])
def test_a_head_that_cannot_be_copied_is_refused(module: int, place: str) -> None:
    for lock, rule in ((False, f"^{place} holds a function, kept, .* make it a method"), (True, " cannot be copied: ")):
        made = job(bl.GLL(), 2, batch_size=12)
        made.modules[module].head = Closed(lock)
        with pytest.raises(bl.ConfigError, match=rule):
            ThreadsExecutor(made.with_parts(replicas=2))
        with ThreadsExecutor(made) as executor:  # nothing is copied
            executor.train(1)


def test_all_replicas_have_the_same_weights() -> None:
    with ThreadsExecutor(Setting(1, 2, 3).job()) as executor:
        executor.train(3)
        found = [dict(stage.module.named_state()) for stage in executor._stages]
    assert len(found) == 6
    for first, other in zip(found[:2] * 2, found[2:], strict=True):
        assert [name for name, tensor in first.items() if not torch.equal(tensor, other[name])] == []


def test_a_state_does_not_know_of_replicas() -> None:
    one, two = Setting(1, 2, 1), Setting(1, 2, 2)
    for earlier, later in ((one, two), (two, one)):
        with ThreadsExecutor(earlier.job()) as executor:
            executor.train(2)
            state = executor.state()
        found = []
        for make in (ThreadsExecutor, LocalExecutor):
            with make(later.job()) as executor:
                executor.load(state)
                executor.train(2)
                found.append(executor.state())
        assert found[0].step == 4
        assert different_states(*found) == []


def test_a_report_has_one_row_per_module() -> None:
    with ThreadsExecutor(Setting(1, 2, 3).job(timeline=True)) as executor:
        report = executor.train(2)
        assert len(executor.environments()) == 6
    assert report.losses.shape == (2, 2)
    assert len(report.link_s) == len(report.peak_memory_mib) == 2
    assert {span.stage_index for span in report.spans} == {0, 1}


def test_a_group_takes_any_tensors_and_a_wait_ends_when_it_is_stopped() -> None:
    boxes = {(i, j): Mailbox() for i in range(3) for j in range(3)}
    device = torch.device("cpu")
    groups = [
        Group([None if i == j else QueueLink(boxes[j, i], boxes[i, j], device, 5.0) for j in range(3)])
        for i in range(3)
    ]
    given = [[torch.tensor(float(i)), torch.full((2, 3), 2.0**i), torch.empty(0)] for i in range(3)]
    found: dict[int, list[Tensor]] = {}

    def meet(i: int) -> None:
        found[i] = mean([unflatten(part, given[i]) for part in groups[i].gather(7, flatten(given[i]))])

    threads = [threading.Thread(target=meet, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for i in range(3):
        assert [t.shape for t in found[i]] == [t.shape for t in given[i]]
        assert found[i][0] == 1.0
        assert torch.equal(found[i][1], torch.full((2, 3), 7.0) / 3)
    boxes[1, 0].abort("another stage failed")
    with pytest.raises(LinkAbortedError, match="part of step 8 did not arrive: another stage failed"):
        groups[0].gather(8, given[0][0])


def test_the_replica_that_failed_is_named() -> None:
    waits = CallEnd(None, position=Position(6, "local_backward"))
    error = first_failure([waits, waits, waits, CallEnd(RuntimeError("gone"), died=True)], replicas=2)
    assert (error.stage_index, error.num_stages, error.part, error.place) == (1, 2, 1, 3)
    assert str(error).startswith("stage 1 of 2, replica 1 of 2, failed at step 6 (stage 0 was at local_backward): ")
    alone = first_failure([waits, CallEnd(RuntimeError("gone"), died=True)], replicas=2)
    assert alone.where == "step 6 (replica 0 was at local_backward)"
    fault = Fault(stage=0, step=2, kind="raise", replica=1)
    with (
        ThreadsExecutor(Setting(1, 2, 2).job(stage_timeout_s=1.0, faults=(fault,))) as executor,
        pytest.raises(StageError, match=r"stage 0 of 2, replica 1 of 2, failed at step 2 \(body_forward\): Runtime"),
    ):
        executor.train(6)


def test_what_is_reserved_and_chosen_counts_all_replicas() -> None:
    config = bl.RunConfig(num_modules=2, replicas=3, batch_size=6, executor="ray")
    small = ClusterResources(num_gpus=0, num_cpus=1.2, stage=StageResources(cpus_per_stage=0.2))
    assert len(small.bundles(config)) == 7
    with pytest.raises(bl.ConfigError, match=r"6 stages need 1\.3 CPUs, the cluster has 1\.2; use .* fewer replicas"):
        small.check(config)
    auto = config.replace(executor="auto")
    assert choose_executor(auto, 6, 1) == ("ray", "6 GPU slots for K=2 stages in 3 replicas")
    assert choose_executor(auto, 0, 5) == ("local", "5 CPU slots are too few for K=2 stages in 3 replicas")
    assert choose_executor(bl.RunConfig(method="bp", replicas=2), 2, 1)[0] == "ray"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("transport", ["objectstore", "collective"])
def test_a_run_that_loses_replicas_ends_as_if_nothing_had_happened(
    transport: str, tmp_path: Path, ray_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.replace(replicas=2, epochs=2)
    run(config, tmp_path / "local", executor="local", dataset=DATA)
    faults = (Fault(stage=1, step=3, replica=1), Fault(stage=0, step=7, phase="exchange", replica=1, attempt=1))
    options = RunOptions(
        faults=faults, transport=transport, resources=StageResources(cpus_per_stage=0.2), checkpoint_every_s=0.01
    )
    run(config, tmp_path / "ray", dataset=DATA, options=options)
    assert attempts(tmp_path / "ray") == 3
    assert digest(tmp_path / "ray") == digest(tmp_path / "local")
    assert "stage 1 of 2, replica 1 of 2, failed at step 3" in capsys.readouterr().err
    metrics = [json.loads(line) for line in (tmp_path / "ray" / "metrics.jsonl").read_text().splitlines()]
    assert [len(row["local_loss"]) for row in metrics] == [2, 2]

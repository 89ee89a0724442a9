"""A failing stage is named, nothing hangs, nothing is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.errors import LinkAbortedError, LinkError, NotFiniteError, StageError
from backlink_ray.pipeline import pool as pool_file
from backlink_ray.pipeline.controller import CallEnd, first_failure
from backlink_ray.pipeline.exchange import Kind
from backlink_ray.pipeline.pool import StagePool
from backlink_ray.pipeline.progress import SILENT, Patience, Position
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.pipeline.stageactor import StageActor
from backlink_ray.pipeline.stageplan import plan_stages
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.train.executor import LocalExecutor
from backlink_ray.train.faults import Fault
from tests.examples import job

METHOD = bl.BackLink(propagation_length=1, alpha=0.5)


def test_a_stage_that_was_slow_to_say_where_it_is_but_whose_call_has_ended_is_not_blamed(ray_here: None) -> None:
    import ray

    from backlink_ray.pipeline.actors import _end

    ended = _end(ray.put(None), Position(-1, SILENT, 1.2))
    hangs = CallEnd(None, position=Position(5, "local_backward", 121.0))
    assert first_failure([hangs, ended]).stage_index == 0


def test_a_dead_stage_is_named_with_the_step_at_which_its_neighbour_waits() -> None:
    waiting = CallEnd(LinkError("late"), position=Position(12, "receive_link_gradient"))
    error = first_failure(
        [waiting, CallEnd(RuntimeError("gone"), died=True), CallEnd(None, position=Position(11, "tail_forward"))]
    )
    assert str(error) == "stage 1 of 3 failed at step 12 (stage 0 was at receive_link_gradient): RuntimeError: gone"


def test_an_error_of_its_own_takes_precedence_over_a_wait_in_vain() -> None:
    late = CallEnd(LinkError("late"), position=Position(5, "receive_activation"))
    aborted = CallEnd(LinkAbortedError("stopped"), position=Position(5, "tail_forward"))
    assert (
        first_failure([late, aborted, CallEnd(ValueError("bad"), position=Position(4, "local_backward"))]).stage_index
        == 2
    )
    assert first_failure([aborted, late]).stage_index == 1


def test_a_stage_that_is_busy_by_itself_is_named_before_the_one_that_waits_for_it() -> None:
    late = CallEnd(LinkError("late"), position=Position(5, "receive_link_gradient"))
    busy = CallEnd(None, position=Position(5, "local_backward", 3.0))
    error = first_failure(
        [late, busy, CallEnd(LinkAbortedError("stopped"), position=Position(5, "receive_activation"))]
    )
    assert str(error) == (
        "stage 1 of 3 failed at step 5 (local_backward): it has not finished local_backward for 3.0 s: it hangs, or needs a "
        "longer stage_timeout_s"
    )
    assert error.lost
    assert first_failure([busy, CallEnd(None, position=Position(6, "body_forward", 9.0))]).stage_index == 1
    assert first_failure([busy, CallEnd(ValueError("bad"), position=Position(4, "tail_forward"))]).stage_index == 1


def test_a_silent_stage_is_named_only_if_none_is_known_to_have_failed() -> None:
    silent = CallEnd(None, position=Position(-1, SILENT, 7.0))
    late = CallEnd(LinkError("late"), position=Position(5, "receive_activation"))
    assert first_failure([late, silent]).stage_index == 1
    assert "stage 1 was at receive_activation): its process has not answered for 7.0 s" in str(
        first_failure([silent, late])
    )
    assert first_failure([late, silent]).lost
    assert first_failure([silent, late, CallEnd(ValueError("bad"))]).stage_index == 2
    died = first_failure([silent, CallEnd(RuntimeError("gone"), died=True)])
    assert (died.stage_index, died.lost) == (1, True)


@pytest.mark.parametrize(
    ("gpus", "per_stage", "places"), [(8, 1.0, 8), (6, 0.75, 6), (4, 0.5, 8), (3, 2.0, 1), (0, 1.0, 0), (1, 0.1, 10)]
)
def test_a_gpu_is_shared_but_a_stage_never_spans_two(gpus: float, per_stage: float, places: int) -> None:
    assert StageResources(gpus_per_stage=per_stage).stages_on(gpus) == places


class Explodes(nn.Module):
    """A unit that fails in its third training forward."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += int(self.training and torch.is_grad_enabled())
        if self.count == 3:
            raise RuntimeError("out of memory, say")
        return x


@pytest.mark.timeout(60)  # the others wait for messages, by default much longer
def test_a_failing_thread_ends_the_run_and_is_named() -> None:
    training = job(METHOD, 3)
    training.modules[2].chain.units.append(Explodes())
    training.modules[2].chain.uses_rng += (False,)
    with (
        ThreadsExecutor(training) as executor,
        pytest.raises(StageError) as caught,
    ):
        executor.train(6)
    failed = caught.value
    assert (failed.stage_index, failed.num_stages, failed.where) == (2, 3, "step 2 (body_forward)")
    assert failed.reason == "RuntimeError: out of memory, say"
    assert not [t for t in threading.enumerate() if t.name.startswith("stage")]


def test_who_stood_still_begins_to_watch_anew() -> None:
    patience = Patience(100.0)
    assert [patience.look(now) for now in (100.5, 101.0, 105.0)] == [0.5, 1.0, 5.0]
    assert [patience.look(now) for now in (405.0, 405.5)] == [0.0, 0.5]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("stage", [0, 1])
def test_a_thread_that_hangs_by_itself_is_named_and_not_waited_for(stage: int) -> None:
    fault = Fault(stage=stage, step=2, kind="hang")
    start = time.monotonic()
    with (
        ThreadsExecutor(job(METHOD, 2, stage_timeout_s=1.0, faults=(fault,))) as executor,
        pytest.raises(StageError, match="it has not finished body_forward") as caught,
    ):
        executor.train(6)
    assert time.monotonic() - start < 5
    assert (caught.value.stage_index, caught.value.where, caught.value.lost) == (stage, "step 2 (body_forward)", True)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"phase": "later"}, "phase='later' is unknown; allowed: start, before_forward"),
        ({"kind": "burn"}, "kind='burn'"),
        ({"step": -1}, "step=-1 .* 0 or more"),
    ],
)
def test_a_fault_that_cannot_happen_is_refused(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(bl.ConfigError, match=rule):
        Fault(**{"stage": 0, **wrong})


def test_a_stage_that_has_loaded_a_state_is_at_its_step() -> None:
    with LocalExecutor(job(METHOD, 2)) as executor:
        executor.train(3)
        state = executor.state()
    with ThreadsExecutor(job(METHOD, 2)) as executor:
        executor.load(state)
        assert [stage.progress.position.step for stage in executor._stages] == [3, 3]


def test_a_message_of_an_earlier_attempt_is_dropped() -> None:
    actor = StageActor()
    (plan,) = plan_stages(job(bl.BP(), 1))
    actor.build(2, plan, "")
    actor.deliver_previous(1, "activation", 0, "late")
    actor.deliver_previous(2, "activation", 0, "right")
    assert actor._from_previous.take(Kind.ACTIVATION, 0, 0.1) == "right"
    actor.abort(1)
    with pytest.raises(LinkError, match="did not arrive within"):
        actor._from_previous.take(Kind.ACTIVATION, 1, 0.1)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_sigkill_of_a_stage_is_named_within_seconds_and_leaves_nothing(ray_here: None) -> None:
    """With stages started for this run, where most tests use pooled ones; their losses equal one process's, too."""
    import ray
    from ray.util import placement_group_table

    from backlink_ray.pipeline.actors import RayExecutor

    with LocalExecutor(job(METHOD, 3)) as executor:
        expected = executor.train(2).losses
    others = placement_group_table()  # of other tests
    with StagePool() as stages, RayExecutor(job(METHOD, 3), stages) as executor:
        pids = [home.process_id for home in stages.homes.values()]
        assert torch.equal(executor.train(2).losses, expected)
        threading.Timer(0.5, os.kill, (pids[1], signal.SIGKILL)).start()
        start = time.monotonic()
        with pytest.raises(StageError, match=r"step \d+ .*ActorDiedError") as caught:
            executor.train(100_000)
        assert time.monotonic() - start < 15
    assert (caught.value.stage_index, caught.value.num_stages, caught.value.lost) == (1, 3, True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid in pids):
        time.sleep(0.2)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    own = {name: group for name, group in placement_group_table().items() if name not in others}
    assert {group["state"] for group in own.values()} == {"REMOVED"}
    assert ray.is_initialized()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("num_modules", "during"),
    [(2, "train"), pytest.param(3, "state", marks=pytest.mark.slow), pytest.param(1, "train", marks=pytest.mark.slow)],
)
def test_a_hung_stage_is_named_after_the_stage_timeout(num_modules: int, during: str, ray_here: None) -> None:
    from backlink_ray.pipeline.actors import RayExecutor

    with StagePool() as stages, RayExecutor(job(METHOD, num_modules, stage_timeout_s=3.0), stages) as executor:
        executor.train(1)
        os.kill(stages.homes[num_modules - 1].process_id, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(StageError) as caught:
            executor.train(1000) if during == "train" else executor.state()
        assert time.monotonic() - start < 15
    assert (caught.value.stage_index, caught.value.num_stages, caught.value.lost) == (
        num_modules - 1,
        num_modules,
        True,
    )


def test_a_pool_that_starts_nothing_needs_no_ray() -> None:
    code = "import sys; from backlink_ray import StagePool\nwith StagePool(): pass\nassert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_run_of_short_calls_gets_a_process_that_stands_by(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from backlink_ray.pipeline import actors

    monkeypatch.setattr(pool_file, "STANDBY_AFTER_S", 0.0)
    monkeypatch.setattr(pool_file, "STANDBY_MIB", 0.0)
    monkeypatch.setattr(actors, "HEARTBEAT_S", 1e3)  # no call is as long
    with (
        StagePool(StageResources(cpus_per_stage=0.01, gpus_per_stage=0)) as pool,
        actors.RayExecutor(job(METHOD, 2), pool) as executor,
    ):
        assert pool._standby is None
        executor.train(1)
        assert pool._standby is not None


def test_nothing_is_asked_of_stages_that_have_all_ended(ray_here: None) -> None:
    import ray

    from backlink_ray.pipeline.actors import RayExecutor

    executor, asked = RayExecutor.__new__(RayExecutor), list[int]()
    executor._actors = []
    assert executor._wait([ray.put("done")], meanwhile=lambda: asked.append(1)) == ["done"]
    assert asked == []


def test_what_the_cluster_can_never_hold_is_refused_before_anything_is_reserved(ray_here: None) -> None:
    from ray.util import placement_group_table

    from backlink_ray.pipeline.actors import RayExecutor

    before = placement_group_table()
    with pytest.raises(bl.ConfigError, match=r"4 stages need 4\.1 CPUs, the cluster has 2"):
        RayExecutor(job(METHOD, 4), StagePool(StageResources(cpus_per_stage=1.0)))
    with pytest.raises(bl.ConfigError, match=r"2 stages .* 1 GPUs .* has 0, which hold 0"):
        StageResources().check(2, num_cpus=8, num_gpus=0)
    assert placement_group_table().keys() == before.keys()


@pytest.mark.parametrize("make", [LocalExecutor, ThreadsExecutor])
def test_a_loss_that_is_not_finite_names_stage_and_step(make: type) -> None:
    training = job(METHOD, 2)
    with torch.no_grad():
        next(iter(training.modules[1].head.parameters())).fill_(float("nan"))
    with (
        make(training) as executor,
        pytest.raises(NotFiniteError, match="stage 1 is nan at step 0; try a smaller lr"),
    ):
        executor.train(2)

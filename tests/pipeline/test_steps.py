"""A run of steps that ends early ends at one step, whatever the speeds of the stages, and goes on as if it had not ended."""

import random
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.errors import LinkAbortedError, LinkError, StageError
from backlink_ray.pipeline.progress import wait_patiently
from backlink_ray.pipeline.stageactor import StageActor
from backlink_ray.pipeline.stageplan import plan_stages
from backlink_ray.pipeline.steps import Steps
from backlink_ray.pipeline.threads import RoundRobinExecutor, ThreadsExecutor
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from tests.examples import different_states, job
from tests.methods.settings import SETTINGS

PAUSE_S = 0.03
ASYNC = bl.DGL(mode="async")
MANY = 100_000


class Slow(nn.Module):
    """A unit that takes its time in every training forward."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(PAUSE_S * (self.training and torch.is_grad_enabled()))
        return x


def slowed(method: bl.methods.base.Method, slow: int) -> Job:
    """Return a job of three stages, of which one is slower than the others."""
    training = job(method, 3, batch_size=4)
    training.modules[slow].chain.units.append(Slow())
    training.modules[slow].chain.uses_rng += (False,)
    return training


def at_once() -> bool:
    return True


def check_ends_early(make: Callable[[Job], Executor], method: bl.methods.base.Method, slow: int) -> None:
    """Check that the run ends, that every stage has done as many steps, and that the steps are those of one process."""
    with make(slowed(method, slow)) as executor:
        first = executor.train(MANY, at_once)
        middle = executor.state().step
        second = executor.train(2)
        end = executor.state()
    assert first.num_steps == middle
    assert 1 <= middle < MANY / 10
    assert end.step == middle + 2
    if method.replay_size:  # timing decides
        assert {int(t) for n, t in end.weights.items() if n.endswith("num_batches_tracked")} == {end.step}
        return
    with LocalExecutor(slowed(method, slow)) as executor:
        whole, expected = executor.train(end.step), executor.state()
    assert torch.equal(torch.cat([first.losses, second.losses], dim=1), whole.losses)
    assert torch.equal(first.followed_by(second).losses.mean(dim=1), whole.losses.mean(dim=1))
    assert different_states(end, expected) == []


METHODS = {**SETTINGS, "async": ASYNC}
SOME = {"backlink": 1, "backlink, link=error": 2, "backlink, mode=stale": 0, "ddg": 1, "dni": 0, "async": 2}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", SOME)
def test_threads_end_early(name: str) -> None:
    check_ends_early(ThreadsExecutor, METHODS[name], SOME[name])


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("slow", range(3))
@pytest.mark.parametrize("name", METHODS)
def test_threads_end_early_whichever_is_slow(name: str, slow: int) -> None:
    check_ends_early(ThreadsExecutor, METHODS[name], slow)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("name", "slow"), [("backlink", 2), ("ddg", 0), ("dni", 1), ("async", 2)])
def test_actors_end_early(name: str, slow: int, pooled_executor: Callable[[Job], Executor]) -> None:
    check_ends_early(pooled_executor, METHODS[name], slow)


def test_one_process_ends_early_after_at_least_one_step() -> None:
    for make, method in ((LocalExecutor, bl.BackLink(propagation_length=1)), (RoundRobinExecutor, ASYNC)):
        with make(job(method, 3)) as executor:
            assert executor.train(MANY, at_once).num_steps == executor.state().step == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(12))
def test_stages_that_do_not_wait_for_each_other_end_at_one_step(seed: int) -> None:
    """They may be steps apart, at their end, or not have begun when they are asked; the rest is done by the next run."""
    draw = random.Random(seed)
    stages, done = [Steps(10.0) for _ in range(4)], [list[int]() for _ in range(4)]

    def work(k: int, num_steps: int, delay_s: float, pause_s: float) -> None:
        time.sleep(delay_s)
        for step in stages[k].run(num_steps):
            done[k].append(step)
            time.sleep(pause_s)

    def start(num_steps: int) -> list[threading.Thread]:
        speeds = [(draw.choice((0, 0.01)), draw.choice((0, 0.0003, 0.002))) for _ in stages]
        threads = [threading.Thread(target=work, args=(k, num_steps, *speed)) for k, speed in enumerate(speeds)]
        for thread in threads:
            thread.start()
        return threads

    threads = start(60)
    time.sleep(draw.uniform(0, 0.03))
    last = max(stage.hold(60) for stage in stages)
    time.sleep(0.005)  # stages that were not held would go on
    for stage in stages:
        stage.end_at(60, last)
    for thread in threads:
        thread.join()
    assert [stage.next for stage in stages] == [last] * 4
    for thread in start(60 - last) if last < 60 else ():
        thread.join()
    assert done == [list(range(60))] * 4


def test_a_held_stage_does_not_wait_for_ever() -> None:
    steps = Steps(0.05)
    steps.hold(3)
    with pytest.raises(LinkError, match=r"the driver did not say at which step to end within 0\.05 s"):
        next(steps.run(3))


@pytest.mark.timeout(30)
def test_a_held_stage_is_stopped_when_another_fails() -> None:
    steps = Steps(60.0)
    steps.hold(3)
    threading.Timer(0.05, steps.abort).start()
    with pytest.raises(LinkAbortedError, match="another stage failed"):
        next(steps.run(3))


@pytest.mark.timeout(30)
def test_a_stage_that_fails_while_another_is_held_ends_both() -> None:
    def broken(num_steps: int) -> None:
        raise ValueError(f"no {num_steps} steps")

    start = time.monotonic()
    with ThreadsExecutor(job(ASYNC, 2)) as executor:
        held, failing = executor._stages
        held.steps.hold(9)
        failing.run = broken  # type: ignore[method-assign,assignment]
        with pytest.raises(StageError, match="stage 1 of 2 .* no 9 steps"):
            executor.train(9)
    assert time.monotonic() - start < 3


def test_a_wait_is_counted_anew_once_the_process_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backlink_ray.pipeline.progress.STOOD_STILL_S", 0.2)
    waited_s: list[float] = []

    def wait(seconds: float) -> bool:
        waited_s.append(seconds)
        time.sleep(0.5 if len(waited_s) == 1 else seconds)
        return False

    assert not wait_patiently(wait, 0.1)
    assert len(waited_s) == 2


@pytest.mark.timeout(30)
def test_an_actor_stops_the_held_stage_of_its_own_attempt_alone() -> None:
    actor = StageActor()
    (plan,) = plan_stages(job(bl.BP(), 1, stage_timeout_s=3))
    actor.build(2, plan, "")
    actor.ask("hold", 9)
    actor.abort(1)
    threading.Timer(0.1, actor.abort, (2,)).start()
    with pytest.raises(LinkAbortedError, match="step 0 does not begin: another stage failed"):
        actor.call("run", 9)

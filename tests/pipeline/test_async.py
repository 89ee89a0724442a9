"""Stages that do not keep step: the replay buffer, and runs against the methods in step."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

import backlink_ray as bl
from backlink_ray.local.module import StepSeed
from backlink_ray.methods.base import Batch, Method
from backlink_ray.pipeline.exchange import Kind, Mailbox, QueueLink
from backlink_ray.pipeline.injector import make_stage
from backlink_ray.pipeline.queues import ReplayQueue
from backlink_ray.pipeline.stageplan import plan_stages
from backlink_ray.pipeline.threads import RoundRobinExecutor, ThreadsExecutor
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from tests.examples import job

CPU = torch.device("cpu")
DGL = bl.DGL(mode="async", buffer_size=1)


@dataclass(frozen=True, kw_only=True)
class AsyncInfoPro(bl.InfoPro):
    """A method that does not keep step and whose loss needs the images."""

    @property
    def replay_size(self) -> int:
        return 2


def test_the_newest_of_the_least_used_is_taken() -> None:
    queue = ReplayQueue(3)
    for step in range(4):
        queue.put((step, None))
    assert [queue.take()[0] for _ in range(5)] == [3, 2, 1, 3, 2]
    queue.put((4, None))  # in place of 1
    assert [queue.take()[0] for _ in range(4)] == [4, 4, 4, 3]
    assert queue.has_room()


def test_turns_in_order_are_the_method_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one activation per cut and stages one after another, DGL is synchronous, bit for bit."""
    monkeypatch.setattr(RoundRobinExecutor, "_order", lambda executor: list(range(len(executor._stages))))
    states = []
    for make, method in ((RoundRobinExecutor, DGL), (LocalExecutor, bl.DGL())):
        with make(job(method, 3, dropout=0.2)) as executor:
            losses = executor.train(5).losses
            states.append((executor.state().weights, losses, executor.evaluate("test").error_pct))
    (ours, ours_losses, ours_wrong), (theirs, theirs_losses, theirs_wrong) = states
    assert [n for n in theirs if not torch.equal(ours[n], theirs[n])] == []
    assert torch.equal(ours_losses, theirs_losses)
    assert ours_wrong == theirs_wrong


def test_a_replayed_activation_comes_with_its_own_labels_images_and_masks() -> None:
    """A stage that gets batches 6, 5 and then nothing new has the losses that InfoPro defines for them."""
    training = replace(job(AsyncInfoPro(), 3, "conv", dropout=0.2), lr=no_lr)
    module = bl.InfoPro().prepare(copy.deepcopy(training.modules))[1].train()
    training.engine.arrange_weights([module])
    batches = training.batches(CPU, training.dtype)
    stage, mine = make_stage(plan_stages(training)[1]), Mailbox(replay_size=2)
    stage.connect(QueueLink(mine, Mailbox(), CPU, 1.0), QueueLink(Mailbox(), Mailbox(), CPU, 1.0))
    for arrives, used in ((6, 6), (5, 5), (None, 5), (None, 6)):
        if arrives:
            mine.deliver(Kind.FRESH_ACTIVATION, arrives, (activation(arrives), None), 1.0)
        step_seed = StepSeed(training.seed, used)
        expected = training.method.loss(
            module,
            module.chain(activation(used), step_seed),
            Batch(batches.inputs(used), batches.labels(used), step_seed),
        )
        assert stage.run(1).losses[0] == expected


def activation(step: int) -> torch.Tensor:
    return torch.randn(16, 6, 32, 32, generator=torch.Generator().manual_seed(step))


def test_a_resumed_run_has_the_activations_and_turns_of_one_that_was_not_stopped() -> None:
    method = bl.DGL(mode="async", buffer_size=3)
    with RoundRobinExecutor(job(method, 3, dropout=0.2)) as executor:
        executor.train(2)
        middle = executor.state()
        whole, end = executor.train(6).losses, executor.state()
    assert middle.method_state["modules.2.replay"].shape == (2, 2)
    with RoundRobinExecutor(job(method, 3, dropout=0.2)) as executor:
        executor.load(middle)
        rest, again = executor.train(6).losses, executor.state()
    assert torch.equal(rest, whole)
    for ours, theirs in ((again.weights, end.weights), (again.method_state, end.method_state)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_drawn_turns_are_repeatable_and_not_in_step_and_learn() -> None:
    weights, losses = [], []
    for make, method in ((RoundRobinExecutor, DGL), (RoundRobinExecutor, DGL), (LocalExecutor, bl.DGL())):
        with make(replace(job(method, 3), lr=steady_lr)) as executor:
            losses.append(executor.train(24).losses)
            weights.append(executor.state().weights)
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert any(not torch.equal(weights[0][n], weights[2][n]) for n in weights[0])
    assert (losses[0][:, -6:].mean(dim=1) < losses[0][:, :6].mean(dim=1)).all()  # passes over 96 images


def no_lr(_step: int) -> float:
    return 0.0


def steady_lr(_step: int) -> float:
    return 0.02


STEPS = 12


def late_lr(step: int) -> float:
    return 0.0 if step < STEPS else 0.02


PAIRS = {"dgl": (bl.DGL(mode="async"), bl.DGL()), "infopro": (AsyncInfoPro(), bl.InfoPro())}


@pytest.mark.parametrize("name", PAIRS)
def test_async_threads_whatever_their_speeds(name: str) -> None:
    check_async(ThreadsExecutor, *PAIRS[name])


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "infopro")) for name in PAIRS])
def test_async_actors_whatever_their_speeds(name: str, pooled_executor: Callable[[Job], Executor]) -> None:
    check_async(pooled_executor, *PAIRS[name])


def check_async(make: Callable[[Job], Executor], method: Method, in_step: Method) -> None:
    """Check what holds for every order of messages.

    While no weight changes, each loss of a stage is the synchronous method's for some batch: activation, labels, images and
    masks belong together. Once weights change, every stage takes all its steps, each with all of its weights.
    """
    with LocalExecutor(replace(job(in_step, 3, "conv", dropout=0.2), lr=no_lr)) as executor:
        expected = executor.train(STEPS).losses
    with make(replace(job(method, 3, "conv", dropout=0.2), lr=late_lr)) as executor:
        losses, before = executor.train(STEPS).losses, executor.state().weights
        moving, after = executor.train(STEPS).losses, executor.state()
        assert sum(executor.evaluate("test").class_images) == 40
    assert torch.equal(losses[0], expected[0])  # the first stage never waits
    assert all(set(mine) <= set(theirs) for mine, theirs in zip(losses.tolist(), expected.tolist(), strict=True))
    assert moving.shape == (3, STEPS)
    assert moving.isfinite().all()
    assert after.step == 2 * STEPS
    assert {int(t) for n, t in after.weights.items() if n.endswith("num_batches_tracked")} == {2 * STEPS}
    assert [n for n in before if n.endswith("weight") and torch.equal(before[n], after.weights[n])] == []


def test_a_trainer_keeps_step() -> None:
    with pytest.raises(bl.ConfigError, match="mode='async'.*use an executor"):
        LocalExecutor(job(DGL, 3))

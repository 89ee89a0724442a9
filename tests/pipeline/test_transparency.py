"""With and without the pipeline: the same weights, batch norm buffers, optimizer, losses and errors, bit for bit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product, starmap
from typing import Any, NamedTuple
from weakref import ref

import pytest
import torch
from torch import Tensor

import backlink_ray as bl
from backlink_ray.local.module import LocalModule
from backlink_ray.methods.base import Batch, LocalResult
from backlink_ray.pipeline.exchange import Kind, Mailbox, NoLink, QueueLink, flatten
from backlink_ray.pipeline.injector import make_stage
from backlink_ray.pipeline.stageplan import plan_stages
from backlink_ray.pipeline.threads import RoundRobinExecutor, ThreadsExecutor
from backlink_ray.train.executor import Evaluation, Executor, Job, LocalExecutor
from tests.examples import job, sample
from tests.methods.settings import SETTINGS

Outcome = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Tensor, Evaluation]
Make = Callable[[Job], Executor]


def outcome(make: Callable[[Job], Executor], training: Job, chunks: tuple[int, int] = (3, 2)) -> Outcome:
    """Train five steps in two chunks (to include draining), then evaluate."""
    with make(training) as executor:
        losses = torch.cat([executor.train(steps).losses for steps in chunks], dim=1)
        evaluation = executor.evaluate("test")
        state = executor.state()
    return state.weights, state.optimizer, state.method_state, losses, evaluation


def check_equal(make: Callable[[Job], Executor], new_job: Callable[[], Job], chunks: tuple[int, int] = (3, 2)) -> None:
    check_same(outcome(make, new_job(), chunks), outcome(LocalExecutor, new_job(), chunks))


def check_same(found: Outcome, expected: Outcome) -> None:
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        assert isinstance(ours, dict)
        assert isinstance(theirs, dict)
        assert ours.keys() == theirs.keys()
        assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []
    assert torch.equal(found[3], expected[3])
    assert found[4] == expected[4]
    images = sample().test.labels.bincount(minlength=10)
    assert found[4].class_images in (tuple(images.tolist()), ())  # () for a regression


class Setting(NamedTuple):
    """K, l, alpha and head change the result; tail_memory and link must not."""

    num_modules: int
    length: int
    alpha: float
    head: str
    tail_memory: str = "retain"
    link: str = "replica"

    def job(self) -> Job:
        method = bl.BackLink(
            propagation_length=self.length, alpha=self.alpha, tail_memory=self.tail_memory, link=self.link
        )
        return job(method, self.num_modules, self.head, batch_size=4)


@cache
def alone(num_modules: int, length: int, alpha: float, head: str) -> Outcome:
    """Return the outcome in one process, with default tail_memory and link."""
    return outcome(LocalExecutor, Setting(num_modules, length, alpha, head).job())


MATRIX = list(
    starmap(
        Setting,
        product((1, 2, 4), (0, 1, 2), (0.0, 0.25, 1.0), ("fc", "conv"), ("retain", "recompute"), ("replica", "error")),
    )
)
# Run over Ray every time; the first five have no link, since K = 1 or l = 0.
SOME = [
    Setting(1, 0, 0.00, "conv", "retain", "error"),
    Setting(1, 1, 0.25, "fc", "recompute", "replica"),
    Setting(1, 2, 1.00, "fc", "recompute", "replica"),
    Setting(2, 0, 0.25, "fc", "recompute", "replica"),
    Setting(4, 0, 1.00, "fc", "retain", "error"),
    Setting(2, 1, 0.00, "conv", "retain", "error"),
    Setting(2, 1, 0.25, "fc", "retain", "replica"),
    Setting(2, 1, 1.00, "conv", "recompute", "error"),
    Setting(2, 2, 0.00, "conv", "recompute", "replica"),
    Setting(4, 1, 0.00, "fc", "recompute", "replica"),
    Setting(4, 1, 0.25, "fc", "retain", "error"),
    Setting(4, 2, 0.25, "conv", "recompute", "error"),
    Setting(4, 2, 1.00, "fc", "retain", "replica"),
]


def test_some_hold_every_pair_of_values_and_those_with_a_link_every_pair_again() -> None:
    def pairs(settings: Iterable[Setting]) -> set[tuple[int, int, object, object]]:
        return {(a, b, s[a], s[b]) for s in settings for a in range(6) for b in range(a)}

    def linked(settings: Iterable[Setting]) -> list[Setting]:
        return [s for s in settings if s.num_modules > 1 and s.length > 0]

    assert pairs(SOME) == pairs(MATRIX)
    assert pairs(linked(SOME)) == pairs(linked(MATRIX))
    assert len(set(SOME)) < len(MATRIX) / 15
    assert all(pairs(set(SOME) - {setting}) < pairs(MATRIX) for setting in SOME[:3])  # the comparison can fail


@pytest.mark.parametrize("setting", MATRIX, ids=lambda s: "-".join(map(str, s)))
def test_threads(setting: Setting) -> None:
    check_same(outcome(ThreadsExecutor, setting.job()), alone(*setting[:4]))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("setting", SOME, ids=lambda s: "-".join(map(str, s)))
def test_ray(setting: Setting, pooled_executor: Make) -> None:
    check_same(outcome(pooled_executor, setting.job()), alone(*setting[:4]))


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("setting", MATRIX, ids=lambda s: "-".join(map(str, s)))
def test_ray_everywhere(setting: Setting, ray_executor: Make) -> None:
    check_same(outcome(ray_executor, setting.job()), alone(*setting[:4]))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_method_as_threads(name: str) -> None:
    """With dropout, whose mask a tail's replica must draw again."""
    check_equal(ThreadsExecutor, lambda: job(SETTINGS[name], 3, "fc", dropout=0.2))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_method_over_ray(name: str, pooled_executor: Make) -> None:
    check_equal(pooled_executor, lambda: job(SETTINGS[name], 3, "conv", batch_size=4))


@pytest.mark.parametrize(("network", "k"), [("alexnet", 8), ("vgg16", 16)])
def test_one_unit_per_stage_with_dropout_in_its_tail(network: str, k: int, narrow_linear_units: None) -> None:
    def new_job() -> Job:
        built = bl.build_network(network)
        small = job(bl.BackLink(propagation_length=1, alpha=0.5), 2, batch_size=2)
        return replace(small, modules=bl.split(built, k))

    check_equal(ThreadsExecutor, new_job, (1, 1))


def test_a_tail_of_another_length_is_another_result() -> None:
    """The comparison above can fail."""
    one = outcome(LocalExecutor, job(bl.BackLink(propagation_length=1), 2))
    two = outcome(LocalExecutor, job(bl.BackLink(propagation_length=2), 2))
    assert any(not torch.equal(one[0][n], two[0][n]) for n in one[0])


@dataclass(frozen=True, kw_only=True)
class Watched(bl.BackLink):
    """Records at every loss which of the module's earlier results are still in memory."""

    errors: list[ref[Tensor]] = field(default_factory=list)
    gradients: dict[int, list[ref[Tensor]]] = field(default_factory=dict)
    alive: list[str] = field(default_factory=list)

    def loss(self, module: LocalModule, features: Tensor, batch: Batch) -> Tensor:
        self.alive.extend("error" for error in self.errors if (alive := error()) is not None and alive.numel())
        self.alive.extend("gradient" for g in self.gradients.get(module.module_index, []) if g() is not None)
        return super().loss(module, features, batch)

    def local_backward(self, module: LocalModule, *graphs: Any, **options: Any) -> LocalResult:
        result = super().local_backward(module, *graphs, **options)
        self.errors.append(ref(result.error))
        self.gradients[module.module_index] = [ref(gradient) for gradient in result.local or []]
        return result


@pytest.mark.parametrize("num_modules", [1, 4])
def test_a_trainer_frees_what_was_used(num_modules: int) -> None:
    """Only the current module's graph and the previous tail are in memory, nothing of earlier modules and steps."""
    method = Watched(propagation_length=min(1, num_modules - 1))
    with LocalExecutor(job(method, num_modules)) as executor:
        executor.train(3)
    assert len(method.errors) == 3 * num_modules
    assert method.alive == []


def test_a_stage_frees_what_was_used() -> None:
    method = Watched(propagation_length=1)
    stage, forward = make_stage(plan_stages(job(method, 2))[1]), Mailbox()
    stage.connect(QueueLink(forward, Mailbox(), torch.device("cpu"), 1.0), NoLink())
    tail = stage._replica
    for step in range(3):
        forward.deliver(Kind.ACTIVATION, step, (torch.randn(16, 6, 32, 32), None), 1.0)
        forward.deliver(Kind.LOCAL_GRADIENT, step, (flatten([p.detach() for p in tail.parameters()]), None), 1.0)
        if step:
            stage._previous._outbox.take(Kind.LINK_GRADIENT, step - 1, 1.0)  # type: ignore[attr-defined]
        stage.run(1)
    assert len(method.errors) == 3
    assert method.alive == []


@pytest.mark.parametrize("make", [LocalExecutor, ThreadsExecutor])
@pytest.mark.parametrize("name", ["backlink", "backlink, mode=stale", "ddg", "dni"])
def test_continuing_from_a_state_equals_never_having_stopped(make: Callable[[Job], Executor], name: str) -> None:
    method = SETTINGS[name]
    with make(job(method, 3, dropout=0.2)) as executor:
        executor.train(3)
        middle = executor.state()
        executor.train(2)
        end = executor.state()
    with make(job(method, 3, dropout=0.2)) as executor:
        executor.load(middle)
        executor.train(2)
        again = executor.state()
    assert again.step == end.step == 5
    for ours, theirs in (
        (again.weights, end.weights),
        (again.optimizer, end.optimizer),
        (again.method_state, end.method_state),
    ):
        assert ours.keys() == theirs.keys()
        assert [n for n in theirs if not torch.equal(ours[n], theirs[n])] == []


@pytest.mark.parametrize("make", [LocalExecutor, ThreadsExecutor, RoundRobinExecutor])
def test_an_executor_restores_the_callers_torch_threads(make: Callable[[Job], Executor]) -> None:
    """Even if it refuses its job."""
    method = bl.DGL(mode="async") if make is RoundRobinExecutor else bl.BackLink(propagation_length=1)
    torch.set_num_threads(3)
    with make(job(method, 2)) as executor:
        executor.train(1)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(bl.ConfigError, match="exceeds"):
        make(job(bl.BackLink(propagation_length=7), 2))
    assert torch.get_num_threads() == 3

"""What users write themselves, over the pipeline and in one process: the same bits, also after a kill and a resume."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.data.tensors import LabelledSet
from backlink_ray.methods.base import Method
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.train.checkpoint import Checkpoints
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from backlink_ray.train.state import TrainState
from tests.examples import different_states, job, sample, tiny_network
from tests.own import OPTIMIZERS, CountedSgd, Sharpened, mean_absolute, narrow_head, two_groups
from tests.pipeline.test_transparency import check_equal

LINKED = bl.BackLink(propagation_length=1, alpha=0.25, base=Sharpened())


def regression(method: Method, **options: Any) -> Job:
    """A job that predicts the brightness of an image's three colours."""
    data = sample()
    train, test = (replace(s, labels=s.inputs.float().mean(dim=(2, 3)) / 255) for s in (data.train, data.test))
    modules = bl.split(tiny_network(classes=3), sizes=(3, 3, 2), head=narrow_head)
    asked = {"modules": modules, "train": train, "evaluations": {"test": test}, "loss": mean_absolute, **options}
    return replace(job(method, 2), **asked)


@pytest.mark.parametrize("link", ["replica", "error"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_as_threads(name: str, link: str) -> None:
    method = bl.BackLink(propagation_length=1, alpha=0.25, link=link)
    check_equal(ThreadsExecutor, lambda: job(method, 3, optimizer=OPTIMIZERS[name]))


@dataclass(frozen=True, kw_only=True)
class Contrast(bl.Method):
    """Its loss is scaled by the contrast of the training images."""

    name: ClassVar[str] = "contrast"
    scale: float = 0.02

    def for_data(self, train: LabelledSet) -> Method:
        return replace(self, scale=self.scale * float(train.inputs.float().std()))

    def loss(self, module: bl.LocalModule, features: Tensor, batch: bl.Batch) -> Tensor:
        return self.scale * super().loss(module, features, batch)


def fused(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


def test_a_fused_optimizer_of_weights_in_channels_last(tmp_path: Path) -> None:
    """It takes values in the order of memory, and the gradients and states that arrive are contiguous."""

    def training() -> Job:
        modules = bl.split(tiny_network().to(memory_format=torch.channels_last), 3)
        return replace(job(LINKED, 3, optimizer=fused), modules=modules)

    check_equal(ThreadsExecutor, training)
    with LocalExecutor(training()) as one, LocalExecutor(training()) as other:
        one.train(1)
        Checkpoints(tmp_path).save(one.state(), {})
        found = Checkpoints(tmp_path).newest()
        assert found is not None
        other.load(found[0])
        one.train(1)
        other.train(1)
        assert different_states(one.state(), other.state()) == []


def test_an_optimizer_that_looks_for_certain_parameters_is_refused_where_stages_hold_copies() -> None:
    training = job(LINKED, 3)
    first = {id(p) for p in training.modules[0].parameters()}

    def by_identity(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = ([p for p in parameters if (id(p) in first) == own] for own in (True, False))
        return torch.optim.SGD([{"params": g, "weight_decay": 0.1 * i} for i, g in enumerate(groups)], lr=0.1)

    training = replace(training, optimizer=by_identity)
    with pytest.raises(bl.ConfigError, match="gives copies of parameters other options"):
        ThreadsExecutor(training)
    LocalExecutor(training).close()


def test_autocast_around_stages_is_refused() -> None:
    with (
        torch.autocast("cpu", torch.bfloat16),
        ThreadsExecutor(job(LINKED, 2)) as running,
        pytest.raises(bl.ConfigError, match=r"torch\.autocast holds for the calling thread alone"),
    ):
        running.train(1)


WEIGHTED = nn.CrossEntropyLoss(weight=torch.arange(1.0, 11.0))
JOBS: dict[str, Callable[[], Job]] = {
    "a method": lambda: job(Sharpened(), 3, "conv", dropout=0.2),
    "a base": lambda: job(LINKED, 3, "conv", dropout=0.2),
    "a method that sees the whole training set once": lambda: job(Contrast(), 3),
    "a weighted loss": lambda: job(LINKED, 3, loss=WEIGHTED),
    **{f"a regression, {method.name}": partial(regression, method, optimizer=torch.optim.AdamW)
       for method in (LINKED, bl.DNI(), bl.DDG(), bl.InfoPro())},
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_parts_of_ones_own_as_threads(name: str) -> None:
    check_equal(ThreadsExecutor, JOBS[name])


@pytest.mark.timeout(180)
@pytest.mark.parametrize("optimizer", [pytest.param(torch.optim.AdamW, marks=pytest.mark.slow), CountedSgd])
def test_everything_of_ones_own_over_ray(optimizer: Any, pooled_executor: Callable[[Job], Executor]) -> None:
    check_equal(pooled_executor, lambda: regression(LINKED, optimizer=optimizer))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adagrad, two_groups, CountedSgd])
def test_a_pipeline_continues_from_a_checkpoint_bit_for_bit(optimizer: Any, tmp_path: Path) -> None:
    """Also with the state of another executor, and its replicas', which no checkpoint holds twice."""

    def trained(make: Callable[[Job], Executor], steps: int, start: TrainState | None = None) -> TrainState:
        with make(regression(LINKED, optimizer=optimizer)) as executor:
            if start is not None:
                executor.load(start)
            executor.train(steps)
            return executor.state()

    end = trained(LocalExecutor, 5)
    Checkpoints(tmp_path).save(trained(ThreadsExecutor, 3), {})
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    for make in (LocalExecutor, ThreadsExecutor):
        again = trained(make, 2, found[0])
        assert different_states(again, end) == []


@pytest.mark.parametrize("make", [LocalExecutor, ThreadsExecutor])
def test_an_optimizer_that_cannot_work_in_parts_is_refused_at_the_start(make: Callable[[Job], Executor]) -> None:
    with pytest.raises(bl.ConfigError, match="LBFGS needs a closure"):
        make(job(bl.GLL(), 2, optimizer=torch.optim.LBFGS))

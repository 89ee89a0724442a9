"""What the stages of one module tell each other, where their parts of the batch leave different things behind."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.pipeline.exchange import flatten, unflatten
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.train.executor import Job, LocalExecutor
from tests.examples import different_states, job, job_with


class LeavesOut(nn.Module):
    """A residual block whose last layer is zero, so that gradients begin at 0, and which some inputs pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(torch.relu(self.first(x))) if float(x.detach()[:, 0].sum()) > 0 else x


class Counts(nn.Module):
    """Counts in whole numbers how often its outputs were positive, and notes in complex ones what it saw last."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(6, dtype=torch.int64))
        self.register_buffer("last", torch.zeros(6, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        if self.training:
            self.seen += (y > 0).sum(0)
            self.last.copy_(y[0].detach())  # type: ignore[operator]
        return y


LINKS = [(0, "replica"), (1, "replica"), (1, "error")]


def of_unit(make: Callable[[], nn.Module], length: int, link: str) -> Job:
    torch.manual_seed(2)
    units = [nn.Sequential(nn.Flatten(), nn.Linear(3072, 6)), make(), nn.Linear(6, 6)]
    modules = bl.split(bl.Network(units, nn.Linear(6, 10), torch.zeros(1, 3, 32, 32)), 2)
    return job_with(modules, bl.BackLink(propagation_length=length, link=link), 6, replicas=3)


def in_float64(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.double(), labels)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda unit=unit, how=how: of_unit(unit, *how) for unit in (LeavesOut, Counts) for how in LINKS),
        lambda: job(bl.GLL(), 2, batch_size=12, replicas=3, loss=in_float64),
    ],
)
def test_all_parts_and_one_process_have_the_same_state(make: Callable[[], Job]) -> None:
    with LocalExecutor(make()) as executor:
        executor.train(4)
        expected = executor.state()
    with ThreadsExecutor(make()) as threads:
        threads.train(4)
        found = [dict(stage.module.named_state()) for stage in threads._stages]
        assert different_states(threads.state(), expected) == []
    for first, other in zip(found[:2] * 2, found[2:], strict=True):
        assert [name for name, tensor in first.items() if not torch.equal(tensor, other[name])] == []


def test_bytes_are_the_tensors_again_whatever_their_types() -> None:
    given = [
        torch.tensor(True), torch.tensor(2.5), torch.empty(0), torch.arange(6).view(2, 3).t(), torch.tensor([1 + 2j]),
        torch.ones(3, dtype=torch.bfloat16), torch.tensor([3.0], dtype=torch.float64), torch.zeros(2, 0, dtype=torch.int32),
    ]  # fmt: skip
    found = unflatten(flatten(given), given)
    assert [(t.dtype, t.shape) for t in found] == [(t.dtype, t.shape) for t in given]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, given, strict=True))

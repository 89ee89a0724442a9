"""What a plan says of the bytes over every cut is what stages send."""

from collections import Counter
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.data.loader import Batches
from backlink_ray.local.engine import Engine
from backlink_ray.pipeline.exchange import Kind, Link
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.planning import layout
from backlink_ray.planning.costs import NetworkCosts, measure_costs
from backlink_ray.planning.plan import Machine, Planner
from tests.examples import job_with, sample

BATCH = 2
# Sizes and l; of most tails as long as their whole module, so that the activation at the cut is the module's input.
CUTS = [
    ((7, 6), 0), ((7, 6), 1), ((7, 6), 2), ((7, 6), 4), ((4, 9), 4),
    ((4, 4, 4, 1), 0), ((1, 1, 1, 10), 1), ((3, 2, 4, 4), 1), ((2, 4, 2, 5), 2), ((4, 4, 4, 1), 4),
]  # fmt: skip
CASES = [*(("own", *cut) for cut in CUTS), ("resnet26", (7, 6), 2), ("resnet26", (4, 4, 4, 1), 4)]


def network(name: str) -> bl.Network:
    """A network of 13 units: ResNet26, or one in which no two activations and no two weights have as many bytes."""
    if name == "resnet26":
        return bl.build_network("resnet26")
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Conv2d(3 + i, 4 + i, 1), nn.BatchNorm2d(4 + i), nn.Tanh()) for i in range(13)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return bl.Network(units, classifier, torch.zeros(1, 3, 32, 32), name="own")


@cache
def costs(name: str, precision: str) -> NetworkCosts:
    engine = Engine(precision=precision)
    batches = Batches(sample().train, BATCH, seed=0, memory_format=engine.torch_format)
    return measure_costs(bl.split(network(name), 13, head="conv"), batches, engine, repeats=1)


class Counting(Link):
    """Counts the bytes that go through a link."""

    def __init__(self, link: Link, cut: int, sent: Counter[tuple[int, int]]) -> None:
        self._link, self._cut, self._sent = link, cut, sent

    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        self._sent[step, self._cut] += tensor.numel() * tensor.element_size()
        self._link.send(kind, step, tensor)

    def receive(self, kind: Kind, step: int) -> Tensor:
        return self._link.receive(kind, step)

    def receive_any(self, kind: Kind) -> tuple[int, Tensor]:
        raise AssertionError(kind)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["replica", "error"])
@pytest.mark.parametrize(("name", "sizes", "length"), CASES)
def test_bytes_over_every_cut_are_those_that_stages_send(
    name: str, sizes: tuple[int, ...], length: int, kind: str, precision: str
) -> None:
    sent: Counter[tuple[int, int]] = Counter()
    method = bl.BackLink(propagation_length=length, alpha=0.5, link=kind) if length else bl.GLL()
    modules = bl.split(network(name), len(sizes), head="conv", sizes=sizes)
    with ThreadsExecutor(job_with(modules, method, BATCH, engine=Engine(precision=precision))) as executor:
        for k, stage in enumerate(executor._stages):
            stage.connect(Counting(stage._previous, k - 1, sent), Counting(stage._next, k, sent))
        executor.train(2)
    planned = Planner(costs(name, precision), Machine(devices=4)).predict(sizes, layout.Link(length=length, kind=kind))
    predicted = dict(enumerate(planned.cut_bytes))
    assert sent == {(step, cut): count for step in (0, 1) for cut, count in predicted.items()}

"""Awkward modules over Ray: what tests/nets/test_awkward_modules.py shows for threads, in processes of their own."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from tests.examples import different
from tests.nets.awkward import AS_TORCH, NO_COPY, RANDOM
from tests.nets.test_awkward_modules import compiled_norm, job_of, network, outcome, plain

MAKES = {**AS_TORCH, **RANDOM, "compiled": compiled_norm}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "names",
    [
        ("batch norm in eval()", "frozen"),
        ("bfloat16", "bfloat16"),
        ("Python's random", "numpy's generator"),
        ("train() overridden", "complex inside"),
        pytest.param(("compiled", "backbone under no_grad"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def test_ray_equals_one_process(names: tuple[str, str], pooled_executor: Callable[[Job], Executor]) -> None:
    method = bl.BackLink(propagation_length=1, alpha=0.5, tail_memory="recompute")
    ours, theirs = (
        outcome(make, job_of(network(*(MAKES[n] for n in names)), method)) for make in (pooled_executor, LocalExecutor)
    )
    assert torch.equal(ours[0], theirs[0])
    assert different(ours[1], theirs[1]) == []
    assert ours[2] == theirs[2]


def norm_first(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(a), nn.Conv2d(a, b, 3, padding=1), nn.Tanh())


@pytest.mark.timeout(180)
def test_channels_last_arrive_as_channels_last(pooled_executor: Callable[[Job], Executor]) -> None:
    """A batch norm sums up in another order otherwise."""

    def training() -> Job:
        torch.manual_seed(0)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
        units = [norm_first(3, 6), *(norm_first(6, 6) for _ in range(3))]
        net = bl.Network(units, head, torch.zeros(2, 3, 32, 32)).to(memory_format=torch.channels_last)
        return job_of(net, bl.BackLink(propagation_length=1, alpha=0.5))

    ours, theirs = (outcome(make, training()) for make in (pooled_executor, LocalExecutor))
    assert different(ours[1], theirs[1]) == []


@pytest.mark.parametrize("what", ["unit", "loss"])
def test_what_cannot_be_sent_is_named(what: str, ray_executor: Callable[[Job], Executor]) -> None:
    lock, unit = threading.Lock(), NO_COPY["lock"][0] if what == "unit" else plain

    def locked(logits: Tensor, labels: Tensor) -> Tensor:
        with lock:
            return F.cross_entropy(logits, labels)

    loss = locked if what == "loss" else F.cross_entropy
    training = replace(job_of(network(unit, plain), bl.BackLink(propagation_length=1, link="error")), loss=loss)
    name = "loss" if what == "loss" else r"units\[1\]"
    with pytest.raises(bl.ConfigError, match=rf"{name} cannot be sent to the process of its stage: .*lock"):
        ray_executor(training)
